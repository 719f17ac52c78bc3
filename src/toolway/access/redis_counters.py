"""Counters of what was used, in a Redis that all processes share, by its own clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from toolway.access.local_counters import QuotaStatus, is_moving
from toolway.stores.redis import connections
from toolway.types import Quota

PREFIX = "toolway:limits"
ANSWER_SECONDS = 1.0
"""A Redis that takes longer counts as one that is away: every request waits for it."""

_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standings, is_over = {}, false
for number, key in ipairs(KEYS) do
    local kind, most, span = ARGV[3 * number - 2], tonumber(ARGV[3 * number - 1]), tonumber(ARGV[3 * number])
    local used, wait = 0, 0
    if kind == 'moving' then
        local oldest = redis.call('LINDEX', key, -1)
        while oldest and tonumber(oldest) <= now - span do
            redis.call('RPOP', key)
            oldest = redis.call('LINDEX', key, -1)
        end
        if oldest then used, wait = redis.call('LLEN', key), oldest + span - now end
    else
        used = tonumber(redis.call('GET', key) or 0)
        if used > 0 then wait = math.max(0, redis.call('PTTL', key)) end
    end
    is_over = is_over or used >= most
    standings[number] = {used, wait}
end
if is_over then return {1, standings} end
for number, key in ipairs(KEYS) do
    local kind, span, standing = ARGV[3 * number - 2], ARGV[3 * number], standings[number]
    if kind == 'moving' then
        redis.call('LPUSH', key, now)
        redis.call('PEXPIRE', key, span)
    elseif kind == 'fixed' and redis.call('INCRBY', key, 1) == 1 then
        redis.call('PEXPIRE', key, span)
    end
    if kind ~= 'looked at' then
        if standing[1] == 0 then standing[2] = tonumber(span) end
        standing[1] = standing[1] + 1
    end
end
return {0, standings}
"""
"""Count one for each key, if none is used up; whether one is, and of each how many are used and when (ms) more come."""

_ADD = """
for number, key in ipairs(KEYS) do
    redis.call('INCRBY', key, ARGV[2 * number - 1])
    if redis.call('PTTL', key) < 0 then redis.call('PEXPIRE', key, ARGV[2 * number]) end
end
"""


class RedisCounters:
    """Counts for quotas, in one round trip each. Each method may raise `errors`, when Redis cannot be reached."""

    errors = (RedisError, OSError)

    def __init__(self, url: str) -> None:
        self._pool = connections(url, answer_within=ANSWER_SECONDS)
        redis = Redis.from_pool(self._pool)
        self._take = redis.register_script(_TAKE)
        self._add = redis.register_script(_ADD)

    async def close(self) -> None:
        """Let the connections go."""
        await self._pool.disconnect()

    async def take(self, quotas: Sequence[Quota]) -> list[QuotaStatus]:
        """Count one for each rate among them, if none of all is used up; tokens are only looked at."""
        arguments = [part for quota in quotas for part in (_kind(quota), quota.most, quota.seconds * 1000)]
        is_denied, found = await self._take(_keys(quotas), arguments)
        return [
            QuotaStatus(quota, max(0, quota.most - used), wait / 1000, bool(is_denied) and used >= quota.most)
            for quota, (used, wait) in zip(quotas, found, strict=True)
        ]

    async def add(self, used: Mapping[Quota, int]) -> None:
        """Count what was used already, beyond the quota too."""
        arguments = [part for quota, number in used.items() for part in (number, quota.seconds * 1000)]
        await self._add(_keys(used), arguments)


def _kind(quota: Quota) -> str:
    if quota.unit == "tokens":
        return "looked at"
    return "moving" if is_moving(quota) else "fixed"


def _keys(quotas: Iterable[Quota]) -> list[str]:
    return [
        f"{PREFIX}:{q.account}:{q.unit}:{q.seconds}:{'moving' if is_moving(q) else 'fixed'}" for q in quotas
    ]
