"""An MCP server that uses all that MCP has: titles, annotations, schemas, prompts, resources, questions, logs.

A program on stdio, `app()` over HTTP; its name is the first argument.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
from mcp import types
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from starlette.applications import Starlette
from starlette.routing import Route

MEASURE = {
    "name": "measure",
    "title": "Measure a thing",
    "description": "Measures.",
    "inputSchema": {
        "type": "object",
        "properties": {"what": {"$ref": "#/$defs/thing"}},
        "required": ["what"],
        "$defs": {"thing": {"type": "string", "enum": ["room", "door"]}},
    },
    "outputSchema": {"type": "object", "properties": {"metres": {"type": "number"}}, "required": ["metres"]},
    "annotations": {"title": "Measure", "readOnlyHint": True, "openWorldHint": False},
    "icons": [{"src": "https://example.com/icon.png", "mimeType": "image/png"}],
    "_meta": {"example.com/kind": "ruler"},
}
PLAIN = {"type": "object", "properties": {}}
REGION = {"type": "string", "x-mcp-header": "Region"}
TOOLS = [
    MEASURE,
    {"name": "ask", "description": "Asks the user.", "inputSchema": PLAIN},
    {"name": "think", "description": "Asks a model.", "inputSchema": PLAIN},
    {"name": "tell", "description": "Writes into the log.", "inputSchema": PLAIN},
    {
        "name": "mirror",
        "description": "Says which region.",
        "inputSchema": {"type": "object", "properties": {"region": REGION}},
    },
]
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
ASK = {"mode": "form", "message": "Who are you?", "requestedSchema": FORM}
THINK = {"messages": [{"role": "user", "content": {"type": "text", "text": "Say hi"}}], "maxTokens": 9}
NAME = sys.argv[1] if __name__ == "__main__" and len(sys.argv) > 1 else "rich"


def whole(result: dict[str, Any]) -> dict[str, Any]:
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **result}


def text(said: str) -> dict[str, Any]:
    return whole({"content": [{"type": "text", "text": said}]})


async def list_tools(ctx: Any, params: Any) -> dict[str, Any]:
    return whole({"tools": TOOLS})


async def call_tool(ctx: Any, params: Any) -> dict[str, Any]:
    match params.name:
        case "measure":
            said = {"metres": 2.5}
            return whole({
                "content": [{"type": "text", "text": '{"metres": 2.5}', "annotations": {"priority": 1.0}}],
                "structuredContent": said,
                "_meta": {"example.com/by": NAME},
            })  # fmt: skip
        case "ask":
            return await answer(ctx, params, "elicitation/create", ASK)
        case "think":
            return await answer(ctx, params, "sampling/createMessage", THINK)
        case "tell":
            note = {"level": "warning", "logger": "ruler", "data": "it is bent"}
            await ctx.session.send_notification(
                types.LoggingMessageNotification(params=types.LoggingMessageNotificationParams(**note)),
                related_request_id=ctx.request_id,
            )
            return text("told")
    return text("what?")


async def answer(ctx: Any, params: Any, method: str, question: dict[str, Any]) -> dict[str, Any]:
    """What the client says to a question, asked as its version of the protocol has it."""
    if ctx.protocol_version < "2026":
        said = await ctx.session._request_outbound.send_raw_request(method, question)
        return text(str(said))
    if not params.input_responses:
        ask = {"q": {"method": method, "params": question}}
        return {"resultType": "input_required", "inputRequests": ask, "requestState": "s1"}
    said = params.input_responses["q"]
    return text(
        f"{params.request_state} {said if isinstance(said, dict) else said.model_dump(by_alias=True)}"
    )


async def list_resources(ctx: Any, params: Any) -> dict[str, Any]:
    page = {"uri": f"note://{NAME}/1", "name": "one", "title": "The first note", "mimeType": "text/plain"}
    if params.cursor is None:
        return whole({"resources": [{"uri": "config://app", "name": "config"}], "nextCursor": "2"})
    return whole({"resources": [page]})


async def list_templates(ctx: Any, params: Any) -> dict[str, Any]:
    return whole({"resourceTemplates": [{"uriTemplate": "note://{author}/{number}", "name": "note"}]})


async def read_resource(ctx: Any, params: Any) -> dict[str, Any]:
    if not params.uri.startswith(("note://", "config://")):
        raise MCPError(-32602, f"no such resource: {params.uri}")
    return whole(
        {"contents": [{"uri": params.uri, "mimeType": "text/plain", "text": f"{NAME}: {params.uri}"}]}
    )


async def list_prompts(ctx: Any, params: Any) -> dict[str, Any]:
    arguments = [{"name": "topic", "required": True}]
    return whole({"prompts": [{"name": "write", "title": "Write about", "arguments": arguments}]})


async def get_prompt(ctx: Any, params: Any) -> dict[str, Any]:
    said = f"{NAME}: write about {(params.arguments or {}).get('topic')}"
    message = {"role": "user", "content": {"type": "text", "text": said}}
    return whole({"description": "A prompt", "messages": [message]})


async def complete(ctx: Any, params: Any) -> dict[str, Any]:
    values = [f"{NAME}-{params.ref.type}-{params.argument.value}"]
    return whole({"completion": {"values": values, "total": 1, "hasMore": False}})


def server() -> Server[Any]:
    handlers: dict[str, Any] = {
        "on_list_tools": list_tools,
        "on_call_tool": call_tool,
        "on_list_resources": list_resources,
        "on_list_resource_templates": list_templates,
        "on_read_resource": read_resource,
        "on_list_prompts": list_prompts,
        "on_get_prompt": get_prompt,
        "on_completion": complete,
    }
    return Server(NAME, get_tool_input_schema=lambda name: PLAIN, **handlers)


def app(**manager: Any) -> Starlette:
    sessions = StreamableHTTPSessionManager(server(), **manager)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with sessions.run():
            yield

    return Starlette(routes=[Route("/mcp", StreamableHTTPASGIApp(sessions))], lifespan=lifespan)


async def main() -> None:
    served = server()
    async with stdio_server() as (read, write):
        await served.run(read, write, served.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
