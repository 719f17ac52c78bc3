"""Counters of what was used, in this process, by a clock that never jumps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from toolway.types import Quota

MAX_MOVING = 10_000
"""Windows of more move no more, but begin with the first use: a moving one remembers each."""

SWEEP = 1_000
"""So many accounts are counted before those are forgotten whose time is over."""


class QuotaStatus(NamedTuple):
    """How it stands with a quota: how many are left, and in how many seconds there will be more."""

    quota: Quota
    left: int
    seconds: float
    is_over: bool = False
    """Whether it was used up already."""


class LocalCounters:
    """Counts for quotas, as `RedisCounters` does; its methods wait for nothing."""

    def __init__(self) -> None:
        self._windows: dict[Quota, _MovingWindow | _FixedWindow] = {}

    def take(self, quotas: Sequence[Quota]) -> list[QuotaStatus]:
        """Count one for each rate among them, if none of all is used up; tokens are only looked at."""
        now = time.monotonic()
        windows = [self._windows.get(quota) or self._open(quota, now) for quota in quotas]
        looks = [window.remaining(now) for window in windows]
        if min(looks)[0] <= 0:
            return [
                QuotaStatus(quota, max(0, left), seconds, left <= 0)
                for quota, (left, seconds) in zip(quotas, looks, strict=True)
            ]
        found = []
        for quota, window, (left, seconds) in zip(quotas, windows, looks, strict=True):
            if quota.unit == "tokens":
                found.append(QuotaStatus(quota, left, seconds))
            else:
                window.add(1, now)
                found.append(QuotaStatus(quota, left - 1, seconds or quota.seconds))
        return found

    def add(self, quota: Quota, number: int) -> None:
        """Count what was used already, beyond the quota too."""
        now = time.monotonic()
        window = self._windows.get(quota) or self._open(quota, now)
        window.remaining(now)
        window.add(number, now)

    def _open(self, quota: Quota, now: float) -> _MovingWindow | _FixedWindow:
        if len(self._windows) >= SWEEP:
            self._windows = {
                known: window for known, window in self._windows.items() if window.ends_after(now)
            }
        window = self._windows[quota] = (_MovingWindow if is_moving(quota) else _FixedWindow)(quota)
        return window


class _MovingWindow:
    """A window of the last seconds, wherever it begins: it remembers each use."""

    def __init__(self, quota: Quota) -> None:
        self._most, self._seconds = quota.most, quota.seconds
        self._hits: deque[float] = deque()

    def remaining(self, now: float) -> tuple[int, float]:
        """How many are left, and in how many seconds there will be more."""
        hits, oldest = self._hits, now - self._seconds
        while hits and hits[0] <= oldest:
            hits.popleft()
        return self._most - len(hits), hits[0] - oldest if hits else 0.0

    def add(self, number: int, now: float) -> None:
        """Count so many, after a look."""
        self._hits.extend([now] * number)

    def ends_after(self, now: float) -> bool:
        """Whether something in it counts now."""
        return bool(self._hits) and self._hits[-1] > now - self._seconds


class _FixedWindow:
    """A window that begins with the first use."""

    def __init__(self, quota: Quota) -> None:
        self._most, self._seconds = quota.most, quota.seconds
        self._count, self._end = 0, 0.0

    def remaining(self, now: float) -> tuple[int, float]:
        """How many are left, and in how many seconds there will be more."""
        if now >= self._end:
            self._count, self._end = 0, now + self._seconds
        return self._most - self._count, self._end - now if self._count else 0.0

    def add(self, number: int, now: float) -> None:
        """Count so many, after a look."""
        self._count += number

    def ends_after(self, now: float) -> bool:
        """Whether something in it counts now."""
        return now < self._end


def is_moving(quota: Quota) -> bool:
    """Whether the window of a quota moves with the time."""
    return quota.most <= MAX_MOVING and quota.unit != "tokens"
