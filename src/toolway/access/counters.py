"""Counters of what was used, by the library `limits`: in this process, or in a Redis that all processes share."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import MovingWindowSupport, RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter
from limits.errors import StorageError

from toolway.types import Quota

PREFIX = "toolway:limits"
ANSWER_SECONDS = 1.0
"""A Redis that takes longer counts as one that is away: every request waits for it."""

MOST_MOVING = 10_000
"""Quotas above this are counted in windows that begin with the first use, not with each."""

SWEEP = 1_000
"""So many accounts are counted before those are forgotten whose time is over."""


class LocalStorage(Storage, MovingWindowSupport):
    """What `limits` counts in, for one process. Its clock never jumps, and no task or thread tidies up behind it."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, tuple[int, float]] = {}
        self._hits: dict[str, tuple[int, deque[float]]] = {}

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a count, which begins anew `expiry` seconds after it began."""
        now = time.monotonic()
        count, end = self._counts.get(key, (0, 0.0))
        if now >= end:
            count, end = 0, now + expiry
            self._sweep(now)
        self._counts[key] = (count + amount, end)
        return count + amount

    async def get(self, key: str) -> int:
        """The count."""
        count, end = self._counts.get(key, (0, 0.0))
        return count if time.monotonic() < end else 0

    async def get_expiry(self, key: str) -> float:
        """The Unix time at which a count begins anew."""
        _, end = self._counts.get(key, (0, 0.0))
        return time.time() + max(0.0, end - time.monotonic())

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Whether fewer than `limit` were acquired in the last `expiry` seconds; then so many more are."""
        now = time.monotonic()
        _, hits = self._hits.setdefault(key, (expiry, deque()))
        while hits and hits[0] <= now - expiry:
            hits.popleft()
        if len(hits) + amount > limit:
            return False
        hits.extend([now] * amount)
        self._sweep(now)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest of the last `expiry` seconds was acquired, in Unix time, and how many were."""
        now = time.monotonic()
        recent = [hit for hit in self._hits.get(key, (0, ()))[1] if hit > now - expiry]
        return time.time() - (now - recent[0] if recent else 0.0), len(recent)

    def _sweep(self, now: float) -> None:
        if len(self._counts) + len(self._hits) < SWEEP:
            return
        self._counts = {key: kept for key, kept in self._counts.items() if now < kept[1]}
        self._hits = {
            key: kept for key, kept in self._hits.items() if kept[1] and kept[1][-1] > now - kept[0]
        }

    @property
    def base_exceptions(self) -> type[Exception]:
        """It has none."""
        return ValueError

    async def check(self) -> bool:
        """It is always there."""
        return True

    async def reset(self) -> int | None:
        """Forget everything."""
        self._counts.clear()
        self._hits.clear()
        return None

    async def clear(self, key: str) -> None:
        """Forget one account."""
        self._counts.pop(key, None)
        self._hits.pop(key, None)


class Counters:
    """Counts for quotas. Each method may raise `errors`, when what it counts in cannot be reached."""

    def __init__(self, storage: Storage, pool: Any = None) -> None:
        self.errors = (StorageError, OSError)
        self._moving = MovingWindowRateLimiter(storage)
        self._fixed = FixedWindowRateLimiter(storage)
        self._pool = pool

    @classmethod
    def local(cls) -> Counters:
        """Those of this process."""
        return cls(LocalStorage())

    @classmethod
    def redis(cls, url: str) -> Counters:
        """Those of all processes that use this Redis. It is not asked for anything yet."""
        from toolway.stores.redis import connections  # noqa: PLC0415 - its package is an extra

        pool = connections(url, answer_within=ANSWER_SECONDS)
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": pool, "key_prefix": PREFIX}
        return cls(RedisStorage("redis://", wrap_exceptions=True, **options), pool)

    async def close(self) -> None:
        """Let the connections go."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def take(self, quota: Quota) -> bool:
        """Count one; False when the quota is used up."""
        return await self._limiter(quota).hit(_item(quota), quota.account, quota.unit)

    async def add(self, quota: Quota, number: int) -> None:
        """Count what was used already, beyond the quota too."""
        await self._fixed.hit(_item(quota), quota.account, quota.unit, cost=number)

    async def left(self, quota: Quota) -> tuple[int, float]:
        """How many are left, and in how many seconds there will be more."""
        stats = await self._limiter(quota).get_window_stats(_item(quota), quota.account, quota.unit)
        return max(0, stats.remaining), min(max(0.0, stats.reset_time - time.time()), float(quota.seconds))

    def _limiter(self, quota: Quota) -> RateLimiter:
        """A moving window remembers each that was taken, which is too much for many."""
        return self._moving if quota.unit != "tokens" and quota.most <= MOST_MOVING else self._fixed


def _item(quota: Quota) -> RateLimitItemPerSecond:
    return RateLimitItemPerSecond(quota.most, quota.seconds)
