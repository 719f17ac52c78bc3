"""The feed: what a page is told, and what it is told when it comes back."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tests.support.gate import DEADLINE
from toolway.console import event_feed
from toolway.console.event_feed import EventFeed


class Page:
    """Takes what is written for one page."""

    def __init__(self) -> None:
        self.text = ""
        self.news = anyio.Event()

    async def start(self, _: Any) -> None:
        return

    async def write(self, events: bytes) -> None:
        self.text += events.decode()
        self.news.set()
        self.news = anyio.Event()

    async def until(self, text: str) -> None:
        with anyio.fail_after(DEADLINE):
            while text not in self.text:
                await self.news.wait()

    @property
    def told(self) -> list[Any]:
        lines = [line for line in self.text.splitlines() if line.startswith("data: [")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    @property
    def last_id(self) -> str:
        return [line for line in self.text.splitlines() if line.startswith("id: ")][-1].removeprefix("id: ")


@asynccontextmanager
async def opened(feed: EventFeed, *topics: str, after: str = ""):
    page = Page()
    async with anyio.create_task_group() as group:
        group.start_soon(feed.stream, page, set(topics), after)
        await page.until("hello")
        yield page
        group.cancel_scope.cancel()


async def test_a_page_hears_of_its_topics_alone():
    feed = EventFeed()
    async with opened(feed, "state", "log:a\nb") as page:
        assert feed.is_watched("state")
        feed.publish("state", {"n": 1})
        feed.publish("other", {"n": 2})
        feed.publish("log:a\nb", {"n": 3})
        await page.until('"n":3')
        assert page.told == [["state", {"n": 1}], ["log:a\nb", {"n": 3}]]
    assert not feed.is_watched("state")
    assert feed.pages == 0


async def test_a_page_that_comes_back_goes_on_where_it_was():
    feed = EventFeed()
    async with opened(feed, "state") as page:
        feed.publish("state", 1)
        await page.until("1]")
    feed.publish("state", 2)
    async with opened(feed, "state", after=page.last_id) as again:
        feed.publish("state", 3)
        await again.until("3]")
        assert again.told == [["state", 2], ["state", 3]]
        assert "reset" not in again.text


async def test_a_page_that_missed_something_is_told_to_begin_anew(monkeypatch):
    feed = EventFeed()
    async with opened(feed, "state") as page:
        pass
    monkeypatch.setattr(event_feed, "BREAK_SECONDS", 0.0)
    feed.publish("state", "unseen")
    for after in (page.last_id, "other-1", "x", f"{page.last_id}9"):
        async with opened(feed, "state", after=after) as again:
            assert again.text.startswith("event: reset"), after


async def test_a_page_that_reads_too_slowly_is_told_to_begin_anew(monkeypatch):
    monkeypatch.setattr(event_feed, "MAX_EVENTS", 3)
    feed = EventFeed()
    async with opened(feed, "state") as page:
        for n in range(10):
            feed.publish("state", n)
        await page.until("9]")
        assert page.told == [["state", 7], ["state", 8], ["state", 9]]
        assert "event: reset" in page.text


async def test_nothing_is_kept_while_no_page_is_open():
    feed = EventFeed()
    feed.publish("state", object())
    assert not feed._events
