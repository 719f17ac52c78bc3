"""The store in Redis (or Valkey): shared by processes on several machines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import orjson
from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from toolway.errors import ConfigError, StoreError
from toolway.net.hosts import masked
from toolway.stores.logging import Trouble, too_large
from toolway.types import JSON

T = TypeVar("T")

PREFIX = "toolway:"
"""In front of each key, so that others can use the same database."""

CONNECTIONS = 32
"""So many connections each process opens at most; who finds none waits for one."""

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 5.0
REST_SECONDS = 5.0
"""A server that did not answer in time is left alone for so long, or each look-up of each request would wait."""

_FAILURES = (exceptions.RedisError, OSError)
_LONGEST_TTL = 10**14
"""Milliseconds, three thousand years; more would not fit into Redis's clock."""


class RedisStore:
    """Values of at most `max_bytes` each, each for `ttl` seconds unless it has its own.

    How much room all have together, and what goes when it is full, is Redis's `maxmemory` and `maxmemory-policy`.
    Connections that died are opened again.
    """

    def __init__(self, redis: Redis, *, ttl: float, max_bytes: int) -> None:
        self._redis = redis
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._trouble = Trouble()
        self._rests_until = float("-inf")

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, ttl: float, max_bytes: int) -> AsyncIterator[RedisStore]:
        """The store at `url`, as redis-py reads URLs. Raises ConfigError when the server does not answer."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=ANSWER_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            # Repeated here where it is harmless; a repeated `add` would find what it wrote itself.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        async with Redis.from_pool(pool) as redis:
            try:
                await redis.ping()
            except _FAILURES as error:
                raise ConfigError(_why_not(url, error)) from None
            yield cls(redis, ttl=ttl, max_bytes=max_bytes)

    async def put(self, key: str, value: JSON, *, ttl: float | None = None) -> None:
        """Keep `value`, in place of what `key` had."""
        text = orjson.dumps(value)
        if len(text) > self._max_bytes:
            self._trouble.note(too_large(len(text), self._max_bytes))
            await self._twice(lambda: self._redis.delete(PREFIX + key))
        else:
            await self._twice(lambda: self._redis.set(PREFIX + key, text, px=self._milliseconds(ttl)))

    async def get(self, key: str) -> JSON | None:
        """The value, or None when there is none (any more)."""
        text = await self._twice(lambda: self._redis.get(PREFIX + key))
        try:
            value: Any = None if text is None else orjson.loads(text)
        except orjson.JSONDecodeError:
            self._trouble.note("a value is no JSON; does something else write to these keys?")
            return None
        return value if isinstance(value, dict) else None

    async def add(self, key: str, value: JSON, *, ttl: float | None = None) -> bool:
        """Keep `value` unless `key` has one; whether it was kept."""
        text = orjson.dumps(value)
        if len(text) > self._max_bytes:
            raise StoreError(too_large(len(text), self._max_bytes))
        milliseconds = self._milliseconds(ttl)
        return bool(await self._once(lambda: self._redis.set(PREFIX + key, text, px=milliseconds, nx=True)))

    async def delete(self, key: str) -> bool:
        """Forget what `key` has; whether it had something."""
        return bool(await self._once(lambda: self._redis.delete(PREFIX + key)))

    def _milliseconds(self, ttl: float | None) -> int:
        return max(1, round(min((self._ttl if ttl is None else ttl) * 1000, _LONGEST_TTL)))

    async def _twice(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """A command that may be repeated, for which trouble is a value that is gone."""
        try:
            try:
                return await self._run(command)
            except exceptions.ConnectionError:
                return await self._run(command)
        except _FAILURES as error:
            self._trouble.note(error)
            return None

    async def _once(self, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._run(command)
        except _FAILURES as error:
            self._trouble.note(error)
            raise StoreError(
                "The store that keeps what is under way cannot be reached; try again."
            ) from error

    async def _run(self, command: Callable[[], Awaitable[T]]) -> T:
        if time.monotonic() < self._rests_until:
            raise exceptions.TimeoutError("it did not answer in time, and is left alone for a moment")
        try:
            # redis-py tidies up behind one cancellation, but anyio's come again and again.
            with anyio.CancelScope(shield=True):
                answer = await command()
        except exceptions.TimeoutError:
            self._rests_until = time.monotonic() + REST_SECONDS
            raise
        return answer


def _why_not(url: str, error: Exception) -> str:
    place = masked(url.partition("?")[0])
    if isinstance(error, exceptions.AuthenticationError):
        return f"TOOLWAY_STORE: {place} refuses the user name or password: {error}."
    reason = str(error).rstrip(".") or type(error).__name__
    return f"TOOLWAY_STORE: {place} cannot be used: {reason}."
