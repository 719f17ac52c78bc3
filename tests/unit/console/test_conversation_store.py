"""The conversations that are over: in the store, across restarts and processes, bounded in number, bytes and age."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from toolway.console.conversation_store import ConversationStore
from toolway.settings.settings import ConsoleSettings
from toolway.stores import Store, open_store
from toolway.types import JSON

NOW = time.time()


def line(number: int, **members: Any) -> JSON:
    return {
        "id": f"c{number}",
        "began": NOW - 1000 + number,
        "seconds": 0.5,
        "title": f"question {number}",
        **members,
    }


@asynccontextmanager
async def opened(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url, ttl=3600, max_bytes=64 * 2**20) as store:
        yield store


def history(store: Store, others: list[JSON] | None = None, **settings: Any) -> ConversationStore:
    return ConversationStore(
        ConsoleSettings(**settings), store, [].extend if others is None else others.extend
    )


def names(lines: list[JSON]) -> list[str]:
    return [one["id"] for one in lines]


async def test_what_was_written_down_is_there_for_the_next_process_and_for_others(store_url: str):
    async with opened(store_url) as store:
        heard: list[JSON] = []
        first, second = history(store), history(store, heard)
        await first.keep(line(1), {"said": "a Needle"})
        await second.keep(line(2))
        await first.keep(line(3))
        await second.read()
        assert names(second.newest(10)) == ["c3", "c2", "c1"]
        assert names(heard) == ["c1", "c3"]
        await second.read()
        assert len(heard) == 2, "nothing is told twice"
        assert await second.record("c1") == {"said": "a Needle"}
        after_a_restart = history(store)
        assert await after_a_restart.record("c2") == line(2)
        assert names(after_a_restart.newest(10)) == ["c3", "c2", "c1"]
        lines = after_a_restart.newest(10)
        assert names(await after_a_restart.search(lines, "NEEDLE", lambda _: True, 10)) == ["c1"]
        assert names(await after_a_restart.search(lines, "question", lambda one: one["id"] != "c2", 10)) == [
            "c3",
            "c1",
        ]
        assert names(await after_a_restart.search(lines, "question", lambda _: True, 2)) == ["c3", "c2"]


async def test_the_oldest_go_when_there_are_too_many(store_url: str):
    async with opened(store_url) as store:
        kept = history(store, max_conversations=3)
        for number in range(6):
            await kept.keep(line(number), {"n": number})
        assert names(kept.newest(10)) == ["c5", "c4", "c3"]
        assert await kept.record("c2") is None
        again = history(store, max_conversations=10)
        await again.read()
        assert names(again.newest(10)) == ["c5", "c4", "c3"], "nor are they in the store"


async def test_records_of_all_processes_together_are_bounded(store_url: str):
    async with opened(store_url) as store:
        processes = [history(store, max_bytes=60_000) for _ in range(2)]
        for number in range(120):
            await processes[number % 2].keep(line(number), {"text": "x" * 2000})
        left = [n for n in range(120) if "text" in (await processes[0].record(f"c{n}") or {})]
        assert 10 <= len(left) <= 50
        assert left == list(range(120 - len(left), 120))
        assert len(processes[0].newest(200)) == 120, "their lines stay"


async def test_what_is_older_than_its_time_is_not_listed(store_url: str):
    async with opened(store_url) as store:
        await history(store).keep(line(1))
        late = history(store, ttl=time.time() - NOW + 900.0)
        await late.keep(line(500))
        await late.read()
        assert names(late.newest(10)) == ["c500"]


async def test_thousands_are_taken_in_and_searched(store_url: str):
    async with opened(store_url) as store:
        writer = history(store)
        for number in range(2_000):
            await writer.keep(line(number, tools=["get_weather"], model="qwen", usage={"prompt": 1}))
        reader = history(store)
        await reader.read()
        lines = reader.newest(10_000)
        found = await reader.search(lines, "question 77", lambda _: True, 100)
    assert len(lines) == 2_000
    assert len(found) == 11
