"""Entries in Redis (or Valkey): shared by processes on several machines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from toolway.errors import ConfigError
from toolway.net.hosts import masked
from toolway.stores.store import EntriesError, Key, Rest

T = TypeVar("T")

PREFIX = "toolway:"
"""In front of each key, so that others can use the same database."""

CONNECTIONS = 32
"""So many connections each process opens at most; who finds none waits for one."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0

_FAILURES = (exceptions.RedisError, OSError)
_LONGEST_TTL = 10**14
"""Milliseconds, three thousand years; more would not fit into Redis's clock."""


class RedisEntries:
    """Values of at most `max_bytes` each.

    How much room all have together, and what goes when it is full, is Redis's `maxmemory` and `maxmemory-policy`.
    Connections that died are opened again.
    """

    overhead = 0

    def __init__(self, redis: Redis, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._redis = redis
        self._rest = Rest()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, max_bytes: int) -> AsyncIterator[RedisEntries]:
        """Those at `url`, as redis-py reads URLs. Raises ConfigError when the server does not answer."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=ANSWER_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            # Repeated here where it is harmless; a repeated `write_new` would find what it wrote itself.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        async with Redis.from_pool(pool) as redis:
            try:
                await redis.ping()
            except _FAILURES as error:
                raise ConfigError(_why_not(url, error)) from None
            yield cls(redis, max_bytes=max_bytes)

    async def read(self, key: Key) -> bytes | None:
        """What `key` has."""
        text: Any = await self._twice(lambda: self._redis.get(PREFIX + key.digest))
        return None if text is None else bytes(text)

    async def write(self, key: Key, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        await self._twice(lambda: self._redis.set(PREFIX + key.digest, text, px=_milliseconds(ttl)))

    async def write_new(self, key: Key, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        milliseconds = _milliseconds(ttl)
        return bool(
            await self._once(lambda: self._redis.set(PREFIX + key.digest, text, px=milliseconds, nx=True))
        )

    async def remove(self, key: Key) -> bool:
        """Forget what `key` has; whether it had something."""
        return bool(await self._once(lambda: self._redis.delete(PREFIX + key.digest)))

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


def _milliseconds(ttl: float) -> int:
    return max(1, round(min(ttl * 1000, _LONGEST_TTL)))


def _why_not(url: str, error: Exception) -> str:
    place = masked(url.partition("?")[0])
    if isinstance(error, exceptions.AuthenticationError):
        return f"TOOLWAY_STORE: {place} refuses the user name or password: {error}."
    reason = str(error).rstrip(".") or type(error).__name__
    return f"TOOLWAY_STORE: {place} cannot be used: {reason}."
