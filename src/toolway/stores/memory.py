"""The entries of one process: bounded, forgotten after a while and at the end of the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from heapq import heapify, heappop, heappush

from toolway.stores.store import Key


class MemoryEntries:
    """Values of at most `max_bytes` together; the oldest go first."""

    def __init__(self, *, max_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """In the order in which they were written."""
        self._ends: list[tuple[float, str]] = []
        """A heap of when which key ends; holds also those that were replaced or went before."""
        self._size = 0

    async def read(self, key: Key) -> bytes | None:
        """What `key` has."""
        return self._entries[key.digest][1] if self._has(key) else None

    async def write(self, key: Key, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        self._forget(key.digest)
        self._keep(key.digest, text, ttl)

    async def write_new(self, key: Key, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        if self._has(key):
            return False
        await self.write(key, text, ttl)
        return True

    async def remove(self, key: Key) -> bool:
        """Forget what `key` has; whether it had something."""
        had = self._has(key)
        self._forget(key.digest)
        return had

    def _has(self, key: Key) -> bool:
        return self._entries.get(key.digest, (0.0, b""))[0] > time.monotonic()

    def _keep(self, key: str, text: bytes, ttl: float) -> None:
        until = time.monotonic() + ttl
        # A copy takes no more memory than it must: what orjson gives keeps hold of the larger buffer that it wrote.
        self._entries[key] = (until, bytes(memoryview(text)))
        self._size += len(text)
        heappush(self._ends, (until, key))
        self._forget_the_expired()
        while self._size > self.max_bytes:
            self._forget(next(iter(self._entries)))
        if len(self._ends) > 2 * len(self._entries) + 64:
            self._ends = [(until, key) for key, (until, _) in self._entries.items()]
            heapify(self._ends)

    def _forget_the_expired(self) -> None:
        now = time.monotonic()
        while self._ends and self._ends[0][0] <= now:
            until, key = heappop(self._ends)
            if key in self._entries and self._entries[key][0] == until:
                self._forget(key)

    def _forget(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self._size -= len(entry[1])
