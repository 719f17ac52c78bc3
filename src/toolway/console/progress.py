"""How far a call is, for the pages that show it."""

from __future__ import annotations

import anyio

from toolway.console.feed import PAUSE, Feed
from toolway.types import JSON, Progress

MAX_MESSAGE = 1000
"""Characters of a report's message."""


def progress_json(progress: Progress) -> JSON:
    """A report for a page."""
    message = progress.message and progress.message[:MAX_MESSAGE]
    return {"progress": progress.progress, "total": progress.total, "message": message}


class ProgressTopic:
    """Publishes the reports of one call; of those that come faster than pages read, the newest."""

    def __init__(self, feed: Feed, topic: str) -> None:
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
