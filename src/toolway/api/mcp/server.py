"""The catalog as an MCP server of the SDK's: tools listed in pages and called, their changes announced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import anyio
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ServerEvent,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import x_mcp_header_map
from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolRequestParams,
    NotificationParams,
    PaginatedRequestParams,
    ServerCapabilities,
    SetLevelRequestParams,
)
from pydantic import BaseModel, ValidationError

from toolway import __version__
from toolway.access.policy import Policy
from toolway.api.mcp.context import CatalogContext
from toolway.api.mcp.relay import (
    LOG_LEVEL,
    Context,
    R,
    Run,
    StatelessCalls,
    is_modern,
    run_with_session,
)
from toolway.api.mcp.results import call_result, complete, is_result, tool_object, without_hop
from toolway.dialects import MCP
from toolway.engine.tool_search import SearchRules, ToolSearch, inner_call
from toolway.errors import OverQuota, QuotasUnknown, Unauthorized
from toolway.server.admission import call_slot
from toolway.server.caller import caller_id
from toolway.tools.direct_tools import DirectTools
from toolway.tools.invoke import Gate, invoke
from toolway.tools.mcp.sdk_internals import connection_of
from toolway.tools.names import hint
from toolway.types import JSON, Caller, OnProgress, Selection, Tool, ToolCall, ToolResult, is_selected
from toolway.wire.lenient_json import dumps, dumps_text

PAGE = 1_000
"""Items in one page of a list. Many clients read the first page only."""

PAGE_BYTES = 2**19
"""What the items of one page have together: more than a model can read, and 10 ms of work in one piece."""

CURSOR = "after:"
"""What begins a cursor; the name of the last item follows, so that one stays good when the list changes."""

SETTLE = 0.05
"""Seconds between the first word of changed tools and what clients hear of it: many changes become one."""

NOTIFY_SECONDS = 5.0
"""How long a client may take to be told."""

OWNER = "toolway.owner"
"""Where it stands in the state of a connection whose session it is: `caller_id`."""

asking: ContextVar[Caller | None] = ContextVar("asking", default=None)
"""Whose request is read in this task, as far as it came by HTTP."""


class CatalogServer(Server[Any]):
    """Serves what there is of the catalog for the `caller` of a request, while `running`.

    Where `searches` says so, the tools are not listed but searched. Its handlers' answers are JSON, which the SDK
    checks.
    """

    def __init__(
        self,
        direct_tools: DirectTools,
        policy: Policy,
        caller: Callable[[Context], Caller],
        searches: Callable[[Context], bool] = lambda _: False,
    ) -> None:
        self._direct_tools = direct_tools
        self._search = DirectSearch(direct_tools)
        self._policy = policy
        self._caller = caller
        self._searches = searches
        self._context = CatalogContext(direct_tools.catalog)
        self._stateless = StatelessCalls()
        self._bus = InMemorySubscriptionBus()
        self._connections: WeakSet[Connection] = WeakSet()
        self.by_session: WeakValueDictionary[str, Connection] = WeakValueDictionary()
        """The connections of clients with a session, whose owners are in their states."""
        self._mirrored: WeakKeyDictionary[Tool, bool] = WeakKeyDictionary()
        self._objects: WeakKeyDictionary[Tool, dict[tuple[str, str, str | None], JSON]] = WeakKeyDictionary()
        handlers: dict[str, Any] = {
            "on_list_tools": self._list_tools,
            "on_call_tool": self._call_tool,
            "on_list_prompts": partial(self._list_context, "prompts/list", "prompts", "name"),
            "on_get_prompt": partial(self._ask_context, self._context.get_prompt),
            "on_list_resources": partial(self._list_context, "resources/list", "resources", "uri"),
            "on_list_resource_templates": partial(
                self._list_context, "resources/templates/list", "resourceTemplates", "uriTemplate"
            ),
            "on_read_resource": partial(self._ask_context, self._context.read_resource),
            "on_completion": partial(self._ask_context, self._context.complete),
        }
        super().__init__(
            "toolway",
            version=__version__,
            title="Toolway",
            on_subscriptions_listen=ListenHandler(self._bus),
            get_tool_input_schema=self._input_schema,
            **handlers,
        )
        self.middleware[:] = [_without_empty_data]  # in place of the SDK's own tracing
        self.add_notification_handler("notifications/initialized", NotificationParams, self._remember)
        self.add_request_handler("logging/setLevel", SetLevelRequestParams, self._set_level)

    def create_initialization_options(self, *args: Any, **kwargs: Any) -> InitializationOptions:
        """The SDK's, which say over HTTP too that the lists may change."""
        return super().create_initialization_options(
            NotificationOptions(tools_changed=True, prompts_changed=True, resources_changed=True)
        )

    def get_capabilities(self, *args: Any, **kwargs: Any) -> ServerCapabilities:
        """The SDK's, without what is not relayed: changes of single resources."""
        capabilities = super().get_capabilities(*args, **kwargs)
        if capabilities.resources is not None:
            capabilities.resources.subscribe = False
        return capabilities

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the block lasts, and tell clients of changed lists."""
        changed = anyio.Event()

        def notice() -> None:
            changed.set()

        async def announce() -> None:
            nonlocal changed
            tools, context = self._direct_tools.catalog.snapshot.callable, self._context.state()
            while True:
                await changed.wait()
                await anyio.sleep(SETTLE)
                changed = anyio.Event()
                before = tools, context
                tools, context = self._direct_tools.catalog.snapshot.callable, self._context.state()
                if tools != before[0]:
                    await self._tell(ToolsListChanged(), Connection.send_tool_list_changed)
                if context != before[1]:
                    await self._tell(PromptsListChanged(), Connection.send_prompt_list_changed)
                    await self._tell(ResourcesListChanged(), Connection.send_resource_list_changed)

        self._direct_tools.catalog.on_change.append(notice)
        try:
            async with self._stateless.running(), anyio.create_task_group() as tasks:
                tasks.start_soon(announce)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self._direct_tools.catalog.on_change.remove(notice)

    async def _tell(self, event: ServerEvent, send: Callable[[Connection], Awaitable[None]]) -> None:
        await self._bus.publish(event)

        async def tell(connection: Connection) -> None:
            with anyio.move_on_after(NOTIFY_SECONDS):
                await send(connection)

        async with anyio.create_task_group() as tasks:
            for connection in list(self._connections):
                tasks.start_soon(tell, connection)

    async def _remember(self, ctx: Context, _: NotificationParams) -> None:
        """A client of a version that is told of changes by the connection, for as long as that lasts."""
        connection = connection_of(ctx.session)
        self._connections.add(connection)
        if connection.session_id is not None and ctx.request is not None:
            connection.state[OWNER] = caller_id(ctx.request.scope)
            self.by_session[connection.session_id] = connection

    async def _list_tools(self, ctx: Context, params: PaginatedRequestParams) -> JSON:
        found = await self._direct_tools.tools(self._caller(ctx).selection)
        if self._searches(ctx):
            found = self._search.tools(found)
        version, path = ctx.protocol_version, self._direct_tools.catalog.name if _is_toolway(ctx) else None
        return complete(
            page_of(
                "tools", found, params.cursor, lambda name: self._object(name, found[name], version, path)
            )
        )

    def _object(self, name: str, tool: Tool, version: str, path: str | None) -> JSON:
        known = self._objects.setdefault(tool, {})
        key = name, version, path
        if key not in known:
            known[key] = tool_object(name, tool, version, path)
        return known[key]

    async def _call_tool(self, ctx: Context, params: CallToolRequestParams) -> JSON:
        caller = self._caller(ctx)
        try:
            self._policy.check(caller)
        except Unauthorized as error:
            raise MCPError(INVALID_REQUEST, error.message) from None
        arguments = dumps_text(params.arguments or {})
        gate = self._policy.gate(caller, dialect=MCP.name)

        async def run(on_progress: OnProgress | None) -> ToolResult | None:
            call = self._search.call if self._searches(ctx) else self._direct_tools.call
            try:
                async with call_slot(ctx.request.scope) if ctx.request is not None else nullcontext():
                    return await call(
                        params.name, arguments, caller.selection, gate=gate, on_progress=on_progress
                    )
            except (OverQuota, QuotasUnknown) as error:
                return ToolResult(text=error.message, is_error=True)

        result = await self._relayed(ctx, (params.name, arguments), run)
        if isinstance(result, dict):
            return result
        if result is None:
            known = await self._direct_tools.tools(caller.selection)
            advice = hint(params.name, known, self._direct_tools.untried(caller.selection))
            raise MCPError(INVALID_PARAMS, f"Unknown tool: {params.name[:100]}. {advice}".rstrip())
        if result.rpc_error and result.rpc_error["code"] == MISSING_REQUIRED_CLIENT_CAPABILITY:
            raise MCPError(**result.rpc_error)  # what the client has to know to call again with it
        return complete(call_result(result, ctx.protocol_version))

    async def _relayed(self, ctx: Context, call: object, run: Run[R]) -> R | JSON:
        """Run a call whose server may ask its client something; the result, or what it asks."""
        if is_modern(ctx):
            return await self._stateless.run(ctx, (self._caller(ctx).id, ctx.method, call), run)
        return await run_with_session(ctx, run)

    async def _list_context(
        self, method: str, key: str, naming: str, ctx: Context, params: PaginatedRequestParams
    ) -> JSON:
        await self._direct_tools.until_tried()
        found = await self._context.listed(method, key, naming, self._caller(ctx).selection)
        valid = {
            name: item
            for name, item in found.items()
            if is_result(method, {key: [item]}, ctx.protocol_version)
        }
        return complete(page_of(key, valid, params.cursor, valid.__getitem__))

    async def _ask_context(
        self, ask: Callable[[JSON, Selection], Awaitable[JSON]], ctx: Context, params: BaseModel
    ) -> JSON:
        await self._direct_tools.until_tried()
        try:
            plain = params.model_dump(by_alias=True, mode="json", exclude_none=True)
        except ValueError:
            raise MCPError(INVALID_PARAMS, "The params are nested too deeply.") from None
        for key in ("_meta", "inputResponses", "requestState"):
            plain.pop(key, None)
        selection = self._caller(ctx).selection

        async def run(_: OnProgress | None) -> JSON:
            return await ask(plain, selection)

        return complete(without_hop(await self._relayed(ctx, dumps_text(plain), run)))

    async def _set_level(self, ctx: Context, params: SetLevelRequestParams) -> JSON:
        connection_of(ctx.session).state[LOG_LEVEL] = params.level
        return {}

    def _input_schema(self, name: str) -> JSON | None:
        """The schema of a tool some of whose arguments stand in headers too; None for one that the caller has not."""
        tool, caller = self._direct_tools.all_tools.get(name), asking.get()
        if tool is None or (caller is not None and not is_selected(name, tool, caller.selection)):
            return None
        if tool not in self._mirrored:
            self._mirrored[tool] = bool(x_mcp_header_map(tool.parameters))
        return tool.parameters if self._mirrored[tool] else None


async def _without_empty_data(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Params that cannot be used are told without the `"data": ""` that the SDK has for want of a finding."""
    try:
        return await call_next(ctx)
    except ValidationError:
        raise MCPError(INVALID_PARAMS, "Invalid request parameters") from None
    except MCPError as error:
        if error.data != "":
            raise
        raise MCPError(error.code, error.message) from None


def _is_toolway(ctx: Context) -> bool:
    """Whether the client offers what it gets here to others."""
    params = ctx.session.client_params
    return params is not None and params.client_info.name == "toolway"


def page_of(key: str, names: Iterable[str], cursor: str | None, item: Callable[[str], JSON]) -> JSON:
    """The members of a list's result: as many items behind the cursor as a page holds, and whether there are more.

    The names come sorted.
    """
    if cursor is not None and not cursor.startswith(CURSOR):
        raise MCPError(INVALID_PARAMS, "The cursor is none that this server gave.")
    after = None if cursor is None else cursor.removeprefix(CURSOR)
    items: list[JSON] = []
    size, last = 0, ""
    for name in names:
        if after is not None and name <= after:
            continue
        found = item(name)
        size += len(dumps(found))
        if items and (size > PAGE_BYTES or len(items) == PAGE):
            return {key: items, "nextCursor": CURSOR + last}
        items.append(found)
        last = name
    return {key: items}


SEARCH_TIMEOUT = 30.0
"""Seconds that a search may take; it takes longer than milliseconds while the index is made."""


class DirectSearch:
    """The search over what a caller may use. Any tool can still be called by its name."""

    def __init__(self, direct_tools: DirectTools) -> None:
        self._direct_tools = direct_tools

    def tools(self, found: Mapping[str, Tool]) -> Mapping[str, Tool]:
        """What is listed in place of these tools."""
        search = _search_of(found)
        return {tool.name: tool for tool in (search.caller, search.finder)}

    async def call(
        self,
        name: str,
        arguments: str,
        selection: Selection,
        *,
        gate: Gate | None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult | None:
        """The result of a search, or of the tool that is meant; None: there is no such tool for this caller."""
        found = await self._direct_tools.tools(selection)
        search, call = _search_of(found), ToolCall(id="", name=name, arguments=arguments)
        finder, caller = search.names
        if name == finder:
            with self._direct_tools.catalog.use() as snapshot:
                offered = {known: tool for known, tool in found.items() if known in snapshot.offered}

                async def run(_: Tool, asked: JSON, __: OnProgress | None = None) -> ToolResult:
                    return (await search.search(asked, snapshot, offered))[0]

                return await invoke(call, search.finder, run, tool_timeout=SEARCH_TIMEOUT)
        meant = inner_call(call) if name == caller else call
        if meant is call and name == caller:
            text = 'call_tool wants {"name": the name of a tool, "arguments": {...}}'
            return ToolResult(text=text, is_error=True)
        result = await self._direct_tools.call(
            meant.name, meant.arguments, selection, gate=gate, on_progress=on_progress
        )
        if result is None and meant is not call:
            text = f"there is no tool named {meant.name[:100]!r}; {finder} finds those that there are"
            return ToolResult(text=text, is_error=True)
        return result


def _search_of(found: Mapping[str, Tool]) -> ToolSearch:
    return ToolSearch(SearchRules(way="call"), found)
