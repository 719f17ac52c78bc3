"""CPU-bound work on a server's tools, in a thread: one at a time, since the event loop may wait for each of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

_T = TypeVar("_T")

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("the limiter of CPU-bound work")


async def run_one_at_a_time(work: Callable[[], _T]) -> _T:
    """What `work` returns; it begins when no other work runs here. A caller that is cancelled does not wait for it."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(1)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Have the garbage collector pass over what is built in the block, which lives long, now and later.

    It stops all threads while it looks: 0.1 s for the half a million values of a large document.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
