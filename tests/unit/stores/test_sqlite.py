"""What the store in a file adds to the contract."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from tests.unit.stores.test_contract import DEADLINE, key, opened
from toolway.errors import ConfigError, StoreError
from toolway.stores.sqlite import _connect


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


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
        store._entries._connection.execute("DROP TABLE entries")
        for _ in range(20):
            await store.put(key("k"), {"n": 2})
            assert await store.get(key("k")) is None
    assert caplog.text.count("the store failed") == 1


async def test_in_trouble_nothing_is_certain(url: str):
    async with opened(url) as store:
        store._entries._connection.execute("DROP TABLE entries")
        with pytest.raises(StoreError):
            await store.add(key("k"), {})
        with pytest.raises(StoreError):
            await store.delete(key("k"))


async def test_a_file_of_the_first_version_goes_on_in_the_order_in_which_it_was_written(
    url: str, tmp_path: Path
):
    with sqlite3.connect(tmp_path / "store.db") as old:
        old.executescript(
            "CREATE TABLE entries (key TEXT PRIMARY KEY, until REAL, size INTEGER, value BLOB);"
            "CREATE INDEX entries_by_age ON entries (until, size, key);"
        )
        text = b'{"text": "%s"}' % (b"x" * 88)
        for name in ("a", "b", "a"):
            entry = (key(name).digest, time.time() + 60, len(text), text)
            old.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", entry)
    old.close()
    async with opened(url, max_bytes=250) as store:
        await store.put(key("c"), {"text": "x" * 88})
        assert [await store.get(key(name)) is not None for name in ("a", "b", "c")] == [True, False, True]


def open_together(path: Path, together: Barrier) -> None:
    together.wait(DEADLINE)
    _connect(path).close()


def test_processes_that_begin_a_file_together_wait_for_each_other(tmp_path: Path):
    spawn = multiprocessing.get_context("spawn")
    for n in range(3):
        together = spawn.Barrier(4)
        place = (tmp_path / f"{n}.db", together)
        openers = [spawn.Process(target=open_together, args=place) for _ in range(4)]
        for process in openers:
            process.start()
        for process in openers:
            process.join()
        assert [process.exitcode for process in openers] == [0] * 4
