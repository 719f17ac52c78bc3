"""The response object: every field of the published schema, with OpenAI's defaults where the client said nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from toolway.items.approval import approval_of
from toolway.items.request import Asked
from toolway.types import JSON

_DEFAULTS: JSON = {
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "truncation": "disabled",
    "service_tier": "default",
    "max_output_tokens": None,
    "max_tool_calls": None,
    "instructions": None,
    "previous_response_id": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "user": None,
}
"""Fields that repeat what the request said."""


def new_resource(asked: Asked, identity: str, created_at: int) -> JSON:
    """The object of a response that has just begun. `created_at` is Unix time in whole seconds."""
    given = asked.given
    reasoning = given.get("reasoning") or {}
    said = {name: default if given.get(name) is None else given[name] for name, default in _DEFAULTS.items()}
    return {
        "id": identity,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": asked.background,
        "error": None,
        "incomplete_details": None,
        "model": asked.chat.get("model") or "unknown",
        "output": [],
        **said,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "store": asked.store,
        "text": {"format": {"type": "text"}, **{k: v for k, v in (given.get("text") or {}).items() if v}},
        "tools": declared_tools(asked),
        "metadata": given.get("metadata") or {},
        "usage": None,
    }


def declared_tools(asked: Asked) -> list[JSON]:
    """The client's own declarations that are honoured here, without the secrets in them."""
    return [
        _echoed(tool)
        for tool in asked.given.get("tools") or ()
        if tool["type"] in ("function", "custom", "mcp")
    ]


def _echoed(tool: JSON) -> JSON:
    if tool["type"] == "function":
        return {"description": None, "parameters": None, "strict": None, **tool}
    if tool["type"] == "custom":
        return tool
    shown: JSON = {key: value for key, value in tool.items() if key not in ("headers", "authorization")}
    if isinstance(url := tool.get("server_url"), str):
        shown["server_url"] = _origin(url)
    return {"allowed_tools": None, "server_description": None, **shown, "require_approval": approval_of(tool)}


def _origin(url: str) -> str:
    """Paths and queries of such addresses hold keys at times."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<redacted>"
    return f"{parts.scheme}://{host}/<redacted>"


def read_usage(usage: JSON | None) -> JSON | None:
    """The usage of chat completions in the names of responses."""
    if not usage:
        return None
    asked = _count(usage.get("prompt_tokens"))
    said = _count(usage.get("completion_tokens"))
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
            "cache_write_tokens": _detail(usage, "prompt_tokens_details", "cache_write_tokens"),
        },
        "output_tokens": said,
        "output_tokens_details": {
            "reasoning_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens")
        },
        "total_tokens": _count(usage.get("total_tokens")) or asked + said,
    }


def _detail(usage: JSON, group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def output_text(output: Sequence[JSON]) -> str:
    """All text that a response says."""
    return "".join(
        part["text"]
        for item in output
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )
