"""One MCP server as a ToolSource: kept connected by the one task that owns it, with calls that outlive a restart."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio

from toolway.errors import SourceError
from toolway.settings.mcp_server import Era, McpServerConfig
from toolway.tools.mcp.errors import LostError, RpcError, cause_of, exit_reason, explain
from toolway.tools.mcp.options import ConnectOptions, LogBudget, ServerLog, Transport
from toolway.types import JSON, STOPPED, OnProgress, SourceStatus, State, Tool, ToolResult

if TYPE_CHECKING:
    from toolway.tools.mcp.connection import Connection
    from toolway.tools.mcp.session import Session

SDK = "toolway.tools.mcp.connection"
"""Imported at the first connection, because the `mcp` SDK comes with it."""


@dataclass(frozen=True, kw_only=True)
class ReconnectPolicy:
    """Timeouts and back-off of a connection. All times are seconds."""

    connect_timeout: float = 180.0
    """From start to the list of tools: `npx` and `uvx` download on the first run."""
    restart_wait: float = 15.0
    """How long a call waits for a server that is being restarted."""
    first_delay: float = 0.1
    longest_delay: float = 30.0
    steady_after: float = 10.0
    """A life this long, or one in which a call was answered, makes the next restart an immediate one."""
    max_failures: int = 5
    """Lives in a row that came to nothing until the server counts as failed; restarts go on, slowly."""
    debounce: float = 0.05
    """Between the first word of changed tools and the new list: a storm becomes one list."""
    list_pause: float = 0.5
    """At least this long from one list of changed tools to the next."""
    news_wait: float = 0.1
    """How long a result waits for news of a change: that of a tool's first call, or if its last call brought some."""
    relist_wait: float = 5.0
    """How long the result of a call that changed the tools waits for the new list."""


class _RetryError(Exception):
    """The same server is to be tried in another way, at once."""


class _IdleError(Exception):
    """A lazy server was ended because nobody needs it now."""


@dataclass(eq=False)
class RunningCall:
    """A call that is under way; whether no other one ever was beside it."""

    is_alone: bool


class Activity:
    """Which calls are under way, and since when there is none."""

    def __init__(self) -> None:
        self.calls: set[RunningCall] = set()
        self.begun = 0
        """How many calls there ever were."""
        self._last_call: float | None = None
        self._called = anyio.Event()

    @contextlib.contextmanager
    def call(self) -> Iterator[RunningCall]:
        """A call is under way while the block lasts."""
        call = RunningCall(is_alone=not self.calls)
        for other in self.calls:
            other.is_alone = False
        self.calls.add(call)
        self.begun += 1
        self._called.set()
        try:
            yield call
        finally:
            self.calls.discard(call)
            self._last_call = anyio.current_time()

    async def wait_for_call(self) -> None:
        """Wait until there is a call."""
        if not self.calls:
            self._called = anyio.Event()
            await self._called.wait()

    async def wait_until_idle(self, timeout: float) -> None:  # noqa: ASYNC109 - not of this wait
        """Wait until the last call is `timeout` seconds ago; not at all if there was never one."""
        while self.calls or self._last_call is not None:
            left = 0.2 if self.calls else (self._last_call or 0.0) + timeout - anyio.current_time()
            if left <= 0:
                return
            await anyio.sleep(left)


class Supervisor:
    """Owns the connection to one server, and says in `status` how it fares."""

    def __init__(
        self,
        config: McpServerConfig,
        options: ConnectOptions,
        policy: ReconnectPolicy,
        logger: logging.Logger,
    ) -> None:
        self.status = SourceStatus()
        self.activity = Activity()
        self.log = ServerLog(logger, options.on_line, self._stdout_written)
        self._config = config
        self._options = options
        self._policy = policy
        self._session: Session | None = None
        self._lost_by: RpcError | None = None
        self._error_over_http: RpcError | None = None
        self._era: Era = config.era
        self._transport: Transport = _first_transport(config)
        self._stage = "start"
        self._told_error = ""
        self._calls_before = 0
        self._useless_lives = 0
        self._is_useful = self._is_over = False
        self._listed_changes = 0
        self._lists = self._newest_list = 0
        self._is_ahead_of_news = False
        """Whether a list that was asked for without news of a change had one in it, for requests under way."""
        self._changes_tools: dict[str, bool] = {}
        self._catch_ups = LogBudget(rate=1.0, burst=5)
        self._news = anyio.Event()
        self._changed: Callable[[], None] = lambda: None

    # -- for calls

    async def current_session(self) -> Session:
        """The session, once there is one; a server that is being restarted gets a moment.

        Raises:
            SourceError: There is none, and none to be expected.
        """
        lazy = self._config.lazy
        timeout = self._policy.connect_timeout if lazy else self._policy.restart_wait
        waiting = ("starting", "ready", "stopped") if lazy else ("starting", "ready")
        with anyio.move_on_after(timeout):
            while self._session is None and self.status.state in waiting and not self._is_over:
                await self._news.wait()
        if self._session is None:
            if self._is_over:
                raise SourceError(STOPPED, stage="call")
            error = self._told_error if self.status.error else ""
            raise SourceError(error or "it is being started", stage="call")
        return self._session

    def call_succeeded(self) -> None:
        """This life of the server was good for something."""
        self._is_useful = True

    async def catch_up(self, session: Session, tool: str, before: int) -> None:
        """After a call: list the tools if they changed since the last list; there were so many changes `before` it."""
        await self._wait_for_change(session, tool, before)
        if session.changes == self._listed_changes or not self._catch_ups.spend():
            return  # a storm of changes is left to the owner
        with anyio.move_on_after(self._policy.relist_wait):
            try:
                await self._list(importlib.import_module(SDK), session)
            except (RpcError, LostError) as error:
                self.log.warning("the changed tool list cannot be read: %s", error)

    async def _wait_for_change(self, session: Session, tool: str, before: int) -> None:
        """Give the news of a change a moment to arrive, where it comes on another stream than the call's result."""
        if not (session.modern or self._transport == "http") or not _announces_changes(session):
            return
        if self._changes_tools.setdefault(tool, True):
            with anyio.move_on_after(self._policy.news_wait):
                if session.changes == before:
                    await session.changed_again.wait()
        self._changes_tools[tool] = session.changes != before

    async def relist(self, session: Session, tool: Tool) -> Tool:
        """List the tools anew; the one that now has the name of `tool`."""
        await self._list(importlib.import_module(SDK), session)
        return next((new for new in self.status.tools if new.name == tool.name), tool)

    def drop(self, session: Session, reason: RpcError | None) -> None:
        """Have the owner make a new connection."""
        if session is self._session:
            self._session = None
            self._lost_by = reason
        session.closed.set()

    # -- the owner

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the connection alive until cancelled; see `ToolSource.run`."""
        self._changed, self._is_over = changed, False
        if self.status.state == "stopped":  # it was run before
            self._publish(state="starting", error=None, error_at=None, error_stage=None)
        sdk = await anyio.to_thread.run_sync(importlib.import_module, SDK)
        try:
            while True:
                delay = await self._life(sdk)
                if delay is None:
                    await self.activity.wait_for_call()
                else:
                    await anyio.sleep(delay)
        finally:
            self._session, self._is_over = None, True
            self._publish(state="stopped", tools=_unavailable(self.status.tools))

    async def _life(self, sdk: ModuleType) -> float | None:
        """From one start of the server to its end. How many seconds to wait before the next; None: for a call."""
        self._is_useful = False
        self.log.clear()
        self._calls_before = self.activity.begun
        began = anyio.current_time()
        try:
            await self._connected(sdk)
        except Exception as error:  # the border of this task: whatever it is, it ends this life and no other
            self._session = None
            if isinstance(cause := cause_of(error), _RetryError):
                return 0.0
            if isinstance(cause, _IdleError):
                self._publish(state="stopped")
                return None
            if self._stage == "connect" and self._error_over_http is not None and not _wants_login(cause):
                # What came of the second guess tells less.
                cause, self._stage = self._error_over_http, "initialize"
            self._error_over_http = None
            lived = anyio.current_time() - began if self.status.state == "ready" else 0.0
            useless = not self._is_useful and lived < self._policy.steady_after
            self._useless_lives = self._useless_lives + 1 if useless else 0
            self._failed(cause)
        return self._delay()

    async def _connected(self, sdk: ModuleType) -> None:
        """Connect, list, and watch until the connection is lost. Always raises, but when cancelled."""
        deadline = anyio.current_time() + self._policy.connect_timeout
        server = None
        self._lost_by = None
        self._stage = "start" if self._transport == "stdio" else "connect"
        with anyio.CancelScope(deadline=deadline) as starting:
            async with self._connect(sdk) as connection:
                session, server = connection.session, connection.server
                await self._negotiate(session, server)
                self._listed_changes, self._is_ahead_of_news = (
                    session.changes,
                    False,
                )  # news end with a session
                await self._list(sdk, session)
                starting.deadline = math.inf
                self._ready(session)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow, sdk, session)
                    tasks.start_soon(self._follow_context, session)
                    if self._config.lazy:
                        tasks.start_soon(self._end_when_idle)
                    await session.closed.wait()
                    tasks.cancel_scope.cancel()
        if starting.cancelled_caught:
            raise SourceError(f"no answer within {self._policy.connect_timeout:g} s", stage=self._stage)
        raise self._lost_by or LostError(exit_reason(server))

    def _connect(self, sdk: ModuleType) -> contextlib.AbstractAsyncContextManager[Connection]:
        opened: contextlib.AbstractAsyncContextManager[Connection] = sdk.connect(
            self._config, self._transport, self._options, self.log
        )
        return opened

    async def _negotiate(self, session: Session, server: Any) -> None:
        self._stage = "initialize"
        try:
            await session.negotiate(self._era)
        except LostError:
            if server is None:
                raise
            with anyio.move_on_after(1):
                await server.exited.wait()
            if self._era == "auto":
                self._era = "legacy"  # some servers end at a question that they do not know
                raise _RetryError from None
            raise LostError(exit_reason(server)) from None
        except RpcError as error:
            if self._config.type == "auto" and self._transport == "http" and error.status in (400, 404, 405):
                self._transport = "sse"
                self._error_over_http = error
                raise _RetryError from None
            raise

    async def _list(self, sdk: ModuleType, session: Session) -> float | None:
        if self._session is None:
            self._stage = "list tools"
        changes = session.changes
        self._lists = number = self._lists + 1
        seconds: float | None
        tools, warnings, seconds = await sdk.list_tools(session, self._config)
        if number < self._newest_list:
            return seconds  # the answer to a later question came first, and knows more
        is_announced = changes != self._listed_changes
        self._newest_list, self._listed_changes = number, changes
        announced = self.status.announced + is_announced
        if not _same(tools, self.status.tools) or self.status.warnings != warnings:
            tools = tuple(replace(tool, timeout=self._config.timeout) for tool in tools)
            self.status = replace(self.status, tools=tools, warnings=warnings, announced=announced)
            if self.status.state == "ready":
                self._is_ahead_of_news = not is_announced
                self._publish()
        elif is_announced and self._is_ahead_of_news:
            self._is_ahead_of_news = False
            self._publish(announced=announced)
        return seconds

    def _ready(self, session: Session) -> None:
        self._session = session
        self._era = "modern" if session.modern else "legacy"
        self._stage = "running"
        self._publish(
            state="ready",
            tools=_available(self.status.tools),
            protocol=f"MCP {session.version}",
            offers=session.offered,
            error=None,
            error_at=None,
            error_stage=None,
        )

    async def _end_when_idle(self) -> None:
        """Raise when a lazy server has had no call for its time, or was started only to see its tools."""
        await self.activity.wait_until_idle(self._config.idle_timeout)
        self._session = None
        raise _IdleError

    async def _follow(self, sdk: ModuleType, session: Session) -> None:
        """List the tools again whenever they may have changed."""
        announces = _announces_changes(session)
        async with anyio.create_task_group() as tasks:
            if session.modern and session.announced_lists:
                tasks.start_soon(self._listen, session)
            ttl: float | None = None
            listed_at = -math.inf
            while not session.closed.is_set():
                with anyio.move_on_after(None if announces or ttl is None else max(ttl, 60.0)):
                    await session.tools_changed.wait()
                await anyio.sleep(
                    max(self._policy.debounce, listed_at + self._policy.list_pause - anyio.current_time())
                )
                listed_at = anyio.current_time()
                session.tools_changed = anyio.Event()
                if announces and session.changes == self._listed_changes and not session.modern:
                    continue  # a call has listed them meanwhile
                try:
                    ttl = await self._list(sdk, session)
                except (RpcError, LostError) as error:
                    self.log.warning("the changed tool list cannot be read: %s", error)

    async def _follow_context(self, session: Session) -> None:
        """Say that the prompts or the resources changed, a storm of it once."""
        while True:
            await session.context_changed.wait()
            await anyio.sleep(self._policy.debounce)
            session.context_changed = anyio.Event()
            self._publish(context_changes=self.status.context_changes + 1)
            await anyio.sleep(self._policy.list_pause)

    async def _listen(self, session: Session) -> None:
        delay = 1.0
        while not session.closed.is_set():
            try:
                await session.listen()
                delay = 1.0
            except RpcError as error:
                if error.session_lost:
                    return self.drop(session, error)
                if not error.http and error.code == -32601:
                    return None
            except LostError:
                return None
            await anyio.sleep(delay)
            delay = min(delay * 2, 60.0)
            session.tools_changed.set()  # nobody told what changed meanwhile
        return None

    # -- status

    def _failed(self, error: Exception) -> None:
        """Publish what ended this life, and what it means for the tools."""
        if self.status.state != "ready":
            self._era, self._transport = self._config.era, _first_transport(self._config)
        needs_auth = _wants_login(error)
        lost = not self.status.tools or self._useless_lives >= self._policy.max_failures
        message = explain(error, self._config.label, configured=self._options.egress is None)
        message += self._hint(error)
        self._told_error = message
        if self.status.state != "ready" and (words := self.log.stdout_words()):
            message += f"; {words}"
        if words := self.log.last_words():
            message += f".{words}"
        if self._stage != "running" or self.activity.begun == self._calls_before:
            self._told_error = message  # else what it wrote may be about somebody else's call
        if self._stage == "start" and self._config.where:
            message = f"{self._config.where}: {message}"
        stage = error.stage if isinstance(error, SourceError) else self._stage
        if isinstance(error, RpcError) and error.http.get("unsent"):
            stage = "connect"
        state: State = "needs auth" if needs_auth else "failed" if lost else "starting"
        if state == "starting" and message != self.status.error:  # of the others the catalog tells
            self.log.warning("%s: %s", stage, message)
        self._publish(
            state=state,
            tools=_unavailable(self.status.tools) if needs_auth or lost else self.status.tools,
            warnings=self.status.warnings if self.status.tools else (),
            error=message,
            error_at=time.time(),
            error_stage=stage,
        )

    def _stdout_written(self) -> None:
        """A program that is no MCP server may be waited for very long: say at once what it says in place of messages.

        One that begins with a line for people and then is ready has its list's warnings in place of this one.
        """
        if self._session is None and not self.status.tools:
            self._publish(warnings=(self.log.stdout_words(),))

    def _hint(self, error: Exception) -> str:
        """The likeliest mistake of all: a URL that lacks its path."""
        if not isinstance(error, RpcError) or error.status not in (404, 405) or self.status.tools:
            return ""
        url = getattr(self._config, "url", "").partition("?")[0].rstrip("/")
        if not url or url.endswith(("/mcp", "/sse")) or self._options.egress is not None:
            return ""
        return f"; nothing speaks MCP at this URL, and most servers do at {url}/mcp"

    def _delay(self) -> float:
        if self.status.state == "needs auth":
            return self._policy.longest_delay
        delay = self._policy.first_delay * 2.0 ** min(self._useless_lives, 20)
        return min(delay, self._policy.longest_delay) * random.uniform(0.8, 1.2)

    def _publish(self, **changes: Any) -> None:
        self.status = replace(self.status, **changes)
        self._news.set()
        self._news = anyio.Event()
        self._changed()


def _wants_login(error: Exception) -> bool:
    return isinstance(error, RpcError) and error.needs_auth


def _first_transport(config: McpServerConfig) -> Transport:
    if config.type == "stdio":
        return "stdio"
    by_name = config.type == "auto" and config.url.partition("?")[0].rstrip("/").endswith("/sse")
    return "sse" if config.type == "sse" or by_name else "http"


def _announces_changes(session: Session) -> bool:
    return "tools" in session.announced_lists


def _same(new: tuple[Tool, ...], old: tuple[Tool, ...]) -> bool:
    return list(map(_definition, new)) == list(map(_definition, old))


def _definition(tool: Tool) -> tuple[object, ...]:
    return (tool.name, tool.description, tool.parameters, tool.annotations, tool.extra, tool.handle)


def _available(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    return tuple(tool if tool.available else replace(tool, available=True) for tool in tools)


def _unavailable(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    return tuple(replace(tool, available=False) for tool in tools)


HEADER_MISMATCH = -32020

LISTS = {
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}
"""Requests that are answered in pages, and the member that holds the items."""


class MCPSource:
    """See `types.ToolSource`. The connection belongs to a `Supervisor`."""

    kind = "mcp"

    def __init__(
        self,
        config: McpServerConfig,
        options: ConnectOptions | None = None,
        policy: ReconnectPolicy | None = None,
    ) -> None:
        self.label = config.label
        self.config = config
        self._options = options or ConnectOptions()
        logger = self._options.logger or logging.getLogger(f"toolway.server.{config.label}")
        self._supervisor = Supervisor(config, self._options, policy or ReconnectPolicy(), logger)

    @property
    def status(self) -> SourceStatus:
        """The newest status."""
        return self._supervisor.status

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the connection alive until cancelled; see `ToolSource.run`."""
        await self._supervisor.run(changed)

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one tool; see `ToolSource.call`. What cannot have reached the server is sent once more."""
        log = self._supervisor.log
        before = log.written
        try:
            with self._supervisor.activity.call() as running:
                return await self._call(tool, arguments, on_progress)
        except RpcError as error:
            rpc_error = {"code": error.code, "message": error.message, "data": error.data}
            words = explain(error, self.label, configured=self._options.egress is None)
            return replace(_error(words), rpc_error=rpc_error)
        except LostError as lost:
            ended = f"The server {self.label!r} ended during the call ({lost}) and is being restarted."
            unknown = "Whether the call had an effect is unknown."
            # What was written before, or for a call beside this one, may be about somebody else.
            words = log.last_words(before) if running.is_alone else ""
            return _error(f"{ended} {unknown}{words}")
        except SourceError as error:
            return _error(f"The server {self.label!r} is not available: {error}")

    async def request(self, method: str, params: JSON) -> JSON:
        """Ask about prompts or resources; see `ContextSource.request`."""
        supervisor = self._supervisor
        try:
            with supervisor.activity.call():
                session = await supervisor.current_session()
                if (key := LISTS.get(method)) is not None:
                    return {key: (await session.list_all(method, key))[0]}
                return await session.interact(method, params)
        except RpcError as error:
            if error.session_lost or error.status == 401:
                supervisor.drop(session, error)
            explanation = explain(error, self.label, configured=self._options.egress is None)
            code = error.code if not error.http else None
            raise SourceError(error.message if code else explanation, stage="call", rpc_code=code) from None
        except LostError as lost:
            raise SourceError(f"the server {self.label!r} ended meanwhile ({lost})", stage="call") from None

    async def _call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        supervisor = self._supervisor
        for last in (False, True):
            session = await supervisor.current_session()
            changes = session.changes
            try:
                result = await session.call(tool.handle, arguments, on_progress)
            except RpcError as error:
                if error.session_lost or error.status == 401:
                    supervisor.drop(session, error)
                elif error.code == HEADER_MISMATCH and not last:
                    tool = await supervisor.relist(session, tool)
                    continue
                if last or not error.unsent:
                    raise
            except LostError as lost:
                if last or lost.sent:
                    raise
                supervisor.drop(session, None)
            else:
                supervisor.call_succeeded()
                await supervisor.catch_up(session, tool.name, changes)
                return result
        raise AssertionError("unreachable")


def _error(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True)
