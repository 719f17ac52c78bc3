"""Records the last conversations for the console, by a subscriber to the events of each.

While a request runs, a subscriber keeps references and nothing more. What they say is written down between requests, in
a task of its own and within a budget: of many conversations at once, only some are kept with all that was in them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic, perf_counter, time
from typing import Any
from weakref import ReferenceType, WeakValueDictionary

import anyio

from toolway.console.conversation_record import Timed, conversation_in, record_of, summary_of
from toolway.console.conversation_store import ConversationStore
from toolway.console.event_feed import EventFeed
from toolway.conversation.events import (
    CallProgressed,
    Chunks,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    Event,
    EventStream,
    ModelAnswered,
)
from toolway.settings.settings import ConsoleSettings
from toolway.stores import Store
from toolway.types import JSON

log = logging.getLogger("toolway.console")

MAX_WAITING = 2000
"""Conversations that wait to be written down."""
PAUSE = 0.2
"""Seconds between two looks at what happened."""
WHOLE_RATE, WHOLE_BURST = 5.0, 100.0
"""Conversations a second that are kept with all that was in them, in the long run and at once."""
LISTED_RATE, LISTED_BURST = 20.0, 200.0
"""Those that are kept as a line in the list."""
ROUNDING = 0.001
"""Seconds by which sums of many times may be wrong, at the most."""
SLICE = 0.003
"""Seconds that writing down may take at a time: requests wait for it."""
READ_SECONDS = 2.0
"""While a page is open, seconds between two looks at what other processes wrote down."""
END_SECONDS = 2.0
"""Seconds that writing down the last conversations may take at the end."""
BATCH = 50
"""Lines that a page is told at once; if more changed, it loads the list anew."""

_READ = frozenset({ConversationBegan, CallProgressed, ConversationEnded, ConversationFailed, ClientLeft})
"""Events that are looked at while no page is open."""


class Recording:
    """The recording of one conversation: its events; a subscriber. Nothing is read of them here."""

    __slots__ = (
        "__weakref__",
        "_feed",
        "_recorder",
        "_stream",
        "chunks",
        "conversation",
        "events",
        "id",
        "progress",
        "text",
    )

    def __init__(self, recorder: ConversationRecorder, feed: EventFeed) -> None:
        self.id = ""
        self.events: list[Timed] = []
        self.progress: dict[str, CallProgressed] = {}
        self.chunks: list[Chunks] = []
        self.text = ""
        """What the model says now, as far as somebody looks on."""
        self.conversation: str | None = None
        """The id of the conversation that it is part of, once that was asked for."""
        self._recorder = recorder
        self._feed = feed
        self._stream: ReferenceType[EventStream] | None = None

    def __call__(self, event: Event) -> None:
        self.events.append((time(), event))
        if type(event) in _READ or self._feed.pages:
            self._read(event)

    def _read(self, event: Event) -> None:
        match event:
            case ConversationBegan():
                self._stream = event.stream
            case CallProgressed(call=call):
                self.progress[call.id] = event
                del self.events[-1]  # the next report takes its place
            case ModelAnswered():
                self.text = ""
                self.chunks.clear()
            case ConversationEnded() | ConversationFailed() | ClientLeft():
                self._recorder.ended(self)
                return
        self._recorder.changed(self)

    def watch(self) -> None:
        """Hear of the text as it comes."""
        stream = self._stream and self._stream()
        if stream and stream.watcher is None:
            stream.watcher = self.chunks.append

    def unwatch(self) -> None:
        """Hear of it no more: nobody looks on."""
        if stream := self._stream and self._stream():
            stream.watcher = None
        self.chunks.clear()

    def take_text(self) -> str:
        """What was said since the last time."""
        chunks, self.chunks[:] = self.chunks[:], []
        text = "".join(_text_in(chunk) for event in chunks for chunk, _ in event.items)
        self.text += text
        return text


class _Budget:
    """So many at once, and so many a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._each, self._all = 1 / rate, burst / rate
        """Seconds until one comes back that is spent, and until all do."""
        self._full_at = 0.0
        """When all are there again (monotonic)."""

    def spend(self) -> bool:
        now = monotonic()
        full_at = max(self._full_at, now) + self._each
        if full_at - now > self._all + ROUNDING:
            return False
        self._full_at = full_at
        return True


class ConversationRecorder:
    """Records the last conversations. `shows_contents`: whether what was said is kept; `mask` hides what never is."""

    def __init__(
        self,
        settings: ConsoleSettings,
        feed: EventFeed,
        store: Store,
        *,
        shows_contents: bool,
        mask: Callable[[str], str],
    ) -> None:
        self._feed = feed
        self._store = ConversationStore(settings, store, self._tell)
        self._shows_contents = shows_contents
        self._mask = mask
        self._live: WeakValueDictionary[str, Recording] = WeakValueDictionary()
        self._changed: dict[str, Recording] = {}
        self._ended: deque[Recording] = deque()
        self._whole, self._lines = _Budget(WHOLE_RATE, WHOLE_BURST), _Budget(LISTED_RATE, LISTED_BURST)
        self._work = asyncio.Event()
        self._epoch, self._last = secrets.token_hex(4), 0xFFF
        self.left_out = 0
        """Conversations that were not even listed, since there were too many at once."""

    # -- for the request

    def subscribe(self) -> Recording | None:
        """The subscriber of one conversation; None when there are too many at once to be listed."""
        if self._lines.spend():
            return Recording(self, self._feed)
        self.left_out += 1
        return None

    def changed(self, recording: Recording) -> None:
        """Something happened in a conversation that a page may show."""
        if not recording.id:
            self._last += 1
            recording.id = f"{self._epoch}{self._last:x}"
            self._live[recording.id] = recording
            if not self._feed.pages:
                return
            recording.watch()
        self._changed[recording.id] = recording
        self._work.set()

    def ended(self, recording: Recording) -> None:
        """A conversation is over."""
        if recording.id:  # else it never began
            if len(self._ended) == MAX_WAITING:
                self.left_out += 1
                self._ended.popleft()
            self._ended.append(recording)
            self._work.set()

    # -- between requests

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write down what happens while the block lasts, and at its end what is left."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._run)
                try:
                    yield
                finally:
                    group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(END_SECONDS, shield=True):
                await self._write_down()

    async def _run(self) -> None:
        while True:
            with anyio.move_on_after(READ_SECONDS):
                await self._work.wait()
            await anyio.sleep(PAUSE)
            self._work.clear()
            try:
                lines = await self._write_down()
                lines += self._look_at_live()
                self._tell(lines)
                if self._feed.pages:
                    await self._store.read(READ_SECONDS)
            except Exception:  # the border of this task: what cannot be written down is no reason to end it
                log.exception("a conversation cannot be kept for the console")
            if self._feed.pages and self._live:
                self._work.set()

    async def _write_down(self) -> list[JSON]:
        lines: list[JSON] = []
        begun = perf_counter()
        while self._ended:
            recording = self._ended.popleft()
            self._changed.pop(recording.id, None)
            summary = self._summary(recording)
            record = self._record(summary, recording) if self._whole.spend() else None
            try:
                await self._store.keep(summary, record)
            except anyio.get_cancelled_exc_class():
                self._ended.appendleft(recording)
                raise
            self._live.pop(recording.id, None)
            if self._feed.is_watched(f"conversation:{recording.id}"):
                self._feed.publish(f"conversation:{recording.id}", {"changed": True})
            if len(lines) <= BATCH:
                lines.append(summary)
            if perf_counter() - begun > SLICE:
                await anyio.sleep(SLICE)
                begun = perf_counter()
        return lines

    def _look_at_live(self) -> list[JSON]:
        """Tell pages what is new in conversations that run."""
        if not self._feed.pages:
            for recording in list(self._live.values()):
                recording.unwatch()
        for identity, recording in list(self._live.items()):
            if recording.chunks and (text := recording.take_text()) and self._shows_contents:
                topic = f"conversation:{identity}"
                if self._feed.is_watched(topic):
                    self._feed.publish(topic, {"text": text})
        lines: list[JSON] = []
        for identity, recording in self._changed.items():
            if self._feed.is_watched(f"conversation:{identity}"):
                self._feed.publish(f"conversation:{identity}", {"changed": True})
            if len(lines) <= BATCH:
                lines.append(self._summary(recording))
        self._changed = {}
        return lines

    def _summary(self, recording: Recording) -> JSON:
        if recording.conversation is None:
            recording.conversation = conversation_in(recording.events)
        summary = summary_of(
            recording.id, recording.events, shows_contents=self._shows_contents, mask=self._mask
        )
        return {**summary, "conversation": recording.conversation}

    def _record(self, summary: JSON, recording: Recording) -> JSON:
        return record_of(
            summary,
            recording.events,
            recording.progress,
            shows_contents=self._shows_contents,
            mask=self._mask,
        )

    def _tell(self, lines: list[JSON]) -> None:
        if lines:
            self._feed.publish("conversations", lines if len(lines) <= BATCH else None)

    # -- for pages

    async def newest(self, most: int) -> list[JSON]:
        """Summaries of the newest conversations, the newest first."""
        await self._store.read()
        return self._all(most)[:most]

    def _all(self, most: int) -> list[JSON]:
        """Those that run, and of those that are over so many."""
        live = [self._summary(recording) for recording in list(self._live.values()) if recording.events]
        return sorted([*live, *self._store.newest(most)], key=lambda one: -one["began"])

    async def find(self, identity: str) -> JSON | None:
        """All of one conversation; of one that was kept as a line alone, that line."""
        if recording := self._live.get(identity):
            recording.watch()
            self._work.set()
            recording.take_text()
            record = self._record(self._summary(recording), recording)
            return {**record, "text": recording.text if self._shows_contents else ""}
        return await self._store.record(identity)

    async def search(
        self, text: str, fits: Callable[[JSON], bool], before: str, most: int
    ) -> tuple[list[JSON], bool]:
        """The newest conversations that fit and hold the text, older than the one named `before`; are there more?"""
        await self._store.read()
        lines = self._all(self._store.most)
        position = next((n + 1 for n, one in enumerate(lines) if one["id"] == before), 0)
        found = await self._store.search(lines[position:], text, fits, most + 1)
        return found[:most], len(found) > most


def _text_in(chunk: Any) -> str:
    """What a chunk adds to what the client reads."""
    if isinstance(chunk, str):
        return chunk
    choices: Any = chunk.get("choices") if isinstance(chunk, Mapping) else None
    if not choices:
        return ""
    text = (choices[0].get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""
