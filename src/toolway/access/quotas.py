"""Quotas: requests, calls of tools and tokens that a key may use in a time, and how many at the same time."""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread

from toolway.access.local_counters import LocalCounters
from toolway.errors import OverQuota, QuotasUnknown
from toolway.settings.groups import is_shared
from toolway.stores.store import EntriesError, Rest
from toolway.types import Header, Principal, Quota

if TYPE_CHECKING:
    from toolway.access.redis_counters import RedisCounters

    AnyCounters = LocalCounters | RedisCounters

T = TypeVar("T")

log = logging.getLogger("toolway.access")

PATIENT = 60
"""Seconds that clients may wait by themselves before they ask again; they are told not to ask for longer."""

REST_SECONDS = 5.0
"""A Redis that failed is left alone for so long; each request would wait for it otherwise."""

QUIET_SECONDS = 60.0
_WORDS = {"requests": "requests", "tool_calls": "tool calls", "tokens": "tokens"}
_TIMES = {1: "second", 60: "minute", 3_600: "hour", 86_400: "day"}


@asynccontextmanager
async def open_meter(store: str, *, fails_closed: bool = False) -> AsyncIterator[Meter]:
    """A meter for a block. Where `store` (as TOOLWAY_STORE names it) is a Redis, all processes count there."""
    meter = Meter(store, fails_closed=fails_closed)
    try:
        yield meter
    finally:
        await meter.close()


class Meter:
    """Counts what principals use, and refuses what is over their quotas.

    While a Redis cannot be reached this process counts by itself, or under `fails_closed` nothing that has a quota is
    done. What is under way at the same time is counted in each process alone.
    """

    def __init__(self, store: str = "memory:", *, fails_closed: bool = False) -> None:
        self._url = store if is_shared(store) else ""
        self._fails_closed = fails_closed
        self._opening = anyio.Lock()
        self._own = LocalCounters()
        self._shared: RedisCounters | None = None
        self._rest = Rest(REST_SECONDS)
        self._quiet_until = -math.inf
        self._under_way: Counter[Quota] = Counter()
        self._limiters: WeakValueDictionary[Quota, anyio.CapacityLimiter] = WeakValueDictionary()
        self._owed: defaultdict[Quota, int] = defaultdict(int)

    def request(self, principal: Principal) -> AbstractAsyncContextManager[list[Header]]:
        """Count a request, which is under way while the block lasts; yields what its answer tells of the quotas.

        Raises OverQuota, and QuotasUnknown.
        """
        return _Request(self, principal)

    @asynccontextmanager
    async def call(self, principal: Principal) -> AsyncIterator[None]:
        """Count a call of a tool, which waits until fewer are under way. Raises OverQuota, and QuotasUnknown."""
        async with AsyncExitStack() as stack:
            for quota in _of(principal, "tool_calls"):
                if quota.seconds:
                    await self._take(quota)
                else:
                    await stack.enter_async_context(self._limiter(quota))
            yield

    def spend(self, principal: Principal, tokens: int) -> None:
        """Tokens were used; they are counted when the request ends."""
        for quota in _of(principal, "tokens"):
            self._owed[quota] += max(0, tokens)

    async def begin(self, principal: Principal) -> list[Header]:
        """Count a request that begins; the headers that tell what is left."""
        places = [quota for quota in _of(principal, "requests") if not quota.seconds]
        for quota in places:
            if self._under_way[quota] >= quota.most:
                raise OverQuota(
                    f"This key may have {quota.most} requests under way at the same time; wait for one to end.",
                    headers=[(b"retry-after", b"1")],
                )
        for quota in places:
            self._under_way[quota] += 1
        try:
            if self._owed:
                await self._settle()
            return await self._take_request(principal)
        except BaseException:
            self._leave(places)
            raise

    async def end(self, principal: Principal) -> None:
        """A request that was counted is over."""
        self._leave([quota for quota in _of(principal, "requests") if not quota.seconds])
        if self._owed and not self._url:
            await self._settle()
        elif self._owed:
            with anyio.CancelScope(shield=True):
                await self._settle()

    def _leave(self, places: Sequence[Quota]) -> None:
        for quota in places:
            self._under_way[quota] -= 1
            if not self._under_way[quota]:
                del self._under_way[quota]

    def _limiter(self, quota: Quota) -> anyio.CapacityLimiter:
        limiter = self._limiters.get(quota)
        if limiter is None:
            limiter = self._limiters[quota] = anyio.CapacityLimiter(quota.most)
        return limiter

    async def _take_request(self, principal: Principal) -> list[Header]:
        """Count a request; the headers that tell what is left."""
        told: dict[str, tuple[int, Quota, float]] = {}
        for quota in sorted(_of(principal, "tokens", "requests"), key=lambda quota: quota.unit, reverse=True):
            if not quota.seconds:
                continue
            if quota.unit == "requests":
                await self._take(quota)
                if self._url:
                    continue  # to ask what is left would cost each request as much again
            left, seconds = await self._left(quota)
            if quota.unit == "tokens" and left <= 0:
                raise _over(quota, seconds)
            if quota.unit not in told or left < told[quota.unit][0]:
                told[quota.unit] = (left, quota, seconds)
        return [header for left, quota, seconds in told.values() for header in _headers(quota, left, seconds)]

    async def _take(self, quota: Quota) -> None:
        if not await self._count(lambda counters: counters.take(quota)):
            _, seconds = await self._left(quota)
            raise _over(quota, seconds)

    async def _left(self, quota: Quota) -> tuple[int, float]:
        return await self._count(lambda counters: counters.left(quota))

    async def _settle(self) -> None:
        """Count the tokens that were used."""
        while self._owed:
            quota, tokens = self._owed.popitem()
            try:
                await self._count(lambda counters: counters.add(quota, tokens))  # noqa: B023 - awaited here
            except QuotasUnknown:
                self._owed[quota] += tokens
                return

    async def _count(self, work: Callable[[AnyCounters], Awaitable[T]]) -> T:
        """Raises QuotasUnknown."""
        if not self._url:
            return await work(self._own)
        shared = self._shared or await self._open()
        try:
            self._rest.check()
            # redis-py tidies up behind one cancellation, but anyio's come again and again.
            with anyio.CancelScope(shield=True):
                return await work(shared)
        except shared.errors as error:
            self._rest.begin()
            self._note(error)
        except EntriesError:
            pass
        if self._fails_closed:
            raise QuotasUnknown("What this key has used cannot be known now; try again.")
        return await work(self._own)

    async def _open(self) -> RedisCounters:
        """Load what counts in Redis when there is something to count: it takes a while."""
        async with self._opening:
            if self._shared is None:
                module = await anyio.to_thread.run_sync(
                    importlib.import_module, "toolway.access.redis_counters"
                )
                self._shared = module.RedisCounters(self._url)
            return self._shared

    async def close(self) -> None:
        """Let the connections go."""
        if self._shared:
            await self._shared.close()

    def _note(self, error: Exception) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            instead = "what has a quota is refused" if self._fails_closed else "this process counts by itself"
            log.warning("quotas cannot be counted in Redis, %s until they can: %s", instead, error)


class _Request(AbstractAsyncContextManager[list[Header]]):
    """A block in which a request is under way."""

    # A class, since asynccontextmanager costs a small request a hundredth.

    def __init__(self, meter: Meter, principal: Principal) -> None:
        self._meter = meter
        self._principal = principal

    async def __aenter__(self) -> list[Header]:
        return await self._meter.begin(self._principal)

    async def __aexit__(self, *_: object) -> None:
        await self._meter.end(self._principal)


def _of(principal: Principal, *units: str) -> list[Quota]:
    return [quota for quota in principal.quotas if quota.unit in units]


def _over(quota: Quota, seconds: float) -> OverQuota:
    time_of = _TIMES.get(quota.seconds) or f"{quota.seconds} seconds"
    message = f"The quota of {quota.most:,} {_WORDS[quota.unit]} per {time_of} is used up"
    wait = max(1, math.ceil(seconds))
    headers = [(b"retry-after", b"%d" % wait)]
    if quota.unit != "tool_calls":
        headers += _headers(quota, 0, seconds)
    if wait > PATIENT:
        headers.append((b"x-should-retry", b"false"))
    return OverQuota(f"{message}; try again in {_words(wait)}.", headers=headers)


def _headers(quota: Quota, left: int, seconds: float) -> list[Header]:
    """As OpenAI tells them."""
    unit = quota.unit.encode()
    return [
        (b"x-ratelimit-limit-" + unit, b"%d" % quota.most),
        (b"x-ratelimit-remaining-" + unit, b"%d" % left),
        (b"x-ratelimit-reset-" + unit, _duration(seconds).encode()),
    ]


def _duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 6m0s, 120ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "m")]
    return "".join(f"{value}{unit}" for value, unit in parts if value or (unit == "m" and hours)) + f"{rest}s"


def _words(seconds: int) -> str:
    return f"{seconds} second{'s'[: seconds != 1]}" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
