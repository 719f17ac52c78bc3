"""Asks the person at an MCP client whether a call may run, where the client can ask (MCP's elicitation)."""

from __future__ import annotations

from toolway.access.approvals import Approval, Verdict
from toolway.access.questions import write_summary
from toolway.telemetry.logging import Redactor
from toolway.types import JSON, ClientRequestFailed, call_client

SCHEMA: JSON = {
    "type": "object",
    "properties": {"allow": {"type": "boolean", "title": "Allow", "description": "Let this call run once"}},
    "required": ["allow"],
}


async def elicit(approval: Approval, redact: Redactor) -> Verdict | None:
    """The answer of the person at the client of the call under way; None: nobody can be asked, or nobody answered."""
    client = call_client.get()
    if client is None or "elicitation" not in client.offers:
        return None
    message = write_summary(approval, "en", redact)
    question = {"method": "elicitation/create", "params": {"message": message, "requestedSchema": SCHEMA}}
    try:
        answer = (await client.ask({approval.id: question})).get(approval.id)
    except ClientRequestFailed:
        return None
    if not isinstance(answer, dict):
        return None
    action, content = answer.get("action"), answer.get("content")
    if action == "accept" and isinstance(content, dict):
        return Verdict(approve=content.get("allow") is True, by="mcp")
    return Verdict(approve=False, by="mcp") if action == "decline" else None
