"""Entries in Redis (or Valkey): shared by processes on several machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from toolway.errors import ConfigError
from toolway.net.hosts import masked
from toolway.stores.store import AnyEntryKind, AnyKey, Cooldown, EntriesError

T = TypeVar("T")

PREFIX = "toolway:"
"""In front of each key, so that others can use the same database."""

CONNECTIONS = 32
"""So many connections each process opens at most; who finds none waits for one."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
REST_SECONDS = 5.0
"""A server that did not answer in time is left alone for so long."""


AT_ONCE = 1000
"""Entries that one command asks for."""

_FAILURES = (exceptions.RedisError, OSError)
_LONGEST_TTL = 10**14
"""Milliseconds, three thousand years; more would not fit into Redis's clock."""


_SHARES = """
local entry, sizes, ages, ends = unpack(KEYS)
local prefix, digest = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(gone)
    local size = tonumber(redis.call('HGET', sizes, gone) or 0)
    redis.call('HDEL', sizes, gone)
    redis.call('ZREM', ages, gone)
    redis.call('ZREM', ends, gone)
    if size > 0 then redis.call('HINCRBY', sizes, 'all', -size) end
end

local function last(key, milliseconds)
    if redis.call('PTTL', key) < milliseconds then redis.call('PEXPIRE', key, milliseconds) end
end

local function keep(size, milliseconds)
    redis.call('ZADD', ages, time[1] * 1000000 + time[2], digest)
    redis.call('ZADD', ends, now + milliseconds, digest)
    redis.call('HSET', sizes, digest, size)
    redis.call('HINCRBY', sizes, 'all', size)
    for _, key in ipairs({sizes, ages, ends}) do last(key, milliseconds) end
end
"""
"""An owner's share beside the entries themselves: how large which is, when it was written, when it ends."""

_WRITE = (
    _SHARES
    + """
local text, milliseconds, room, overhead, is_new = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
if is_new == '1' and redis.call('EXISTS', entry) == 1 then return 0 end
redis.call('SET', entry, text, 'PX', milliseconds) -- first: a full Redis refuses it only as the first write
forget(digest)
keep(#text + overhead, milliseconds)
for _, ended in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)) do forget(ended) end
while tonumber(redis.call('HGET', sizes, 'all')) > room do
    local oldest = redis.call('ZRANGE', ages, 0, 0)[1]
    if not oldest or oldest == digest then break end
    forget(oldest)
    redis.call('DEL', prefix .. oldest)
end
return 1
"""
)

_REMOVE = _SHARES + "forget(digest) return redis.call('DEL', entry)"


_RENEW = (
    _SHARES
    + """
local milliseconds = tonumber(ARGV[3])
for number = 4, #ARGV do
    if redis.call('PEXPIRE', prefix .. ARGV[number], milliseconds) == 0 then return 0 end
    redis.call('ZADD', ages, time[1] * 1000000 + time[2] + number - 4, ARGV[number])
    redis.call('ZADD', ends, now + milliseconds, ARGV[number])
end
for _, key in ipairs({sizes, ages, ends}) do last(key, milliseconds) end
return 1
"""
)


class RedisEntries:
    """Entries of at most `max_bytes` for each owner; the oldest go first.

    How much room all have together, and what goes when it is full, is Redis's `maxmemory` and `maxmemory-policy`.
    Connections that died are opened again.
    """

    overhead = 400
    """What an entry takes besides its value: its key, its place in its owner's share."""

    def __init__(self, redis: Redis, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._redis = redis
        self._write = redis.register_script(_WRITE)
        self._renew = redis.register_script(_RENEW)
        self._remove = redis.register_script(_REMOVE)
        self._rest = Cooldown(REST_SECONDS)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, max_bytes: int) -> AsyncIterator[RedisEntries]:
        """Those at `url`, as redis-py reads URLs. Raises ConfigError when the server does not answer."""
        pool = connections(url)
        async with Redis.from_pool(pool) as redis:
            try:
                await redis.ping()
            except _FAILURES as error:
                raise ConfigError(_why_not(url, error)) from None
            yield cls(redis, max_bytes=max_bytes)

    async def read(self, *keys: AnyKey) -> list[bytes | None]:
        """What each key has."""
        names = [PREFIX + key.digest for key in keys]
        texts: list[Any] = await self._twice(lambda: self._redis.mget(names))
        return texts

    async def write(self, key: AnyKey, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        await self._twice(lambda: self._keep(key, text, ttl, is_new=False))

    async def write_new(self, key: AnyKey, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        return bool(await self._once(lambda: self._keep(key, text, ttl, is_new=True)))

    async def remove(self, key: AnyKey) -> bool:
        """Forget what `key` has; whether it had something."""
        return bool(await self._once(lambda: self._remove(_keys(key), [PREFIX, key.digest])))

    async def renew(self, keys: Sequence[AnyKey], ttl: float) -> bool:
        """Let these live as if they were written now."""
        places = [*_keys(keys[0]), *(PREFIX + key.digest for key in keys[1:])]
        args: list[Any] = [PREFIX, keys[0].digest, _milliseconds(ttl), *(key.digest for key in keys)]
        return bool(await self._twice(lambda: self._renew(places, args)))

    async def newest(self, owner: str, most: int, after: str) -> list[tuple[str, bytes]]:
        """What an owner has, the last written first."""
        ages = f"{PREFIX}{owner}:ages"
        score = await self._twice(lambda: self._redis.zscore(ages, after)) if after else None
        since = "-inf" if score is None else f"({score!r}"
        members: Any = await self._twice(
            lambda: self._redis.zrevrangebyscore(ages, "+inf", since, start=0, num=most)
        )
        digests = [member.decode() for member in members]
        found: list[tuple[str, bytes]] = []
        for start in range(0, len(digests), AT_ONCE):
            part = digests[start : start + AT_ONCE]
            texts: list[Any] = await self._twice(partial(self._redis.mget, [PREFIX + one for one in part]))
            found += [(digest, text) for digest, text in zip(part, texts, strict=True) if text is not None]
        return found

    async def check(self) -> None:
        """See whether Redis takes something; a full one may still give."""
        await self._twice(lambda: self._redis.set(f"{PREFIX}check", b"", px=1000))

    def may_have(self, owner: str, kinds: Iterable[AnyEntryKind]) -> bool:
        """Only Redis knows."""
        return True

    def may_hold(self, key: AnyKey) -> bool:
        """Only Redis knows."""
        return True

    def _keep(self, key: AnyKey, text: bytes, ttl: float, *, is_new: bool) -> Awaitable[Any]:
        args: list[Any] = [
            PREFIX,
            key.digest,
            text,
            _milliseconds(ttl),
            self.max_bytes,
            self.overhead,
            int(is_new),
        ]
        return self._write(_keys(key), args)

    async def _twice(self, command: Callable[[], Awaitable[T]]) -> T:
        """A command that may be repeated, as it is when the connection turns out to be dead."""
        try:
            return await self._once(command)
        except EntriesError as error:
            if not isinstance(error.__cause__, exceptions.ConnectionError):
                raise
            return await self._once(command)

    async def _once(self, command: Callable[[], Awaitable[T]]) -> T:
        self._rest.check()
        try:
            # redis-py tidies up behind one cancellation, but anyio's come again and again.
            with anyio.CancelScope(shield=True):
                answer = await command()
        except exceptions.TimeoutError as error:
            self._rest.begin()
            raise EntriesError(error) from error
        except _FAILURES as error:
            raise EntriesError(error) from error
        return answer


def connections(url: str, *, answer_within: float = ANSWER_SECONDS) -> BlockingConnectionPool:
    """A pool of connections to the server at `url`, none of which is open yet."""
    return BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=answer_within,
        socket_connect_timeout=min(CONNECT_SECONDS, answer_within),
        socket_timeout=answer_within,
        # Repeated here where it is harmless; a repeated `write_new` would find what it wrote itself.
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


def _milliseconds(ttl: float) -> int:
    return max(1, round(min(ttl * 1000, _LONGEST_TTL)))


def _keys(key: AnyKey) -> list[str]:
    """The entry, and its owner's share."""
    return [PREFIX + key.digest, *(f"{PREFIX}{key.owner}:{part}" for part in ("sizes", "ages", "ends"))]


def _why_not(url: str, error: Exception) -> str:
    place = masked(url.partition("?")[0])
    if isinstance(error, exceptions.AuthenticationError):
        return f"TOOLWAY_STORE: {place} refuses the user name or password: {error}."
    reason = str(error).rstrip(".") or type(error).__name__
    return f"TOOLWAY_STORE: {place} cannot be used: {reason}."
