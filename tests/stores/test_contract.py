"""What every kind of store promises, and what each adds to that."""

from __future__ import annotations

import multiprocessing
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from toolway.config import load_settings
from toolway.errors import ConfigError
from toolway.stores import Store, open_store
from toolway.stores.sqlite import SqliteStore


@asynccontextmanager
async def opened(kind: str, folder: Path, **settings: object) -> AsyncIterator[Store]:
    url = "memory:" if kind == "memory" else f"sqlite:///{folder / 'store.db'}"
    async with open_store(load_settings({}, None, store=url, **settings)) as store:
        yield store


KINDS = pytest.mark.parametrize("kind", ["memory", "sqlite"])


@KINDS
async def test_what_is_put_can_be_got_again_and_again(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path) as store:
        value = {"text": "snow \u2603", "deep": [{"a": None}]}
        await store.put("k", value)
        assert [await store.get("k"), await store.get("k")] == [value, value]
        assert await store.get("another") is None


@KINDS
async def test_the_newest_value_of_a_key_counts(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path) as store:
        await store.put("k", {"n": 1})
        await store.put("k", {"n": 2})
        assert await store.get("k") == {"n": 2}


@KINDS
async def test_nobody_changes_what_another_one_reads(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path) as store:
        value = {"list": [1]}
        await store.put("k", value)
        value["list"].append(2)
        got = await store.get("k")
        assert got == {"list": [1]}
        got["list"].append(3)
        assert await store.get("k") == {"list": [1]}


@KINDS
async def test_a_value_is_gone_after_its_time(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path, store_ttl=1e-6) as store:
        await store.put("k", {"n": 1})
        assert await store.get("k") is None


@KINDS
async def test_the_oldest_goes_when_there_is_no_room(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path, store_max_bytes=250) as store:
        for key in ("a", "b", "c"):
            await store.put(key, {"text": "x" * 88})
        assert [await store.get(key) is not None for key in ("a", "b", "c")] == [False, True, True]


@KINDS
async def test_a_value_that_is_too_large_is_not_kept_and_harms_nobody(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path, store_max_bytes=250) as store:
        await store.put("large", {"text": "x" * 1000})
        await store.put("small", {})
        assert await store.get("large") is None
        assert await store.get("small") == {}


@KINDS
async def test_many_write_at_once(kind: str, tmp_path: Path):
    async with opened(kind, tmp_path) as store:
        async with anyio.create_task_group() as group:
            for n in range(50):
                group.start_soon(store.put, f"k{n % 10}", {"n": n})
        assert [(await store.get(f"k{n}"))["n"] % 10 for n in range(10)] == list(range(10))


def modes_in(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


async def test_a_file_outlives_its_store_and_is_for_its_owner_alone(tmp_path: Path):
    async with opened("sqlite", tmp_path) as store:
        await store.put("k", {"n": 1})
        modes = modes_in(tmp_path)
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    async with opened("sqlite", tmp_path) as store:
        assert await store.get("k") == {"n": 1}


async def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path):
    (tmp_path / "store.db").touch(0o644)
    async with opened("sqlite", tmp_path):
        assert modes_in(tmp_path)["store.db"] == 0o600


def write_many(path: Path, writer: int) -> None:
    async def main() -> None:
        async with SqliteStore.open(path, ttl=60, max_bytes=2**20) as store:
            for n in range(25):
                await store.put(f"{writer}-{n}", {"n": n})

    anyio.run(main)


async def test_several_processes_write_into_one_file(tmp_path: Path):
    path = tmp_path / "store.db"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(path, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        await anyio.to_thread.run_sync(process.join)
    assert [process.exitcode for process in writers] == [0, 0, 0]
    async with SqliteStore.open(path, ttl=60, max_bytes=2**20) as store:
        found = [await store.get(f"{writer}-{n}") for writer in range(3) for n in range(25)]
    assert found == [{"n": n} for _ in range(3) for n in range(25)]


async def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    (tmp_path / "store.db").write_text("something else altogether, long enough for a header")
    with pytest.raises(ConfigError, match=r"TOOLWAY_STORE: .*store\.db cannot be used"):
        async with opened("sqlite", tmp_path):
            pass


async def test_trouble_after_the_start_is_logged_and_looks_like_a_miss(tmp_path: Path, caplog):
    async with opened("sqlite", tmp_path) as store:
        await store.put("k", {"n": 1})
        store._connection.execute("DROP TABLE entries")
        await store.put("k", {"n": 2})
        assert await store.get("k") is None
    assert "the store failed" in caplog.text


@pytest.mark.parametrize("url", ["memory", "sqlite:", "sqlite:///", "redis://x", "sqlite://x"])
def test_a_store_that_does_not_exist_is_refused(url: str):
    with pytest.raises(ConfigError, match="TOOLWAY_STORE"):
        load_settings({"TOOLWAY_STORE": url}, None)
