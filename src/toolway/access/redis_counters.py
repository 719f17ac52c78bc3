"""Counters of what was used, by the library `limits`, in a Redis that all processes share."""

from __future__ import annotations

import time
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter, RateLimiter
from limits.errors import StorageError

from toolway.access.local_counters import is_moving
from toolway.stores.redis import connections
from toolway.types import Quota

PREFIX = "toolway:limits"
ANSWER_SECONDS = 1.0
"""A Redis that takes longer counts as one that is away: every request waits for it."""


class RedisCounters:
    """Counts for quotas. Each method may raise `errors`, when Redis cannot be reached; it is asked by none before."""

    errors = (StorageError, OSError)

    def __init__(self, url: str) -> None:
        self._pool = connections(url, answer_within=ANSWER_SECONDS)
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": self._pool}
        storage = RedisStorage("redis://", wrap_exceptions=True, key_prefix=PREFIX, **options)
        self._moving = MovingWindowRateLimiter(storage)
        self._fixed = FixedWindowRateLimiter(storage)

    async def close(self) -> None:
        """Let the connections go."""
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
        return self._moving if is_moving(quota) else self._fixed


def _item(quota: Quota) -> RateLimitItemPerSecond:
    return RateLimitItemPerSecond(quota.most, quota.seconds)
