"""The catalog as an MCP server of the SDK's: tools listed in pages and called, their changes announced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, NotificationParams, PaginatedRequestParams

from toolway import __version__
from toolway.api.mcp.relay import reporting_progress
from toolway.api.mcp.results import call_result, complete, tool_object
from toolway.tools.direct import DirectTools
from toolway.tools.names import closest
from toolway.types import JSON, Selection, Tool
from toolway.wire.lenient_json import dumps_text

PAGE = 1_000
"""Items in one page of a list. Many clients read the first page only."""

CURSOR = "after:"
"""What begins a cursor; the name of the last item follows, so that one stays good when the list changes."""

SETTLE = 0.05
"""Seconds between the first word of changed tools and what clients hear of it: many changes become one."""

NOTIFY_SECONDS = 5.0
"""How long a client may take to be told."""

Context = ServerRequestContext[Any, Any]


class CatalogServer(Server[Any]):
    """Serves what `selection` leaves of the catalog to a request. Its handlers' answers are JSON; the SDK checks it."""

    def __init__(self, direct: DirectTools, selection: Callable[[Context], Selection]) -> None:
        self._direct = direct
        self._selection = selection
        self._bus = InMemorySubscriptionBus()
        self._connections: WeakSet[Connection] = WeakSet()
        self._objects: WeakKeyDictionary[Tool, dict[tuple[str, str], JSON]] = WeakKeyDictionary()
        handlers: dict[str, Any] = {"on_list_tools": self._list_tools, "on_call_tool": self._call_tool}
        super().__init__(
            "toolway",
            version=__version__,
            title="Toolway",
            on_subscriptions_listen=ListenHandler(self._bus),
            get_tool_input_schema=self._input_schema,
            **handlers,
        )
        self.middleware.clear()  # the SDK's own tracing
        self.add_notification_handler("notifications/initialized", NotificationParams, self._remember)

    def create_initialization_options(self, *args: Any, **kwargs: Any) -> InitializationOptions:
        """The SDK's, which say over HTTP too that the lists may change."""
        return super().create_initialization_options(NotificationOptions(tools_changed=True))

    @asynccontextmanager
    async def announcing(self) -> AsyncIterator[None]:
        """Tell clients of changed tools while the block lasts."""
        changed = anyio.Event()

        def notice() -> None:
            changed.set()

        async def announce() -> None:
            nonlocal changed
            while True:
                await changed.wait()
                await anyio.sleep(SETTLE)
                changed = anyio.Event()
                await self._bus.publish(ToolsListChanged())
                async with anyio.create_task_group() as tasks:
                    for connection in list(self._connections):
                        tasks.start_soon(_tell, connection)

        self._direct.catalog.on_change.append(notice)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(announce)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self._direct.catalog.on_change.remove(notice)

    async def _remember(self, ctx: Context, _: NotificationParams) -> None:
        """A client of a version that is told of changes by the connection, for as long as that lasts."""
        self._connections.add(ctx.session._connection)

    async def _list_tools(self, ctx: Context, params: PaginatedRequestParams) -> JSON:
        found = await self._direct.tools(self._selection(ctx))
        names, cursor = page_of(found, params.cursor)
        version = ctx.protocol_version
        return complete({"tools": [self._object(name, found[name], version) for name in names], **cursor})

    def _object(self, name: str, tool: Tool, version: str) -> JSON:
        known = self._objects.setdefault(tool, {})
        if (name, version) not in known:
            known[name, version] = tool_object(name, tool, version)
        return known[name, version]

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> JSON:
        selection = self._selection(ctx)
        arguments = dumps_text(params.arguments or {})
        async with reporting_progress(ctx) as on_progress:
            result = await self._direct.call(params.name, arguments, selection, on_progress)
        if result is None:
            close = closest(params.name, await self._direct.tools(selection))
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:100]}.{hint}")
        return complete(call_result(result, ctx.protocol_version))

    def _input_schema(self, name: str) -> JSON | None:
        tool = self._direct.catalog.snapshot.tools.get(name)
        return tool.parameters if tool else None


def page_of(names: Any, cursor: str | None) -> tuple[list[str], JSON]:
    """The names behind the cursor, of those that come sorted, and the member `nextCursor` if there are more."""
    if cursor is not None and not cursor.startswith(CURSOR):
        raise MCPError(INVALID_PARAMS, "The cursor is none that this server gave.")
    last = None if cursor is None else cursor.removeprefix(CURSOR)
    page = list(islice((name for name in names if last is None or name > last), PAGE + 1))
    return page[:PAGE], {"nextCursor": CURSOR + page[PAGE - 1]} if len(page) > PAGE else {}


async def _tell(connection: Connection) -> None:
    with anyio.move_on_after(NOTIFY_SECONDS):
        await connection.send_tool_list_changed()
