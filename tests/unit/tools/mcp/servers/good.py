"""A well-behaved MCP server of both eras on the low-level Server: a program on stdio, `app()` over HTTP."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from mcp import types
from mcp.server import Server
from mcp.server.lowlevel import NotificationOptions
from mcp.server.sse import SseServerTransport
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from starlette.applications import Starlette
from starlette.routing import Mount, Route

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOLS = [
    "echo",
    "pid",
    "fail",
    "slow",
    "image",
    "structured",
    "everything",
    "grow",
    "events",
    "crash",
    "big",
    "hang_up",
]
"""The names that tools/list offers; `grow` adds as many as `count` says."""

DESCRIPTIONS: dict[str, str] = {}
"""Those that are not simply the name."""

EVENTS: list[str] = []
HANG_UP: list[Any] = []
HEARD = "GOOD_HEARD"
"""Names a file in the environment, which is there once somebody listens to the news."""


class Bus(InMemorySubscriptionBus):
    """Tells in the file HEARD when the first one listens."""

    def subscribe(self, listener: Any) -> Any:
        unsubscribe = super().subscribe(listener)
        if path := os.environ.get(HEARD):
            Path(path).touch()
        return unsubscribe


BUS = Bus()


class Announcing(Server[Any]):
    """Says that its list may change: the SDK leaves that out over HTTP."""

    def create_initialization_options(self, *args: Any, **kwargs: Any) -> Any:
        return super().create_initialization_options(NotificationOptions(tools_changed=True))


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    schema = {
        "type": "object",
        "properties": {"value": {}, "seconds": {"type": "number"}, "count": {"type": "integer"}},
    }
    return types.ListToolsResult(
        tools=[types.Tool(name=n, input_schema=schema, description=DESCRIPTIONS.get(n, n)) for n in TOOLS]
    )


def text(said: str, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=said)], **more)


async def slow(ctx: Any, seconds: float) -> types.CallToolResult:
    await ctx.session.report_progress(1, 2, "half way")
    EVENTS.append("started")
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        EVENTS.append("cancelled")
        raise
    EVENTS.append("slept")
    return text("slept")


async def grow(ctx: Any, count: int) -> types.CallToolResult:
    TOOLS.extend([f"grown{len(TOOLS) + number}" for number in range(count)])
    await BUS.publish(ToolsListChanged())
    await ctx.session.send_tool_list_changed()
    return text(TOOLS[-1])


def everything() -> types.CallToolResult:
    link = types.ResourceLink(type="resource_link", uri="file:///a.txt", name="a", description="a file")
    embedded = types.TextResourceContents(uri="note://1", text="inside")
    blob = types.BlobResourceContents(uri="note://2", blob=PIXEL, mime_type="image/png")
    blocks: list[types.ContentBlock] = [
        types.TextContent(type="text", text="words"),
        types.AudioContent(type="audio", data="AAAA", mime_type="audio/wav"),
        link,
        types.EmbeddedResource(type="resource", resource=embedded),
        types.EmbeddedResource(type="resource", resource=blob),
    ]
    return types.CallToolResult(content=blocks)


async def call_tool(ctx: Any, params: Any) -> types.CallToolResult:
    arguments = params.arguments or {}
    match params.name:
        case "echo":
            return text(repr(arguments.get("value")))
        case "pid":
            return text(str(os.getpid()))
        case "fail":
            return text("this did not work", is_error=True)
        case "slow":
            return await slow(ctx, arguments["seconds"])
        case "image":
            image = types.ImageContent(type="image", data=PIXEL, mime_type="image/png")
            return types.CallToolResult(content=[image])
        case "structured":
            return types.CallToolResult(content=[], structured_content={"degrees": 21})
        case "everything":
            return everything()
        case "events":
            return text(" ".join(EVENTS))
        case "grow":
            return await grow(ctx, arguments.get("count", 1))
        case "big":
            return text("x" * 3_000_000)
        case "hang_up":
            HANG_UP.pop()()
        case "crash":
            os._exit(3)
    return text("grown")


async def list_resources(ctx: Any, params: Any) -> types.ListResourcesResult:
    return types.ListResourcesResult(
        resources=[types.Resource(uri="note://1", name="one", description="a note")]
    )


async def read_resource(ctx: Any, params: Any) -> types.ReadResourceResult:
    return types.ReadResourceResult(
        contents=[types.TextResourceContents(uri=params.uri, text=f"text of {params.uri}")]
    )


def server() -> Server[Any]:
    return Announcing(
        "good",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
        on_subscriptions_listen=ListenHandler(BUS),
        get_tool_input_schema=lambda name: {"type": "object"},
    )


def app(**manager: Any) -> Starlette:
    sessions = StreamableHTTPSessionManager(server(), **manager)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with sessions.run():
            yield

    return Starlette(routes=[Route("/mcp", StreamableHTTPASGIApp(sessions))], lifespan=lifespan)


def sse_app(path: str = "/sse") -> Starlette:
    """HTTP+SSE as of 2024-11-05; the tool `hang_up` ends the stream of events."""
    transport = SseServerTransport("/messages/")

    class Events:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            served = server()
            async with (
                transport.connect_sse(scope, receive, send) as (read, write),
                anyio.create_task_group() as tasks,
            ):
                HANG_UP.append(tasks.cancel_scope.cancel)
                await served.run(read, write, served.create_initialization_options())

    return Starlette(
        routes=[Route(path, Events(), methods=["GET"]), Mount("/messages/", transport.handle_post_message)]
    )


async def main() -> None:
    served = server()
    async with stdio_server() as (read, write):
        await served.run(read, write, served.create_initialization_options())


if __name__ == "__main__":
    print("ready to serve", file=sys.stderr, flush=True)
    anyio.run(main)
