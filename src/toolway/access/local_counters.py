"""Counters of what was used, in this process, by a clock that never jumps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from toolway.types import Quota

MOST_MOVING = 10_000
"""Windows of more move no more, but begin with the first use: a moving one remembers each."""

SWEEP = 1_000
"""So many accounts are counted before those are forgotten whose time is over."""


class Standing(NamedTuple):
    """How it stands with a quota: how many are left, and in how many seconds there will be more."""

    quota: Quota
    left: int
    seconds: float
    is_over: bool = False
    """Whether it was used up already."""


class LocalCounters:
    """Counts for quotas, as `RedisCounters` does; its methods wait for nothing."""

    def __init__(self) -> None:
        self._hits: dict[Quota, deque[float]] = {}
        self._counts: dict[Quota, tuple[int, float]] = {}
        """How many, and when a new window begins."""

    def take(self, quotas: Sequence[Quota]) -> list[Standing]:
        """Count one for each rate among them, if none of all is used up; tokens are only looked at."""
        now = time.monotonic()
        found = [self._standing(quota, now) for quota in quotas]
        if any(standing.is_over for standing in found):
            return found
        return [standing if _is_looked_at(standing.quota) else self._one(standing, now) for standing in found]

    def add(self, used: Mapping[Quota, int]) -> None:
        """Count what was used already, beyond the quota too."""
        now = time.monotonic()
        for quota, number in used.items():
            count, end = self._window(quota, now)
            self._counts[quota] = (count + number, end)

    def _standing(self, quota: Quota, now: float) -> Standing:
        if is_moving(quota):
            hits = self._recent(quota, now)
            left, seconds = quota.most - len(hits), hits[0] + quota.seconds - now if hits else 0.0
        else:
            count, end = self._window(quota, now)
            left, seconds = quota.most - count, end - now if count else 0.0
        return Standing(quota, max(0, left), seconds, left <= 0)

    def _one(self, standing: Standing, now: float) -> Standing:
        quota = standing.quota
        if is_moving(quota):
            self._hits[quota].append(now)
        else:
            count, end = self._window(quota, now)
            self._counts[quota] = (count + 1, end)
        return Standing(quota, standing.left - 1, standing.seconds or quota.seconds)

    def _recent(self, quota: Quota, now: float) -> deque[float]:
        hits = self._hits.get(quota)
        if hits is None:
            self._forget_old(now)
            hits = self._hits[quota] = deque()
        oldest = now - quota.seconds
        while hits and hits[0] <= oldest:
            hits.popleft()
        return hits

    def _window(self, quota: Quota, now: float) -> tuple[int, float]:
        known = self._counts.get(quota)
        if known is not None and now < known[1]:
            return known
        self._forget_old(now)
        return 0, now + quota.seconds

    def _forget_old(self, now: float) -> None:
        if len(self._counts) + len(self._hits) >= SWEEP:
            self._counts = {quota: kept for quota, kept in self._counts.items() if now < kept[1]}
            self._hits = {q: hits for q, hits in self._hits.items() if hits and hits[-1] > now - q.seconds}


def is_moving(quota: Quota) -> bool:
    """Whether the window of a quota moves with the time."""
    return quota.most <= MOST_MOVING and quota.unit != "tokens"


def _is_looked_at(quota: Quota) -> bool:
    return quota.unit == "tokens"
