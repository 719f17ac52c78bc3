"""/mcp and the REST service in this process, over tools that are functions: asked without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from tests.support.confused import ORDER
from toolway.access.policy import Policy
from toolway.api.mcp import McpEndpoint
from toolway.api.rest import RestTools
from toolway.settings.load import load_settings
from toolway.stores import Store
from toolway.stores.memory import MemoryEntries
from toolway.tools.catalog import Catalog
from toolway.tools.direct_tools import DirectTools
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult
from toolway.wire.lenient_json import dumps, dumps_text

ANYTHING = {"type": "object", "properties": {"value": {}}}
JSON_BODY = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


class Echoes:
    """A source of two tools, which say what they were given."""

    kind = "memory"
    label = "echoes"

    def __init__(self) -> None:
        schemas = {"echo": ANYTHING, "order": ORDER}
        tools = [
            Tool(name=n, server=self.label, description=f"Does {n}.", parameters=s)
            for n, s in schemas.items()
        ]
        self.status = SourceStatus(state="ready", tools=tuple(tools))

    async def run(self, changed: Any) -> None:
        changed()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        return ToolResult(text=dumps_text(arguments))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class DirectApps:
    """Both apps, open in a `with`."""

    mcp: ASGIApp
    rest: ASGIApp
    session: Mapping[str, str]
    """The headers of a client with a session, as of 2025-11-25."""

    def __enter__(self) -> DirectApps:
        self._runner = asyncio.Runner()
        self._runner.run(self._start())
        hello = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "c", "version": "1"},
        }
        opened = self.ask(self.mcp, "POST", "/mcp", _rpc("initialize", hello, id=1))
        session = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
        self.session = {**JSON_BODY, **session}
        self.ask(self.mcp, "POST", "/mcp", _rpc("notifications/initialized", {}), self.session)
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._end())
        self._runner.close()

    def ask(
        self, app: ASGIApp, method: str, path: str, body: bytes, headers: Mapping[str, str] = JSON_BODY
    ) -> Answer:
        """One request, and the whole answer."""
        return self._runner.run(_asked(app, method, path, body, headers))

    async def _start(self) -> None:
        self._over, opened = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._serve(opened))
        await opened.wait()

    async def _serve(self, opened: asyncio.Event) -> None:
        settings = load_settings({}, None, None, endpoints="", profiles={"plain": ["echo"]})
        store = Store(MemoryEntries())
        async with AsyncExitStack() as stack:
            catalog = await stack.enter_async_context(Catalog([Echoes()]).running())
            direct_tools, policy = DirectTools(catalog, timeout=5.0), Policy(settings, store)
            endpoint = McpEndpoint(direct_tools, policy, settings)
            await stack.enter_async_context(endpoint.running())
            self.mcp, self.rest = endpoint, RestTools(direct_tools, settings, policy, lambda: False)
            opened.set()
            await self._over.wait()

    async def _end(self) -> None:
        self._over.set()
        await self._task


def _rpc(method: str, params: JSON, **more: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params, **more})


async def _asked(app: ASGIApp, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    lines = {**headers, "host": "127.0.0.1", "content-length": str(len(body))}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
        "client": ("127.0.0.1", 5),
        "extensions": {},
    }
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), 60)
    start, *rest = sent
    told = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], told, b"".join(message.get("body", b"") for message in rest))
