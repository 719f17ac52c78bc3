"""The event feed: what open pages of the console are told, as server-sent events that go on after a break.

Nothing is encoded or kept while no page is open. Each event is encoded once, however many pages read it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import Collection
from itertools import islice
from typing import Any

import anyio

from toolway.server.asgi import EventStreamResponse
from toolway.types import JSON, Progress
from toolway.wire.lenient_json import dumps

MAX_EVENTS, MAX_BYTES = 4000, 8 * 2**20
"""What is kept for pages that come back."""
BREAK_SECONDS = 60.0
"""How long after the last page is gone its events are kept."""
PAUSE = 0.1
"""Seconds between two writes to one page: what happens meanwhile goes out together."""

MAX_MESSAGE = 1000
"""Characters of the message of a report that are told."""

RESET = b"event: reset\ndata: {}\n\n"
"""What a page is told that has been away for too long: load everything anew."""


class EventFeed:
    """Events by topic. A page names the topics that it shows, and the last event that it has."""

    def __init__(self) -> None:
        self._epoch = secrets.token_hex(4)
        self._last = 0
        self._events: deque[tuple[str, bytes]] = deque()
        self._size = 0
        self.pages = 0
        """How many pages are open."""
        self._watched: Counter[str] = Counter()
        self._left_at = float("-inf")
        self._news = asyncio.Event()

    @property
    def is_on(self) -> bool:
        """Whether a page is open, or was a moment ago."""
        return bool(self.pages) or time.monotonic() - self._left_at < BREAK_SECONDS

    def is_watched(self, topic: str) -> bool:
        """Whether a page shows this topic now."""
        return bool(self._watched[topic])

    def publish(self, topic: str, value: Any) -> None:
        """Tell the pages that show the topic; `value` is JSON."""
        self._last += 1
        if not self.is_on:
            self._events.clear()
            self._size = 0
            return
        event = f"id: {self._epoch}-{self._last}\ndata: ".encode() + dumps([topic, value]) + b"\n\n"
        self._events.append((topic, event))
        self._size += len(event)
        while len(self._events) > MAX_EVENTS or self._size > MAX_BYTES:
            self._size -= len(self._events.popleft()[1])
        self._news.set()

    async def stream(self, response: EventStreamResponse, topics: Collection[str], after: str) -> None:
        """Write the events of these topics that come after the event `after`, until cancelled."""
        self.pages += 1
        self._watched.update(topics)
        try:
            await response.start([])
            seen = self._position(after)
            if seen is None:
                seen = self._last
                await response.write(RESET if after else b"")
            await response.write(f"id: {self._epoch}-{seen}\nevent: hello\ndata: {{}}\n\n".encode())
            while True:
                lost = self._last - seen > len(self._events)
                new = islice(self._events, max(0, len(self._events) - (self._last - seen)), None)
                found = [event for topic, event in new if topic in topics]
                seen = self._last
                await response.write((RESET if lost else b"") + b"".join(found))
                await self._wait(seen)
        finally:
            self.pages -= 1
            self._watched.subtract(topics)
            self._watched += Counter()  # drops those that are at 0
            self._left_at = time.monotonic()

    async def _wait(self, seen: int) -> None:
        await asyncio.sleep(PAUSE)
        while self._last == seen:
            self._news = asyncio.Event() if self._news.is_set() else self._news
            await self._news.wait()

    def _position(self, after: str) -> int | None:
        """The number of an event that a page has; None when what came behind it is no longer here."""
        epoch, _, number = after.rpartition("-")
        if epoch != self._epoch or not number.isdecimal() or len(number) > 15 or int(number) > self._last:
            return None
        return int(number) if self._last - int(number) <= len(self._events) else None


def progress_json(progress: Progress) -> JSON:
    """A report for a page."""
    message = progress.message and progress.message[:MAX_MESSAGE]
    return {"progress": progress.progress, "total": progress.total, "message": message}


class ProgressTopic:
    """Publishes the reports of one call; of those that come faster than pages read, the newest."""

    def __init__(self, feed: EventFeed, topic: str) -> None:
        self._feed = feed
        self._topic = topic
        self._newest: Progress | None = None
        self._news = anyio.Event()

    def __call__(self, progress: Progress) -> None:
        """Take a report of the tool."""
        self._newest = progress
        self._news.set()

    async def run(self) -> None:
        """Publish what is reported, until cancelled."""
        while True:
            await self._news.wait()
            self._news = anyio.Event()
            if self._newest:
                self._feed.publish(self._topic, progress_json(self._newest))
            await anyio.sleep(PAUSE)
