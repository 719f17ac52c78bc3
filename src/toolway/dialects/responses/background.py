"""Responses that are made whether somebody listens or not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import Receive, Scope, Send

from toolway.dialects.responses.events import EventLog, KeptEvents, encoded
from toolway.dialects.responses.making import Draft, Making
from toolway.dialects.responses.records import Record, Records
from toolway.envelope import DONE
from toolway.errors import InvalidRequest, ToolwayError, TooMany
from toolway.items.narrator import Event
from toolway.live import Live, stream_live
from toolway.respond import send_json
from toolway.runner import known
from toolway.stores import Store, key_of
from toolway.turn import streamed_turn
from toolway.types import JSON

log = logging.getLogger("toolway.responses")

LEASE = 15.0
"""Seconds after which a process that no longer says that it makes a response counts as gone."""

BEAT = 0.5
"""Seconds between two times of saying so, and of looking whether somebody cancelled."""

ENDING = 3.0
"""Seconds for keeping how a response ended when the server is stopped."""

ONGOING = frozenset({"queued", "in_progress"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A response that this process makes."""

    draft: Draft
    log: EventLog = field(default_factory=EventLog)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Background:
    """Makes responses in tasks of its own. What they are, and all of their events, is in the store.

    A response is never left in progress: when the server stops it is kept as failed, and when a process is gone
    without a word, whoever looks at its response next keeps that.
    """

    def __init__(self, records: Records, store: Store, *, ttl: float, most: int, keep_alive: float) -> None:
        self._records = records
        self._store = store
        self._kept = KeptEvents(store, ttl=ttl)
        self._most = most
        self._keep_alive = keep_alive
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

    async def create(self, making: Making, scope: Scope, receive: Receive, send: Send, body: JSON) -> None:
        """Begin a response and say so, or stream its events. Raises InvalidRequest, TooMany."""
        if self._group is None:
            raise ToolwayError("The server is being stopped; try again.")
        if len(self._runs) >= self._most:
            raise TooMany(f"{self._most} responses are made in the background already; try again later.")
        run: Run = await self._group.start(self._work, making, scope, body)
        if run.draft.asked.stream:
            await self.stream(scope, receive, send, run.log.read(0))
        else:
            await send_json(send, 200, run.draft.narrator.resource)

    async def stream(self, scope: Scope, receive: Receive, send: Send, events: AsyncIterator[Event]) -> None:
        """Send events as they come. The client may leave; the response goes on."""

        async def produce(live: Live) -> None:
            await live.start([])
            async for event in events:
                await live.write(encoded(event))
            await live.end(DONE)

        await stream_live(scope, receive, send, produce, keep_alive=self._keep_alive)

    async def look(self, owner: str, identity: str) -> JSON:
        """The response as it is now. Raises NotFound."""
        if run := self._own(owner, identity):
            return run.draft.narrator.resource
        record = await self._records.get(owner, identity)
        if record.resource["status"] in ONGOING and not await self._is_alive(identity):
            record = await self._bury(owner, identity, record)
        return record.resource

    async def events(self, owner: str, identity: str, begin: int) -> AsyncIterator[Event]:
        """The events of a response from the number `begin` on. Raises NotFound, InvalidRequest."""
        resource = await self.look(owner, identity)
        if not resource["background"]:
            raise InvalidRequest(
                "Only a response that was created with background=true can be streamed again."
            )
        if run := self._own(owner, identity):
            return run.log.read(begin)
        return self._kept.read(identity, begin, lambda: self._is_alive(identity))

    async def cancel(self, owner: str, identity: str) -> JSON:
        """End a response wherever it is made; the response as it is then. Raises NotFound, InvalidRequest."""
        resource = await self.look(owner, identity)
        if not resource["background"]:
            raise InvalidRequest("Only a response that was created with background=true can be cancelled.")
        if run := self._own(owner, identity):
            run.scope.cancel()
            await run.ended.wait()
            return run.draft.narrator.resource
        if resource["status"] in ONGOING:
            await self._store.put(key_of("cancel", identity), {}, ttl=LEASE)
            while resource["status"] in ONGOING:
                await anyio.sleep(BEAT)
                resource = await self.look(owner, identity)
        return resource

    def _own(self, owner: str, identity: str) -> Run | None:
        run = self._runs.get(identity)
        return run if run and run.draft.owner == owner else None

    async def _work(self, making: Making, scope: Scope, body: JSON, *, task_status: TaskStatus[Run]) -> None:
        async with making.draft(scope, body) as draft:
            await making.claim(draft)
            run = Run(draft=draft)
            self._runs[draft.identity] = run
            try:
                await run.log.tell(draft.narrator.queued())
                await self._say_alive(draft.identity)
                await self._records.save(draft.owner, draft.record())
                task_status.started(run)
                await self._make(making, run)
            except Exception as raised:  # the border: nobody waits for this task
                known(raised)
            finally:
                run.log.end()
                run.ended.set()
                del self._runs[draft.identity]

    async def _make(self, making: Making, run: Run) -> None:
        draft = run.draft
        keeper = _Keeper(run, self._kept)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._beat, run, keeper)
                with run.scope:
                    await self._tell_all(making, run)
                group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(ENDING, shield=True):
                stopped = ToolwayError("The server was stopped before the response was complete.")
                await run.log.tell(await making.fail(draft, stopped))
                await keeper.finish()
            raise
        if run.scope.cancelled_caught:
            draft.narrator.cancelled()
            await self._records.save(draft.owner, draft.record())
        await keeper.finish()

    async def _tell_all(self, making: Making, run: Run) -> None:
        draft = run.draft

        async def on_head(_: object) -> None:
            await self._records.save(draft.owner, draft.record())

        try:
            await making.make(draft, streamed_turn, run.log.tell, on_head)
        except Exception as raised:
            await run.log.tell(await making.fail(draft, known(raised)))

    async def _beat(self, run: Run, keeper: _Keeper) -> None:
        """Say that the response is being made, keep its events, see whether somebody cancelled."""
        identity = run.draft.identity
        said = anyio.current_time()
        while True:
            await anyio.sleep(BEAT)
            if anyio.current_time() - said > LEASE / 3:
                said = anyio.current_time()
                await self._say_alive(identity)
            await keeper.keep()
            if await self._store.get(key_of("cancel", identity)) is not None:
                run.scope.cancel()

    async def _say_alive(self, identity: str) -> None:
        await self._store.put(key_of("lease", identity), {}, ttl=LEASE)

    async def _is_alive(self, identity: str) -> bool:
        return await self._store.get(key_of("lease", identity)) is not None

    async def _bury(self, owner: str, identity: str, record: Record) -> Record:
        newest = await self._records.get(owner, identity)
        if newest.resource["status"] not in ONGOING:
            return newest
        error = {"code": "server_error", "message": "The process that made this response is gone."}
        record = Record(resource={**record.resource, "status": "failed", "error": error}, items=record.items)
        await self._records.save(owner, record)
        return record


class _Keeper:
    """Hands the events of a run to the store, as many at a time as there are."""

    def __init__(self, run: Run, kept: KeptEvents) -> None:
        self._run = run
        self._kept = kept
        self._done = self._parts = 0
        self._turn = anyio.Lock()

    async def keep(self, *, over: bool = False) -> None:
        async with self._turn:
            events = self._run.log.events[self._done :]
            if events or over:
                await self._kept.keep(self._run.draft.identity, self._parts, events, over=over)
                self._done += len(events)
                self._parts += 1

    async def finish(self) -> None:
        await self.keep(over=True)
