"""A gate between a test and the servers in other threads: they wait at it, the test sees them there and opens it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

DEADLINE = 60.0
"""Seconds after which a test gives up waiting; generous, since the machine may be busy."""


class Gate:
    """Closed when made. `await gate()` waits in any event loop; the test calls `wait_for_arrival` and `open`."""

    def __init__(self) -> None:
        self._open: Future[None] = Future()
        self._arrived = threading.Semaphore(0)

    async def __call__(self) -> None:
        self._arrived.release()
        await asyncio.shield(asyncio.wrap_future(self._open))

    def open(self) -> None:
        """Let everybody through, now and later."""
        if not self._open.done():
            self._open.set_result(None)

    def wait_for_arrival(self) -> None:
        """Return when one more has come to the gate."""
        assert self._arrived.acquire(timeout=DEADLINE), "nobody came to the gate"


class Departures:
    """Whose clients left before they had their whole answer, in the order in which they did."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._left = threading.Semaphore(0)

    def note(self, name: str) -> None:
        self.names.append(name)
        self._left.release()

    def wait(self) -> None:
        """Return when one more has left."""
        assert self._left.acquire(timeout=DEADLINE), "nobody left"
