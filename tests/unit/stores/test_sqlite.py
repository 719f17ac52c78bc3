"""What the store in a file adds to the contract."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import anyio
import pytest

from tests.unit.stores.test_contract import DEADLINE, key, opened
from toolway.errors import ConfigError, StoreError
from toolway.stores import sqlite as module
from toolway.stores.sqlite import _connect


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def foreign(url: str, statement: str) -> None:
    """What another program does to the file."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(statement)


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_a_file_outlives_its_store_and_is_for_its_owner_alone(url: str, tmp_path: Path):
    async with opened(url) as store:
        await store.put(key("k"), {"n": 1})
        modes = modes_in(tmp_path)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    async with opened(url) as store:
        assert await store.get(key("k")) == {"n": 1}


async def test_a_file_that_others_could_read_is_closed_to_them(url: str, tmp_path: Path):
    (tmp_path / "store.db").touch(0o644)
    async with opened(url):
        assert modes_in(tmp_path)["store.db"] == 0o600


async def test_a_file_that_is_no_database_is_named(url: str, tmp_path: Path):
    (tmp_path / "store.db").write_text("something else altogether, long enough for a header")
    with pytest.raises(ConfigError, match=r"TOOLWAY_STORE: .*store\.db cannot be used"):
        async with opened(url):
            pass


async def test_trouble_after_the_start_is_logged_once_and_looks_like_a_miss(url: str, caplog):
    async with opened(url) as store:
        await store.put(key("k"), {"n": 1})
        foreign(url, "DROP TABLE entries")
        for _ in range(20):
            await store.put(key("k"), {"n": 2})
            assert await store.get(key("k")) is None
    assert caplog.text.count("the store failed") == 1


@pytest.mark.parametrize("value", ["NULL", "x'ff00'", "'[1]'", "'{}'", "1"])
async def test_what_another_program_wrote_counts_as_gone(url: str, value: str):
    async with opened(url) as store:
        await store.put(key("k"), {"n": 1})
        foreign(url, f"UPDATE entries SET value = {value}")
        assert await store.get(key("k"), certain=True) is None


async def test_in_trouble_nothing_is_certain(url: str):
    async with opened(url) as store:
        foreign(url, "DROP TABLE entries")
        with pytest.raises(StoreError):
            await store.add(key("k"), {})
        with pytest.raises(StoreError):
            await store.delete(key("k"))
        with pytest.raises(StoreError):
            await store.get(key("k"), certain=True)
        with pytest.raises(StoreError):
            await store.put(key("k"), {}, certain=True)
        assert not await store.is_ready()


async def test_a_file_of_the_first_form_is_begun_anew(url: str, tmp_path: Path):
    with sqlite3.connect(tmp_path / "store.db") as old:
        old.executescript(
            "CREATE TABLE entries (key TEXT PRIMARY KEY, until REAL, size INTEGER, value BLOB);"
            "CREATE INDEX entries_by_age ON entries (until, size, key);"
        )
        old.execute("INSERT INTO entries VALUES (?, ?, 2, '{}')", (key("k").digest, time.time() + 60))
    old.close()
    async with opened(url) as store:
        assert await store.get(key("k")) is None
        assert await store.add(key("k"), {"n": 1})


MONTH = 30 * 86_400.0


async def test_a_clock_that_jumps_a_month_ends_nothing(url: str, monkeypatch):
    async with opened(url) as store:
        await store.put(key("before"), {"n": 1})
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + MONTH)
        await store.put(key("after"), {"n": 2})
        assert await store.get(key("before")) == {"n": 1}
    async with opened(url) as store:
        assert [await store.get(key("before")), await store.get(key("after"))] == [{"n": 1}, {"n": 2}]
        monkeypatch.setattr(time, "time", wall)
        await store.put(key("again"), {"n": 3})
    async with opened(url) as store:
        assert [await store.get(key(name)) for name in ("before", "after", "again")] == [
            *({"n": n} for n in (1, 2, 3))
        ]


async def test_time_goes_on_while_nobody_has_the_file_open(url: str, monkeypatch):
    async with opened(url) as store:
        await store.put(key("short"), {}, ttl=600)
        await store.put(key("long"), {}, ttl=6_000)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 1_200)
    async with opened(url) as store:
        assert [await store.get(key("short")), await store.get(key("long"))] == [None, {}]


async def test_a_foreign_lock_delays_writes_once_and_reads_not_at_all(url: str, monkeypatch, caplog):
    monkeypatch.setattr(module, "BUSY_SECONDS", 1.0)
    monkeypatch.setattr(module, "REST_SECONDS", 1000)
    async with opened(url) as store:
        await store.put(key("k"), {"n": 1})
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            async with anyio.create_task_group() as group:
                for n in range(8):
                    group.start_soon(store.put, key(f"k{n}"), {"n": n})
                await anyio.wait_all_tasks_blocked()
                assert await store.get(key("k")) == {"n": 1}
            assert time.monotonic() - began < 8, "each of the eight waited"
            with pytest.raises(StoreError) as caught:
                await store.add(key("k8"), {})
            assert "left alone" in str(caught.value.__cause__)
            assert await store.get(key("k")) == {"n": 1}
        store._entries._writer._rest._until = 0
        assert await store.add(key("k8"), {})
    assert caplog.text.count("the store failed") == 1


async def test_whoever_looks_without_waiting_is_kept_from_it_by_no_write(url: str):
    async with opened(url) as store:
        await store.put(key("k"), {"n": 1})
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            other.execute("DELETE FROM lives")
            assert store.may_hold(key("k"))
            assert not store.may_hold(key("other"))
            other.execute("COMMIT")
        assert not store.may_hold(key("k"))


async def test_whoever_looks_does_not_say_that_there_is_nothing_where_that_cannot_be_seen(url: str):
    async with opened(url) as store:
        foreign(url, "DROP TABLE lives")
        assert store.may_hold(key("k"))


async def test_after_a_slow_look_nobody_looks_for_a_while(url: str, monkeypatch):
    async with opened(url) as store:
        monkeypatch.setattr(module, "SLOW_LOOK", -1.0)
        monkeypatch.setattr(module, "REST_BEHIND_LOOK", 1e9)
        assert not store.may_hold(key("k"))
        assert store.may_hold(key("k"))


async def test_a_write_costs_the_same_however_many_entries_there_are(url: str):
    async with opened(url, max_bytes=200_000) as store:
        steps: list[int] = []
        connection = store._entries._writer._connection
        for n in range(1_000):
            count = 0

            def step() -> None:
                nonlocal count
                count += 1

            connection.set_progress_handler(step, 1)
            await store.put(key(f"k{n}"), {"n": n})
            steps.append(count)
    assert steps[-1] < 3 * steps[10]


def open_together(paths: Sequence[Path], together: Barrier) -> None:
    for path in paths:
        together.wait(DEADLINE)
        for connection in _connect(path):
            connection.close()


def test_processes_that_begin_a_file_together_wait_for_each_other(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    places = ([tmp_path / f"{n}.db" for n in range(20)], spawn.Barrier(4))
    openers = [spawn.Process(target=open_together, args=places) for _ in range(4)]
    for process in openers:
        process.start()
    for process in openers:
        process.join()
    assert [process.exitcode for process in openers] == [0] * 4
