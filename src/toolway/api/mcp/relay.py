"""What a call's server tells and asks while it runs, relayed to the client that waits for it.

Clients with a session (before 2026-07-28) are asked on the stream of their request. A stateless one is answered with
the question (`input_required`), and sends its request again with what it says to it: the call waits for that meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, get_args

import anyio
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, LOG_LEVEL_META_KEY, LoggingLevel
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from toolway.tools.mcp.sdk_internals import connection_of, outbound_of
from toolway.types import JSON, CallClient, ClientRequestFailed, OnProgress, Progress, call_client

BACKLOG = 64
"""Reports that wait for a client that reads slowly; what comes beyond is left out."""

QUESTION_SECONDS = 600.0
"""How long a question waits for its answer."""

MAX_QUESTIONS = 1_000
"""Questions that wait at a time."""

LOG_LEVEL = "toolway.log_level"
"""Where the level that a client set stands in the state of its connection."""

_LEVELS: tuple[str, ...] = get_args(LoggingLevel)

Context = ServerRequestContext[Any, Any]
R = TypeVar("R")
Run = Callable[[OnProgress | None], Awaitable[R]]


def is_modern(ctx: Context) -> bool:
    """Whether the client speaks 2026-07-28 or newer."""
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS


class Outbox:
    """Reports of one call on their way to its client, which may take them in several requests."""

    def __init__(self, ctx: Context) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Progress | JSON | None](BACKLOG + 1)
        self._is_closed = False
        self.wants_progress = _wants_progress(ctx)
        self.log_level = _log_level(ctx)

    def report(self, progress: Progress) -> None:
        """Progress of the call."""
        if self.wants_progress:
            self._put(progress)

    def log(self, params: JSON) -> None:
        """A line of its server's log."""
        level = params.get("level")
        if self.log_level and level in _LEVELS and _LEVELS.index(level) >= _LEVELS.index(self.log_level):
            self._put(params)

    def _put(self, item: Progress | JSON) -> None:
        if not self._is_closed and self._send.statistics().current_buffer_used < BACKLOG:
            self._send.send_nowait(item)

    @asynccontextmanager
    async def emptied(self, ctx: Context) -> AsyncIterator[None]:
        """Hand what comes to the client of this request while the block lasts, and all of it before it ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._empty, ctx)
            yield
            self._send.send_nowait(None)

    async def _empty(self, ctx: Context) -> None:
        while (item := await self._receive.receive()) is not None:
            await self._deliver(ctx, item)

    async def _deliver(self, ctx: Context, item: Progress | JSON) -> None:
        if isinstance(item, Progress):
            await ctx.session.report_progress(item.progress, item.total, item.message)
        else:
            await outbound_of(ctx.session).notify("notifications/message", item)

    def close(self) -> None:
        """Nobody takes any more."""
        self._is_closed = True
        self._send.close()
        self._receive.close()


def _wants_progress(ctx: Context) -> bool:
    return ctx.meta is not None and ctx.meta.get("progress_token") is not None


def _log_level(ctx: Context) -> str | None:
    """The least severe level that the client of a request hears."""
    if is_modern(ctx):
        level = (ctx.meta or {}).get(LOG_LEVEL_META_KEY)
        return level if level in _LEVELS else None
    level = connection_of(ctx.session).state.get(LOG_LEVEL, "debug")
    return str(level)


def _offers(ctx: Context) -> JSON:
    """What the client does for the server of a call."""
    capabilities = ctx.session.client_capabilities
    if capabilities is None or not (is_modern(ctx) or ctx.session.can_send_request):
        return {}
    dumped = capabilities.model_dump(by_alias=True, mode="json", exclude_none=True)
    return {name: dumped[name] for name in ("elicitation", "sampling", "roots") if name in dumped}


async def run_with_session(ctx: Context, run: Run[R]) -> R:
    """Run a call for a client that can be asked while it waits."""
    outbox = Outbox(ctx)

    async def ask(requests: JSON) -> JSON:
        answers: JSON = {}
        for key, request in requests.items():
            try:
                answers[key] = await outbound_of(ctx.session).send_raw_request(
                    request["method"], request.get("params")
                )
            except MCPError as error:
                raise ClientRequestFailed(
                    f"the client refused {request['method']}: {error.message}"
                ) from None
        return answers

    client = CallClient(offers=_offers(ctx), ask=ask, log=outbox.log, log_level=outbox.log_level)
    token = call_client.set(client)
    try:
        async with outbox.emptied(ctx):
            try:
                return await run(outbox.report if outbox.wants_progress else None)
            except MCPError as error:  # a task group would make a group of it
                failure = error
    finally:
        call_client.reset(token)
        outbox.close()
    raise failure


class _StatelessCall:
    """A call that outlives the request that began it while its client thinks about a question."""

    def __init__(self, ctx: Context, owner: object) -> None:
        self.owner = owner
        self.outbox = Outbox(ctx)
        self.questions: JSON | None = None
        self.result: Any = None
        self.error: MCPError | None = None
        self.is_done = False
        self._scope = anyio.CancelScope()
        self._offers = _offers(ctx)
        self._news = anyio.Event()
        self._answer = anyio.Event()
        self._answers: JSON = {}
        self._one_by_one = anyio.Lock()

    async def run(self, run: Run[Any]) -> None:
        """Run to the result, or the error of the protocol in its place."""
        client = CallClient(
            offers=self._offers, ask=self._ask, log=self.outbox.log, log_level=self.outbox.log_level
        )
        call_client.set(client)  # of this task alone
        with self._scope:
            try:
                self.result = await run(self.outbox.report if self.outbox.wants_progress else None)
            except MCPError as error:
                self.error = error
        self.is_done = True
        self._news.set()

    async def _ask(self, requests: JSON) -> JSON:
        async with self._one_by_one:
            self.questions, self._answer = requests, anyio.Event()
            self._news.set()
            try:
                with anyio.fail_after(QUESTION_SECONDS):
                    await self._answer.wait()
            except TimeoutError:
                raise ClientRequestFailed("the client said nothing to what it was asked in time") from None
            finally:
                self.questions = None
            return self._answers

    async def news(self) -> None:
        """Wait for a question or the result."""
        while not self.is_done and self.questions is None:
            self._news = anyio.Event()
            await self._news.wait()

    def end(self) -> None:
        """Cancel it: its client has left."""
        self._scope.cancel()
        self.outbox.close()

    def answer(self, answers: Any) -> None:
        """What the client says to the questions."""
        self.questions, self._answers = None, answers if isinstance(answers, dict) else {}
        self._answer.set()


class StatelessCalls:
    """Runs calls for clients without a session, while `running`, and keeps those that wait for an answer."""

    def __init__(self) -> None:
        self._waiting: dict[str, _StatelessCall] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run calls while the block lasts."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            yield
            tasks.cancel_scope.cancel()

    async def run(self, ctx: Context, owner: object, run: Run[R]) -> R | JSON:
        """The result of a call, or the questions to its client as an `input_required` result.

        A request that comes back with an answer goes on where it was. `owner` tells whose it is, and which call.
        """
        params = ctx.params or {}
        state = params.get("requestState")
        if state is None and not (_offers(ctx) or _wants_progress(ctx) or _log_level(ctx)):
            return await run(None)
        call = self._begin(ctx, owner, run) if state is None else self._resume(state, owner, params)
        try:
            async with call.outbox.emptied(ctx):
                await call.news()
        except BaseException:
            call.end()
            raise
        if call.is_done:
            call.outbox.close()
            if call.error is not None:
                raise call.error
            result: R = call.result
            return result
        return self._put_aside(call)

    def _begin(self, ctx: Context, owner: object, run: Run[Any]) -> _StatelessCall:
        call = _StatelessCall(ctx, owner)
        if self._tasks is None:
            raise RuntimeError("the server is not running")
        self._tasks.start_soon(self._run, call, run)
        return call

    async def _run(self, call: _StatelessCall, run: Run[Any]) -> None:
        try:
            await call.run(run)
        finally:
            # Nobody came back with an answer, or the server ends.
            for token in [token for token, waiting in self._waiting.items() if waiting is call]:
                del self._waiting[token]
                call.outbox.close()

    def _resume(self, state: Any, owner: object, params: Any) -> _StatelessCall:
        call = self._waiting.get(state) if isinstance(state, str) else None
        if call is None or call.owner != owner:
            raise MCPError(
                INVALID_PARAMS, "The requestState is not known here, or too old: call again without it."
            )
        del self._waiting[state]
        call.answer(params.get("inputResponses"))
        return call

    def _put_aside(self, call: _StatelessCall) -> JSON:
        if len(self._waiting) >= MAX_QUESTIONS:
            call.end()
            raise MCPError(INVALID_PARAMS, "Too many questions wait for their answers; call again later.")
        token = secrets.token_urlsafe(24)
        self._waiting[token] = call
        return {"resultType": "input_required", "inputRequests": call.questions, "requestState": token}
