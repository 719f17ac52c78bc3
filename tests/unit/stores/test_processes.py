"""Several processes on one store."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from typing import Any

import anyio
import pytest

from tests.unit.stores.test_contract import DEADLINE, key, opened

WRITERS = 3
ROUNDS = range(40)

shared = pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)


def work(url: str, writer: int, together: Barrier, said: Any) -> None:
    async def main() -> None:
        async with opened(url) as store:
            for n in ROUNDS:
                await store.put(key(f"{writer}-{n}"), {"n": n})
            await anyio.to_thread.run_sync(together.wait, DEADLINE)
            added = [await store.add(key(f"one-{n}"), {"by": writer}) for n in ROUNDS]
            await anyio.to_thread.run_sync(together.wait, DEADLINE)
            owners = [(await store.get(key(f"one-{n}")))["by"] for n in ROUNDS]
            await anyio.to_thread.run_sync(together.wait, DEADLINE)
            deleted = [await store.delete(key(f"one-{n}")) for n in ROUNDS]
            said.put((writer, added, owners, deleted))

    anyio.run(main)


@shared
async def test_several_processes_write_and_each_thing_is_won_by_one(store_url: str):
    spawn = multiprocessing.get_context("spawn")
    together, said = spawn.Barrier(WRITERS), spawn.SimpleQueue()
    writers = [spawn.Process(target=work, args=(store_url, n, together, said)) for n in range(WRITERS)]
    for process in writers:
        process.start()
    for process in writers:
        await anyio.to_thread.run_sync(process.join)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    _, added, owners, deleted = zip(*sorted(said.get() for _ in writers), strict=True)
    for n in ROUNDS:
        (owner,) = {told[n] for told in owners}
        assert [told[n] for told in added] == [writer == owner for writer in range(WRITERS)]
        assert [told[n] for told in deleted].count(True) == 1
    async with opened(store_url) as store:
        found = [await store.get(key(f"{writer}-{n}")) for writer in range(WRITERS) for n in ROUNDS]
    assert found == [{"n": n} for _ in range(WRITERS) for n in ROUNDS]
