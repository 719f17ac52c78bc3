"""The servers behind Toolway in the soak: a model that does what its user says, an OpenAPI service, an MCP server.

`python -m bench.soak.services MODEL_PORT TOOLS_PORT MCP_PORT`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import anyio
import uvicorn
from tests.support.tools import CITY, ToolService, document
from tests.support.upstream import (
    Reply,
    ScriptedUpstream,
    call_stream,
    chunk,
    json_reply,
    sse,
    text_stream,
    tool_call,
    whole,
)
from tests.unit.tools.mcp.servers import good

JSON = dict[str, Any]

OPERATIONS = [f"look_up_{number}" for number in range(20)]
PIECES = 50
"""Of a slow answer, a twentieth of a second apart."""


def answer(body: JSON) -> Reply:
    """What the last message asks for: `say TEXT`, `call TOOL TEXT`, `slow TEXT`, `break TEXT` or `refuse STATUS`."""
    last = next(message for message in reversed(body["messages"]) if message["role"] in {"user", "tool"})
    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    if last["role"] == "tool":
        return said(f"The tool says {text}", body)
    verb, _, rest = text.partition(" ")
    match verb:
        case "call":
            name, arguments = rest.split(" ", 1)
            return called(name, arguments, body)
        case "slow" if body.get("stream"):
            pause = partial(anyio.sleep, 0.05)
            return slowly(
                sse(*(chunk(content=f"{rest} ") for _ in range(PIECES)), chunk(finish="stop")), pause
            )
        case "break" if body.get("stream"):
            broken = sse(chunk(role="assistant", content=rest), done=False)
            return Reply(broken.parts, cut=True)
        case "refuse":
            error = {"message": "as the soak wants it", "type": "server_error", "code": None, "param": None}
            return json_reply({"error": error}, int(rest))
    return said(rest, body)


def said(text: str, body: JSON) -> Reply:
    if not body.get("stream"):
        return whole(
            {"content": text}, usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        )
    words = text.split(" ")
    return text_stream(*(f"{word} " for word in words[:-1]), words[-1])


def called(tool: str, value: str, body: JSON) -> Reply:
    arguments: JSON = {"city": value} if tool in OPERATIONS else {"value": value}
    if tool.endswith("slow"):
        arguments = {"seconds": float(value)}
    call = tool_call(tool, json.dumps(arguments), id=f"call_{value}")
    if body.get("stream"):
        return call_stream(call)
    del call["index"]
    return whole({"content": None, "tool_calls": [call]}, finish="tool_calls")


def slowly(reply: Reply, pause: Callable[[], Awaitable[None]]) -> Reply:
    return Reply([step for part in reply.parts for step in (part, pause)])


def model() -> ScriptedUpstream:
    def forgetful(body: JSON) -> Reply:
        scripted.seen.clear()
        scripted.departures.names.clear()
        return answer(body)

    models = json_reply({"object": "list", "data": [{"id": "mock", "object": "model"}]})
    scripted = ScriptedUpstream([], answer=forgetful, models=models)
    return scripted


def tools() -> ToolService:
    async def look_up(arguments: JSON) -> JSON:
        service.calls.clear()
        return {"city": arguments["city"], "sky": "cloudy"}

    service = ToolService(**dict.fromkeys(OPERATIONS, look_up))
    service.document = document(dict.fromkeys(OPERATIONS, CITY))
    return service


async def main(*ports: str) -> None:
    apps: list[tuple[Any, Literal["on", "off"]]] = [(model(), "off"), (tools(), "off"), (good.app(), "on")]
    async with anyio.create_task_group() as group:
        for (app, lifespan), port in zip(apps, ports, strict=True):
            config = uvicorn.Config(app, port=int(port), lifespan=lifespan, log_level="critical", ws="none")
            group.start_soon(uvicorn.Server(config).serve)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
