"""One MCP server as a ToolSource: started, watched and restarted by the one task that owns the connection."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio

from toolway.errors import SourceError
from toolway.net.ssrf import SsrfGuard
from toolway.settings.mcp_server import ServerConfig
from toolway.tools.mcp.errors import LostError, RefusedError
from toolway.tools.mcp.pace import Pace
from toolway.tools.mcp.reasons import cause_of, ended, explain
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult

if TYPE_CHECKING:
    from toolway.tools.mcp.connection import Connection, Transport
    from toolway.tools.mcp.session import Era, Sampler, Session

HEADER_MISMATCH = -32020
STDERR_LINES = 20
_LINE = 500
"""Characters of one line of standard error that are kept."""


class _RetryError(Exception):
    """The same server is to be tried in another way, at once."""


class _IdleError(Exception):
    """A lazy server was ended because nobody needs it now."""


class MCPSource:
    """See `types.ToolSource`. `sampler` answers `sampling/createMessage`; `auth` makes an httpx2.Auth, or None.

    With `egress` it is a server that no operator configured, and reached in that way only.
    """

    kind = "mcp"

    def __init__(
        self,
        config: ServerConfig,
        *,
        pace: Pace | None = None,
        max_result_bytes: int = 32 * 2**20,
        sampler: Sampler | None = None,
        auth: Callable[[], Any] | None = None,
        egress: SsrfGuard | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.label = config.label
        self.config = config
        self._pace = pace or Pace()
        self._limit = max_result_bytes
        self._sampler = sampler
        self._auth = auth
        self._egress = egress
        self._status = SourceStatus()
        self._news = anyio.Event()
        self._changed: Callable[[], None] = lambda: None
        self._logger = logger or logging.getLogger(f"toolway.server.{config.label}")
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._session: Session | None = None
        self._lost_by: RefusedError | None = None
        self._era: Era = config.era
        self._transport: Transport = _first_transport(config)
        self._stage = "start"
        self._useless_lives = 0
        self._useful = False
        self._calls = 0
        self._last_call: float | None = None
        self._wanted = anyio.Event()

    @property
    def status(self) -> SourceStatus:
        """The newest status."""
        return self._status

    # -- the owner

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the connection alive until cancelled; see `ToolSource.run`."""
        self._changed = changed
        sdk = await anyio.to_thread.run_sync(importlib.import_module, "toolway.tools.mcp.connection")
        try:
            while True:
                delay = await self._life(sdk)
                if delay is None:
                    await self._sleep_until_wanted()
                else:
                    await anyio.sleep(delay)
        finally:
            self._publish(state="stopped", tools=_unavailable(self._status.tools))

    async def _sleep_until_wanted(self) -> None:
        if not self._calls:
            self._wanted = anyio.Event()
            await self._wanted.wait()

    async def _life(self, sdk: ModuleType) -> float | None:
        """From one start of the server to its end. How many seconds to wait before the next; None: for a call."""
        self._useful = False
        self._stderr.clear()
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
            lived = anyio.current_time() - began if self._status.state == "ready" else 0.0
            useless = not self._useful and lived < self._pace.steady_after
            self._useless_lives = self._useless_lives + 1 if useless else 0
            self._failed(cause)
        return self._delay()

    async def _connected(self, sdk: ModuleType) -> None:
        """Connect, list, and watch until the connection is lost. Always raises, but when cancelled."""
        patience = anyio.current_time() + self._pace.connect_timeout
        server = None
        self._stage = "start" if self._transport == "stdio" else "connect"
        with anyio.CancelScope(deadline=patience) as starting:
            async with self._connect(sdk) as connection:
                session, server = connection.session, connection.server
                await self._negotiate(session, server)
                await self._list(sdk, session)
                starting.deadline = math.inf
                self._ready(session)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._follow, sdk, session)
                    if self.config.lazy:
                        tasks.start_soon(self._end_when_idle)
                    await session.closed.wait()
                    tasks.cancel_scope.cancel()
        if starting.cancelled_caught:
            raise SourceError(f"no answer within {self._pace.connect_timeout:g} s", stage=self._stage)
        raise self._lost_by or LostError(ended(server))

    def _connect(self, sdk: ModuleType) -> contextlib.AbstractAsyncContextManager[Connection]:
        self._lost_by = None
        opened: contextlib.AbstractAsyncContextManager[Connection] = sdk.connect(
            self.config,
            self._transport,
            limit=self._limit,
            logger=self._logger,
            on_stderr=self._heard,
            sampler=self._sampler,
            auth=self._auth() if self._auth else None,
            egress=self._egress,
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
            raise LostError(ended(server)) from None
        except RefusedError as refusal:
            if self.config.type == "auto" and self._transport == "http" and refusal.status in (400, 404, 405):
                self._transport = "sse"
                raise _RetryError from None
            raise

    async def _list(self, sdk: ModuleType, session: Session) -> float | None:
        self._stage = "list tools"
        tools, warnings, ttl = await sdk.list_tools(session, self.config)
        if not _same(tools, self._status.tools) or self._status.warnings != warnings:
            tools = tuple(replace(tool, timeout=self.config.timeout) for tool in tools)
            self._status = replace(self._status, tools=tools, warnings=warnings)
            if self._status.state == "ready":
                self._publish()
        seconds: float | None = ttl
        return seconds

    def _ready(self, session: Session) -> None:
        self._session = session
        self._era = "modern" if session.modern else "legacy"
        self._stage = "running"
        self._publish(
            state="ready",
            tools=_available(self._status.tools),
            protocol=f"MCP {session.version}",
            error=None,
            error_at=None,
            error_stage=None,
        )

    async def _end_when_idle(self) -> None:
        """Raise when a lazy server has had no call for its time, or was started only to see its tools."""
        while True:
            left = self._until_idle()
            if left <= 0:
                break
            await anyio.sleep(left)
        self._session = None
        raise _IdleError

    def _until_idle(self) -> float:
        if self._calls:
            return 0.2
        if self._last_call is None:
            return 0.0
        return self._last_call + self.config.idle_timeout - anyio.current_time()

    async def _follow(self, sdk: ModuleType, session: Session) -> None:
        """List the tools again whenever they may have changed."""
        announces = _announces_changes(session)
        async with anyio.create_task_group() as tasks:
            if session.modern and announces:
                tasks.start_soon(self._listen, session)
            ttl: float | None = None
            while not session.closed.is_set():
                with anyio.move_on_after(None if announces or ttl is None else max(ttl, 60.0)):
                    await session.tools_changed.wait()
                await anyio.sleep(self._pace.settle)
                session.tools_changed = anyio.Event()
                try:
                    ttl = await self._list(sdk, session)
                except (RefusedError, LostError) as error:
                    self._logger.warning("the changed tool list cannot be read: %s", error)

    async def _listen(self, session: Session) -> None:
        delay = 1.0
        while not session.closed.is_set():
            try:
                await session.listen()
                delay = 1.0
            except RefusedError as refusal:
                if refusal.session_lost:
                    return self._drop(session, refusal)
                if not refusal.http and refusal.code == -32601:
                    return None
            except LostError:
                return None
            await anyio.sleep(delay)
            delay = min(delay * 2, 60.0)
            session.tools_changed.set()  # nobody told what changed meanwhile
        return None

    # -- calls

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one tool; see `ToolSource.call`. What cannot have reached the server is sent once more."""
        self._calls += 1
        self._wanted.set()
        try:
            return await self._call(tool, arguments, on_progress)
        except RefusedError as refusal:
            return _error(explain(refusal, self.label, configured=self._egress is None))
        except LostError as lost:
            ended = f"The server {self.label!r} ended during the call ({lost}) and is being restarted."
            return _error(f"{ended} Whether the call had an effect is unknown.{self._last_words()}")
        except SourceError as error:
            return _error(f"The server {self.label!r} is not available: {error}")
        finally:
            self._calls -= 1
            self._last_call = anyio.current_time()

    async def _call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        for last in (False, True):
            session = await self._current()
            try:
                result = await session.call(tool.handle, arguments, on_progress)
            except RefusedError as refusal:
                if refusal.session_lost or refusal.status == 401:
                    self._drop(session, refusal)
                elif refusal.code == HEADER_MISMATCH and not last:
                    tool = await self._relisted(session, tool)
                    continue
                if last or not refusal.unsent:
                    raise
            except LostError as lost:
                if last or lost.sent:
                    raise
                self._drop(session, None)
            else:
                self._useful = True
                return result
        raise AssertionError("unreachable")

    async def _current(self) -> Session:
        """The session, once there is one; a server that is being restarted gets a moment."""
        patience = self._pace.connect_timeout if self.config.lazy else self._pace.restart_wait
        waiting = ("starting", "ready", "stopped") if self.config.lazy else ("starting", "ready")
        with anyio.move_on_after(patience):
            while self._session is None and self._status.state in waiting:
                await self._news.wait()
        if self._session is None:
            raise SourceError(self._status.error or "it is being started", stage="call")
        return self._session

    async def _relisted(self, session: Session, tool: Tool) -> Tool:
        sdk = importlib.import_module("toolway.tools.mcp.connection")
        await self._list(sdk, session)
        return next((new for new in self._status.tools if new.name == tool.name), tool)

    def _drop(self, session: Session, reason: RefusedError | None) -> None:
        """Have the owner make a new connection."""
        if session is self._session:
            self._session = None
            self._lost_by = reason
        session.closed.set()

    # -- status

    def _failed(self, error: Exception) -> None:
        """Publish what ended this life, and what it means for the tools."""
        if self._status.state != "ready":
            self._era, self._transport = self.config.era, _first_transport(self.config)
        needs_auth = isinstance(error, RefusedError) and error.needs_auth
        lost = not self._status.tools or self._useless_lives >= self._pace.patience
        words = self._last_words()
        message = explain(error, self.label, configured=self._egress is None) + (f".{words}" if words else "")
        if self._stage == "start" and self.config.where:
            message = f"{self.config.where}: {message}"
        self._logger.warning("%s: %s", self._stage, message)
        self._publish(
            state="needs auth" if needs_auth else "failed" if lost else "starting",
            tools=_unavailable(self._status.tools) if needs_auth or lost else self._status.tools,
            error=message,
            error_at=time.time(),
            error_stage=error.stage if isinstance(error, SourceError) else self._stage,
        )

    def _delay(self) -> float:
        if self._status.state == "needs auth":
            return self._pace.longest_delay
        delay = self._pace.first_delay * 2.0 ** min(self._useless_lives, 20)
        return min(delay, self._pace.longest_delay) * random.uniform(0.8, 1.2)

    def _publish(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)
        self._news.set()
        self._news = anyio.Event()
        self._changed()

    def _heard(self, line: bytes) -> None:
        """One line of the server's standard error."""
        text = "".join(c if c.isprintable() else " " for c in line[:_LINE].decode(errors="replace")).rstrip()
        if text:
            self._stderr.append(text)
            self._logger.info("%s", text)

    def _last_words(self) -> str:
        return " It last wrote: " + " | ".join(list(self._stderr)[-5:]) if self._stderr else ""


def _first_transport(config: ServerConfig) -> Transport:
    if config.type == "stdio":
        return "stdio"
    by_name = config.type == "auto" and config.url.partition("?")[0].rstrip("/").endswith("/sse")
    return "sse" if config.type == "sse" or by_name else "http"


def _announces_changes(session: Session) -> bool:
    tools = session.capabilities.get("tools")
    return isinstance(tools, dict) and tools.get("listChanged") is True


def _same(new: tuple[Tool, ...], old: tuple[Tool, ...]) -> bool:
    return [(t.name, t.description, t.parameters, t.handle) for t in new] == [
        (t.name, t.description, t.parameters, t.handle) for t in old
    ]


def _available(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    return tuple(tool if tool.available else replace(tool, available=True) for tool in tools)


def _unavailable(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    return tuple(replace(tool, available=False) for tool in tools)


def _error(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True)
