"""The store of one process: bounded, forgotten after a while and at the end of the process."""

from __future__ import annotations

import time
from collections import OrderedDict

from toolway.types import JSON


class MemoryStore:
    """At most `max_entries` values, each for `ttl` seconds; the oldest go first."""

    def __init__(self, *, max_entries: int = 1000, ttl: float = 3600.0) -> None:
        self._entries: OrderedDict[str, tuple[float, JSON]] = OrderedDict()
        self._max_entries = max_entries
        self._ttl = ttl

    async def put(self, key: str, value: JSON) -> None:
        """Keep `value`, in place of what `key` had."""
        self._entries[key] = (time.monotonic() + self._ttl, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries or self._oldest_is_over():
            self._entries.popitem(last=False)

    async def get(self, key: str) -> JSON | None:
        """The value, or None when there is none (any more)."""
        until, value = self._entries.get(key, (0.0, None))
        return value if until > time.monotonic() else None

    def _oldest_is_over(self) -> bool:
        return next(iter(self._entries.values()))[0] <= time.monotonic()
