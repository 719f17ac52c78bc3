"""CPU-bound work in a thread: one at a time, and the garbage collector passes over what it makes."""

from __future__ import annotations

import gc
import threading
from functools import partial
from typing import Any

import anyio

from toolway.tools.cpu_bound import no_garbage_collection, run_one_at_a_time


async def test_one_work_begins_when_the_other_has_ended():
    begun: list[str] = []
    is_released = threading.Event()

    def work(name: str) -> str:
        begun.append(name)
        is_released.wait(60)
        return name

    async with anyio.create_task_group() as group:
        group.start_soon(run_one_at_a_time, partial(work, "first"))
        group.start_soon(run_one_at_a_time, partial(work, "second"))
        await anyio.wait_all_tasks_blocked()
        assert begun == ["first"]
        is_released.set()
        assert await run_one_at_a_time(partial(work, "third")) == "third"
    assert begun == ["first", "second", "third"]


def test_what_is_made_in_one_piece_is_not_looked_at_while_it_is_made_or_later():
    looked_at: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        looked_at.append(phase)

    gc.callbacks.append(note)
    try:
        with no_garbage_collection():
            made: list[Any] = [[number] for number in range(100_000)]
        assert looked_at == []
        assert len(made) not in map(len, (each for each in gc.get_objects() if type(each) is list))
        assert gc.isenabled()
    finally:
        gc.callbacks.remove(note)
        gc.unfreeze()
