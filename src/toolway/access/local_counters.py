"""Counters of what was used, in this process, by a clock that never jumps."""

from __future__ import annotations

import time
from collections import deque

from toolway.types import Quota

MOST_MOVING = 10_000
"""Windows of more move no more, but begin with the first use: a moving one remembers each."""

SWEEP = 1_000
"""So many accounts are counted before those are forgotten whose time is over."""


class LocalCounters:
    """Counts for quotas, as `RedisCounters` does; its methods wait for nothing."""

    def __init__(self) -> None:
        self._hits: dict[Quota, deque[float]] = {}
        self._counts: dict[Quota, tuple[int, float]] = {}
        """How many, and when a new window begins."""

    async def take(self, quota: Quota) -> bool:
        """Count one; False, and it is not counted, when the quota is used up."""
        now = time.monotonic()
        if not is_moving(quota):
            count, end = self._window(quota, now)
            if count < quota.most:
                self._counts[quota] = (count + 1, end)
            return count < quota.most
        hits = self._recent(quota, now)
        if len(hits) >= quota.most:
            return False
        hits.append(now)
        return True

    async def add(self, quota: Quota, number: int) -> None:
        """Count what was used already, beyond the quota too."""
        count, end = self._window(quota, time.monotonic())
        self._counts[quota] = (count + number, end)

    async def left(self, quota: Quota) -> tuple[int, float]:
        """How many are left, and in how many seconds there will be more."""
        now = time.monotonic()
        if not is_moving(quota):
            count, end = self._window(quota, now)
            return max(0, quota.most - count), end - now if count else 0.0
        hits = self._recent(quota, now)
        return quota.most - len(hits), hits[0] + quota.seconds - now if hits else 0.0

    def _recent(self, quota: Quota, now: float) -> deque[float]:
        hits = self._hits.get(quota)
        if hits is None:
            self._forget_old(now)
            hits = self._hits[quota] = deque()
        while hits and hits[0] <= now - quota.seconds:
            hits.popleft()
        return hits

    def _window(self, quota: Quota, now: float) -> tuple[int, float]:
        count, end = self._counts.get(quota, (0, 0.0))
        if now < end:
            return count, end
        self._forget_old(now)
        return 0, now + quota.seconds

    def _forget_old(self, now: float) -> None:
        if len(self._counts) + len(self._hits) >= SWEEP:
            self._counts = {quota: kept for quota, kept in self._counts.items() if now < kept[1]}
            self._hits = {q: hits for q, hits in self._hits.items() if hits and hits[-1] > now - q.seconds}


def is_moving(quota: Quota) -> bool:
    """Whether the window of a quota moves with the time."""
    return quota.unit != "tokens" and quota.most <= MOST_MOVING
