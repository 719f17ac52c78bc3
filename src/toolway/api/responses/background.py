"""Background responses, and the log of their events, from which any process can stream them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import Receive, Scope, Send

from toolway.api.responses.creation import STORE_TIMEOUT, ResponseCreator
from toolway.api.responses.items.response_object import Event
from toolway.api.responses.request_reader import ResponseJob
from toolway.api.responses.stored_responses import StoredResponse, StoredResponses
from toolway.errors import InvalidRequest, NotFound, StoreError, ToolwayError, TooMany, to_public_error
from toolway.server.asgi import EventStreamResponse, send_json, stream_events
from toolway.server.caller import caller_id
from toolway.stores import EntryKind, Store, share_of
from toolway.types import JSON
from toolway.upstream.model_call import streamed_model_call
from toolway.wire import sse
from toolway.wire.lenient_json import dumps
from toolway.wire.sse import STREAM_END

RETRY_SECONDS = 5
"""When to ask again for a place that is taken."""


class EventLog:
    """The events of one response in this process, with whom they came first."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = False
        self._news = anyio.Event()

    async def deliver(self, events: list[Event]) -> None:
        """More events."""
        self.events += events
        self._wake()

    def end(self) -> None:
        """There will be no more."""
        self.over = True
        self._wake()

    async def read(self, begin: int) -> AsyncIterator[Event]:
        """The events from the number `begin` on, as they come, to the last."""
        while True:
            news = self._news
            for event in self.events[begin:]:
                begin += 1
                yield event
            if self.over and begin >= len(self.events):
                return
            if begin >= len(self.events):
                await news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()


ResponsePlace = tuple[str, str]
"""Whose response, and which."""


@dataclass(frozen=True, kw_only=True)
class _EventBatch:
    """A part of the events of a response."""

    events: list[tuple[str, str]]
    over: bool


EVENTS = EntryKind("events", _EventBatch)
LEASE: EntryKind[JSON] = EntryKind("lease", dict[str, Any])
"""Says that a process makes the response, as long as it is there."""
CANCEL: EntryKind[JSON] = EntryKind("cancel", dict[str, Any])
"""Tells that process to end it."""


class StoredEvents:
    """The events of responses in a store, in parts: any process can deliver them."""

    def __init__(self, store: Store, *, ttl: float, poll: float) -> None:
        self._store = store
        self._ttl = ttl
        self._poll = poll

    async def keep(self, place: ResponsePlace, part: int, events: list[Event], *, over: bool) -> None:
        """Keep a part; the first is 0, the last is `over`."""
        kept = _EventBatch(events=[(kind, body.decode()) for kind, body in events], over=over)
        await self._store.put(EVENTS.key(*place, str(part)), kept, ttl=self._ttl)

    async def forget(self, place: ResponsePlace) -> None:
        """Delete all parts. Raises StoreError."""
        part = 0
        while await self._store.delete(EVENTS.key(*place, str(part))):
            part += 1

    async def read(
        self,
        place: ResponsePlace,
        begin: int,
        alive: Callable[[], Awaitable[bool]],
        last: Callable[[int], Awaitable[Event | None]],
    ) -> AsyncIterator[Event]:
        """The events from the number `begin` on; waits for more while their maker is `alive`.

        When that is gone and there is no last part, `last(number)` is the last event. A store that is away is waited
        for, a while; then an error is the last event.
        """
        part = number = 0
        deadline = anyio.current_time() + STORE_TIMEOUT
        while True:
            try:
                kept = await self._store.get(EVENTS.key(*place, str(part)), certain=True)
                is_over = kept is None and not await alive()
                event = await last(max(number, begin)) if is_over else None
            except StoreError as error:
                if anyio.current_time() > deadline:
                    yield _error_event(error, max(number, begin))
                    return
                await anyio.sleep(self._poll)
                continue
            deadline = anyio.current_time() + STORE_TIMEOUT
            if kept is None:
                if not is_over:
                    await anyio.sleep(self._poll)
                    continue
                # The maker may have told its own client more than it could keep.
                if event:
                    yield event
                return
            for kind, text in kept.events:
                if number >= begin:
                    yield kind, text.encode()
                number += 1
            if kept.over:
                return
            part += 1


def _error_event(error: ToolwayError, number: int) -> Event:
    fields = {"code": "server_error", "message": error.message, "param": None, "sequence_number": number}
    return "error", dumps({"type": "error", **fields})


def encoded(event: Event) -> bytes:
    """An event as it stands in a stream."""
    kind, body = event
    return b"event: " + kind.encode() + b"\n" + sse.encode(body)


log = logging.getLogger("toolway.responses")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often those who make responses and those who wait for them look at each other; all in seconds.

    `lease`: a process that did not say for so long that it makes a response counts as gone. `beat`: between two times
    of keeping new events, and of looking whether somebody cancelled. `poll`: between two looks at what another
    process wrote. `ending`: for keeping how a response ended when the server is stopped.
    """

    lease: float = 15.0
    beat: float = 0.5
    poll: float = 0.25
    ending: float = 3.0


DEFAULT_PACE = Pace()

ONGOING = frozenset({"queued", "in_progress"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A response that this process makes."""

    job: ResponseJob
    log: EventLog = field(default_factory=EventLog)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def place(self) -> ResponsePlace:
        """Whose response it is, and which."""
        return self.job.owner, self.job.identity


class Background:
    """Makes responses in tasks of its own. What they are, and all of their events, is in the store.

    A response is never left in progress: when the server stops it is kept as failed, and when a process is gone
    without a word, whoever looks at its response next keeps that.
    """

    def __init__(
        self,
        records: StoredResponses,
        store: Store,
        *,
        ttl: float,
        most: int,
        keep_alive: float,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._records = records
        self._store = store
        self._kept = StoredEvents(store, ttl=ttl, poll=pace.poll)
        self._most = most
        self._keep_alive = keep_alive
        self._pace = pace
        self._begun: Counter[str] = Counter()
        """How many responses are made for each owner."""
        self._runs: dict[str, Run] = {}
        self._group: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Background]:
        """Make responses while the block lasts."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield self
            finally:
                self._group = None
                group.cancel_scope.cancel()

    async def create(
        self, creator: ResponseCreator, scope: Scope, receive: Receive, send: Send, body: JSON
    ) -> None:
        """Begin a response and say so, or stream its events. Raises InvalidRequest, TooMany, StoreError."""
        if self._group is None:
            raise ToolwayError("The server is being stopped; try again.")
        owner = share_of(caller_id(scope))
        self._see_room(owner)
        self._begun[owner] += 1
        run: Run = await self._group.start(self._work, creator, scope, body, owner)
        if run.job.request.stream:
            await self.stream(scope, receive, send, run.log.read(0))
        else:
            await send_json(send, 200, run.job.writer.resource)

    def _see_room(self, owner: str) -> None:
        """Raises TooMany. Who has some may have up to four times the number of places that would still be free, so
        that there is always room for somebody else.
        """
        free = self._most - self._begun.total()
        if free <= 0:
            raise TooMany(
                f"{self._most} responses are made in the background already; try again later.",
                seconds=RETRY_SECONDS,
            )
        if self._begun[owner] >= 4 * free:
            raise TooMany(
                f"{self._begun[owner]} responses are made for you in the background already, and others"
                " need room too; try again later.",
                seconds=RETRY_SECONDS,
            )

    async def stream(self, scope: Scope, receive: Receive, send: Send, events: AsyncIterator[Event]) -> None:
        """Send events as they come. The client may leave; the response goes on."""

        async def produce(stream: EventStreamResponse) -> None:
            await stream.start([])
            async for event in events:
                await stream.write(encoded(event))
            await stream.end(STREAM_END)

        await stream_events(scope, receive, send, produce, keep_alive=self._keep_alive)

    async def current(self, owner: str, identity: str) -> JSON:
        """The response as it is now. Raises NotFound, StoreError."""
        if run := self._own(owner, identity):
            return run.job.writer.resource
        record = await self._records.get(owner, identity)
        if record.resource["status"] in ONGOING and not await self._is_alive(owner, identity):
            record = await self._mark_failed(owner, identity, record)
        return record.resource

    async def events(self, owner: str, identity: str, begin: int) -> AsyncIterator[Event]:
        """The events of a response from the number `begin` on. Raises NotFound, InvalidRequest."""
        resource = await self.current(owner, identity)
        if not resource["background"]:
            raise InvalidRequest(
                "Only a response that was created with background=true can be streamed again."
            )
        if run := self._own(owner, identity):
            return run.log.read(begin)

        async def last(number: int) -> Event | None:
            return await self._last_event(owner, identity, number)

        place = owner, identity
        return self._kept.read(place, begin, lambda: self._is_alive(*place), last)

    async def cancel(self, owner: str, identity: str) -> JSON:
        """End a response wherever it is made; the response as it is then. Raises NotFound, InvalidRequest."""
        resource = await self.current(owner, identity)
        if not resource["background"]:
            raise InvalidRequest("Only a response that was created with background=true can be cancelled.")
        if run := self._own(owner, identity):
            run.scope.cancel()
            await run.ended.wait()
            return run.job.writer.resource
        if resource["status"] in ONGOING:
            await self._store.put(CANCEL.key(owner, identity), {}, ttl=self._pace.lease, certain=True)
            while resource["status"] in ONGOING:
                await anyio.sleep(self._pace.poll)
                resource = await self.current(owner, identity)
        return resource

    async def delete(self, owner: str, identity: str) -> None:
        """Forget a response and its events; one that is being made is cancelled. Raises NotFound, StoreError."""
        resource = await self.current(owner, identity)
        if resource["background"]:
            await self.cancel(owner, identity)
        await self._records.delete(owner, identity)
        if resource["background"]:
            await self._kept.forget((owner, identity))

    def _own(self, owner: str, identity: str) -> Run | None:
        run = self._runs.get(identity)
        return run if run and run.job.owner == owner else None

    async def _work(
        self, creator: ResponseCreator, scope: Scope, body: JSON, owner: str, *, task_status: TaskStatus[Run]
    ) -> None:
        try:
            async with creator.reader.open(scope, body) as job:
                run = Run(job=job)
                await self._say_alive(run)  # what cannot be kept is not begun
                await creator.claim(job)
                self._runs[job.identity] = run
                try:
                    await run.log.deliver(job.writer.queued())
                    await self._records.save(job.owner, job.record())
                    task_status.started(run)
                    await self._run_guarded(creator, run)
                finally:
                    run.log.end()
                    run.ended.set()
                    del self._runs[job.identity]
        finally:
            self._begun -= Counter([owner])

    async def _run_guarded(self, creator: ResponseCreator, run: Run) -> None:
        try:
            await self._make(creator, run)
        except Exception as raised:  # the border: nobody waits for this task
            to_public_error(raised)

    async def _make(self, creator: ResponseCreator, run: Run) -> None:
        job = run.job
        keeper, is_made = _EventFlusher(run, self._kept), anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._heartbeat, run, keeper, is_made)
                with run.scope:
                    await self._tell_all(creator, run)
                is_made.set()  # a task that is cancelled would keep all of this until the garbage collector comes
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(self._pace.ending, shield=True):
                stopped = ToolwayError("The server was stopped before the response was complete.")
                await run.log.deliver(await creator.fail(job, job.conversation.failed(stopped)))
                await keeper.finish()
            raise
        if run.scope.cancelled_caught:
            job.writer.cancelled()
            with suppress(StoreError):
                await creator.keep(job, job.record())
        await keeper.finish()

    async def _tell_all(self, creator: ResponseCreator, run: Run) -> None:
        job = run.job

        async def deliver(events: list[Event]) -> None:
            await run.log.deliver(events)
            if events and events[-1][0] == "response.in_progress":
                with suppress(StoreError):
                    await self._records.save(job.owner, job.record())

        try:
            await creator.make(job, streamed_model_call, deliver)
        except Exception as raised:
            await run.log.deliver(await creator.fail(job, job.conversation.failed(raised)))

    async def _heartbeat(self, run: Run, keeper: _EventFlusher, is_made: anyio.Event) -> None:
        """Say that the response is being made, keep its events, see whether somebody cancelled; until it is made."""
        last_sign = anyio.current_time()
        while True:
            with anyio.move_on_after(self._pace.beat):
                await is_made.wait()
                return
            if anyio.current_time() - last_sign > self._pace.lease / 3:
                with suppress(StoreError):
                    await self._say_alive(run)
                    last_sign = anyio.current_time()
            await keeper.keep()
            if await self._store.get(CANCEL.key(*run.place)) is not None:
                run.scope.cancel()

    async def _say_alive(self, run: Run) -> None:
        """Raises StoreError."""
        await self._store.put(LEASE.key(*run.place), {}, ttl=self._pace.lease, certain=True)

    async def _is_alive(self, owner: str, identity: str) -> bool:
        """Raises StoreError."""
        return await self._store.get(LEASE.key(owner, identity), certain=True) is not None

    async def _last_event(self, owner: str, identity: str, number: int) -> Event | None:
        """What tells the end of a response whose maker is gone before it could, under this number."""
        try:
            resource = await self.current(owner, identity)
        except NotFound:
            return None
        if resource["status"] not in ("completed", "incomplete", "failed"):
            return None
        kind = f"response.{resource['status']}"
        return kind, dumps({"type": kind, "response": resource, "sequence_number": number})

    async def _mark_failed(self, owner: str, identity: str, record: StoredResponse) -> StoredResponse:
        newest = await self._records.get(owner, identity)
        if newest.resource["status"] not in ONGOING:
            return newest
        error = {"code": "server_error", "message": "The process that made this response is gone."}
        record = StoredResponse(
            resource={**record.resource, "status": "failed", "error": error}, items=record.items
        )
        await self._records.save(owner, record)
        return record


class _EventFlusher:
    """Hands the events of a run to the store, as many at a time as there are."""

    def __init__(self, run: Run, kept: StoredEvents) -> None:
        self._run = run
        self._kept = kept
        self._flushed = self._parts = 0
        self._lock = anyio.Lock()

    async def keep(self, *, over: bool = False) -> None:
        # What is half written when the response ends would be written again with more in it, under readers' eyes.
        with anyio.CancelScope(shield=True):
            await self._keep(over=over)

    async def _keep(self, *, over: bool) -> None:
        async with self._lock:
            events = self._run.log.events[self._flushed :]
            if events or over:
                await self._kept.keep(self._run.place, self._parts, events, over=over)
                self._flushed += len(events)
                self._parts += 1

    async def finish(self) -> None:
        await self.keep(over=True)
