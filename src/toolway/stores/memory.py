"""The store of one process: bounded, forgotten after a while and at the end of the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Any

import orjson

from toolway.errors import StoreError
from toolway.stores.logging import Trouble, too_large
from toolway.types import JSON


class MemoryStore:
    """Values of at most `max_bytes` together, each for `ttl` seconds unless it has its own; the oldest go first.

    They are kept as JSON text, so that their size is known and nobody can change what another one reads.
    """

    def __init__(self, *, ttl: float = 86_400.0, max_bytes: int = 64 * 2**20) -> None:
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """In the order in which they were written."""
        self._ends: list[tuple[float, str]] = []
        """A heap of when which key ends; holds also those that were replaced or went before."""
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._size = 0
        self._trouble = Trouble()

    async def put(self, key: str, value: JSON, *, ttl: float | None = None) -> None:
        """Keep `value`, in place of what `key` had."""
        text = _text(value)
        self._forget(key)
        if len(text) > self._max_bytes:
            self._trouble.note(too_large(len(text), self._max_bytes))
        else:
            self._keep(key, text, ttl)

    async def get(self, key: str) -> JSON | None:
        """The value, or None when there is none (any more)."""
        if not self._has(key):
            return None
        value: Any = orjson.loads(self._entries[key][1])
        return dict(value)

    async def add(self, key: str, value: JSON, *, ttl: float | None = None) -> bool:
        """Keep `value` unless `key` has one; whether it was kept."""
        text = _text(value)
        if len(text) > self._max_bytes:
            raise StoreError(too_large(len(text), self._max_bytes))
        if self._has(key):
            return False
        self._forget(key)
        self._keep(key, text, ttl)
        return True

    async def delete(self, key: str) -> bool:
        """Forget what `key` has; whether it had something."""
        had = self._has(key)
        self._forget(key)
        return had

    def _has(self, key: str) -> bool:
        return self._entries.get(key, (0.0, b""))[0] > time.monotonic()

    def _keep(self, key: str, text: bytes, ttl: float | None) -> None:
        until = time.monotonic() + (self._ttl if ttl is None else ttl)
        self._entries[key] = (until, text)
        self._size += len(text)
        heappush(self._ends, (until, key))
        self._forget_the_expired()
        while self._size > self._max_bytes:
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


def _text(value: JSON) -> bytes:
    """The value as JSON, in no more memory than that takes: what orjson gives keeps hold of the larger buffer in
    which it was written.
    """
    return bytes(memoryview(orjson.dumps(value)))
