"""The store of one process: bounded, forgotten after a while and at the end of the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

import orjson

from toolway.types import JSON


class MemoryStore:
    """Values of at most `max_bytes` together, each for `ttl` seconds; the oldest go first.

    They are kept as JSON text, so that their size is known and nobody can change what another one reads.
    """

    def __init__(self, *, ttl: float = 86_400.0, max_bytes: int = 64 * 2**20) -> None:
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._size = 0

    async def put(self, key: str, value: JSON) -> None:
        """Keep `value`, in place of what `key` had."""
        self._forget(key)
        text = orjson.dumps(value)
        self._entries[key] = (time.monotonic() + self._ttl, text)
        self._size += len(text)
        while self._entries and (self._size > self._max_bytes or self._oldest_is_over()):
            self._forget(next(iter(self._entries)))

    async def get(self, key: str) -> JSON | None:
        """The value, or None when there is none (any more)."""
        until, text = self._entries.get(key, (0.0, b""))
        if until <= time.monotonic():
            return None
        value: Any = orjson.loads(text)
        return dict(value)

    def _forget(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self._size -= len(entry[1])

    def _oldest_is_over(self) -> bool:
        return next(iter(self._entries.values()))[0] <= time.monotonic()
