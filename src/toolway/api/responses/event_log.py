"""The events of responses that are made in the background: kept while they come, for readers of any process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio

from toolway.api.responses.items.response_object import Event
from toolway.stores import Key, Store, key_of
from toolway.wire import sse


class EventLog:
    """The events of one response in this process, with whom they came first."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = False
        self._news = anyio.Event()

    async def tell(self, events: list[Event]) -> None:
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


class KeptEvents:
    """The events of responses in a store, in parts, so that a process that does not make a response can tell them."""

    def __init__(self, store: Store, *, ttl: float, poll: float) -> None:
        self._store = store
        self._ttl = ttl
        self._poll = poll

    async def keep(self, identity: str, part: int, events: list[Event], *, over: bool) -> None:
        """Keep a part; the first is 0, the last is `over`."""
        texts = [[kind, body.decode()] for kind, body in events]
        await self._store.put(_key(identity, part), {"events": texts, "over": over}, ttl=self._ttl)

    async def forget(self, identity: str) -> None:
        """Delete all parts. Raises StoreError."""
        part = 0
        while await self._store.delete(_key(identity, part)):
            part += 1

    async def read(
        self,
        identity: str,
        begin: int,
        alive: Callable[[], Awaitable[bool]],
        last: Callable[[int], Awaitable[Event | None]],
    ) -> AsyncIterator[Event]:
        """The events from the number `begin` on; waits for more while their maker is `alive`.

        When that is gone and there is no last part, `last(number)` is the last event.
        """
        part = number = 0
        while True:
            kept = await self._store.get(_key(identity, part))
            if kept is None:
                if await alive():
                    await anyio.sleep(self._poll)
                    continue
                # The maker may have told its own client more than it could keep.
                if event := await last(max(number, begin)):
                    yield event
                return
            for kind, text in kept["events"]:
                if number >= begin:
                    yield kind, text.encode()
                number += 1
            if kept["over"]:
                return
            part += 1


def _key(identity: str, part: int) -> Key:
    return key_of("events", identity, str(part))


def encoded(event: Event) -> bytes:
    """An event as it stands in a stream."""
    kind, body = event
    return b"event: " + kind.encode() + b"\n" + sse.encode(body)
