"""Quotas: requests, calls of tools and tokens that a key may use in a time, and how many at the same time."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import anyio

from toolway.access.audit import Denials
from toolway.access.local_counters import LocalCounters, QuotaStatus
from toolway.errors import OverQuota, QuotasUnknown
from toolway.settings.store_url import is_shared
from toolway.stores.store import Cooldown, EntriesError
from toolway.types import Header, Principal, Quota

if TYPE_CHECKING:
    from toolway.access.redis_counters import RedisCounters

T = TypeVar("T")

log = logging.getLogger("toolway.access")

MAX_RETRY_WAIT = 60
"""Seconds that clients may wait by themselves before they ask again; they are told not to ask for longer."""

REST_SECONDS = 5.0
"""A Redis that failed is left alone for so long; each request would wait for it otherwise."""

QUIET_SECONDS = 60.0
_WORDS = {"requests": "requests", "tool_calls": "tool calls", "tokens": "tokens"}
_HEADERS = {
    unit: (
        b"x-ratelimit-limit-" + unit.encode(),
        b"x-ratelimit-remaining-" + unit.encode(),
        b"x-ratelimit-reset-" + unit.encode(),
    )
    for unit in ("requests", "tokens")
}
_TIMES = {1: "second", 60: "minute", 3_600: "hour", 86_400: "day"}


@asynccontextmanager
async def open_meter(
    store: str, *, fails_closed: bool = False, denials: Denials | None = None
) -> AsyncIterator[Meter]:
    """A meter for a block. Where `store` (as TOOLWAY_STORE names it) is a Redis, all processes count there."""
    meter = Meter(store, fails_closed=fails_closed, denials=denials)
    try:
        yield meter
    finally:
        await meter.close()


class Meter:
    """Counts what principals use, and denies what is over their quotas.

    While a Redis cannot be reached this process counts by itself, or under `fails_closed` nothing that has a quota is
    done. What is under way at the same time is counted in each process alone.
    """

    def __init__(
        self, store: str = "memory:", *, fails_closed: bool = False, denials: Denials | None = None
    ) -> None:
        self._url = store if is_shared(store) else ""
        self._fails_closed = fails_closed
        self._denials = denials or Denials()
        self._own = LocalCounters()
        self._shared: RedisCounters | None = None
        self._rest = Cooldown(REST_SECONDS)
        self._quiet_until = -math.inf
        self._under_way: Counter[Quota] = Counter()
        self._limiters: WeakValueDictionary[Quota, anyio.CapacityLimiter] = WeakValueDictionary()
        self._owed: dict[Quota, int] = {}
        """Tokens that Redis was not told of yet."""

    def request(self, principal: Principal) -> AbstractAsyncContextManager[list[Header]]:
        """Count a request, which is under way while the block lasts; yields what its answer tells of the quotas.

        Raises OverQuota, and QuotasUnknown.
        """
        return _CountedRequest(self, principal)

    @asynccontextmanager
    async def call(self, principal: Principal) -> AsyncIterator[None]:
        """Count a call of a tool, which waits until fewer are under way. Raises OverQuota, and QuotasUnknown."""
        await self._take(principal, principal.call_rates)
        if not principal.call_places:
            yield
            return
        async with AsyncExitStack() as stack:
            for quota in principal.call_places:
                await stack.enter_async_context(self._limiter(quota))
            yield

    def spend(self, principal: Principal, tokens: int) -> None:
        """Tokens were used; Redis is told when the request ends."""
        for quota in principal.token_quotas:
            if self._url:
                self._owed[quota] = self._owed.get(quota, 0) + tokens
            else:
                self._own.add(quota, tokens)

    async def begin(self, principal: Principal) -> list[Header]:
        """Count a request that begins; the headers that tell what is left."""
        places = principal.request_places
        for quota in places:
            if self._under_way[quota] >= quota.most:
                message = f"This key may have {quota.most} requests under way at the same time; wait for one to end."
                raise self._denied(principal, OverQuota(message, seconds=1))
        for quota in places:
            self._under_way[quota] += 1
        try:
            if self._owed:
                await self._count_owed()
            return _headers_of(await self._take(principal, principal.request_rates))
        except BaseException:
            self._leave(places)
            raise

    async def end(self, principal: Principal) -> None:
        """A request that was counted is over."""
        self._leave(principal.request_places)
        if self._owed:
            with anyio.CancelScope(shield=True):
                await self._count_owed()

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

    def _denied(self, principal: Principal, error: OverQuota) -> OverQuota:
        self._denials.note(error, principal.name)
        return error

    async def _take(self, principal: Principal, quotas: Sequence[Quota]) -> list[QuotaStatus]:
        """Count one for each rate; how it stands with each. Raises OverQuota, and QuotasUnknown."""
        if not quotas:
            return []
        found = self._own.take(quotas) if not self._url else await self._take_shared(quotas)
        for standing in found:
            if standing.is_over:
                raise self._denied(principal, _over(standing))
        return found

    async def _take_shared(self, quotas: Sequence[Quota]) -> list[QuotaStatus]:
        shared = self._counters()
        if (found := await self._ask_redis(lambda: shared.take(quotas))) is None:
            return self._own.take(quotas)
        return found

    async def _count_owed(self) -> None:
        """Count the tokens that were used."""
        owed, self._owed = self._owed, {}
        shared = self._counters()

        async def add() -> bool:
            await shared.add(owed)
            return True

        try:
            if await self._ask_redis(add) is None:
                for quota, tokens in owed.items():
                    self._own.add(quota, tokens)
        except QuotasUnknown:
            for quota, tokens in owed.items():
                self._owed[quota] = self._owed.get(quota, 0) + tokens

    async def _ask_redis(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """What Redis answers; None when it does not, and this process is to count by itself. Raises QuotasUnknown."""
        shared = self._counters()
        try:
            self._rest.check()
            # redis-py tidies up behind one cancellation, but anyio's come again and again.
            with anyio.CancelScope(shield=True):
                return await work()
        except shared.errors as error:
            self._rest.begin()
            self._note(error)
        except EntriesError:
            pass
        if self._fails_closed:
            raise QuotasUnknown("What this key has used cannot be known now; try again.")
        return None

    def _counters(self) -> RedisCounters:
        if self._shared is None:
            from toolway.access.redis_counters import RedisCounters  # noqa: PLC0415 - redis is optional

            self._shared = RedisCounters(self._url)
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


class _CountedRequest(AbstractAsyncContextManager[list[Header]]):
    """A block in which a request is under way."""

    # A class, since asynccontextmanager costs a small request a hundredth.

    def __init__(self, meter: Meter, principal: Principal) -> None:
        self._meter = meter
        self._principal = principal

    async def __aenter__(self) -> list[Header]:
        return await self._meter.begin(self._principal)

    async def __aexit__(self, *_: object) -> None:
        await self._meter.end(self._principal)


def _over(standing: QuotaStatus) -> OverQuota:
    quota = standing.quota
    time_of = _TIMES.get(quota.seconds) or f"{quota.seconds} seconds"
    message = f"The quota of {quota.most:,} {_WORDS[quota.unit]} per {time_of} is used up"
    wait = max(1, math.ceil(standing.seconds))
    headers = [] if quota.unit == "tool_calls" else [*_headers(standing)]
    if wait > MAX_RETRY_WAIT:
        headers.append((b"x-should-retry", b"false"))
    return OverQuota(f"{message}; try again in {_words(wait)}.", seconds=wait, headers=headers)


def _headers_of(standings: Sequence[QuotaStatus]) -> list[Header]:
    """What is told of the tightest quota of each unit."""
    if len(standings) > 1:
        tightest = {
            standing.quota.unit: standing for standing in sorted(standings, key=_units_left, reverse=True)
        }
        standings = list(tightest.values())
    return [header for standing in standings for header in _headers(standing)]


def _units_left(standing: QuotaStatus) -> int:
    return standing.left


def _headers(standing: QuotaStatus) -> tuple[Header, Header, Header]:
    """As OpenAI tells them."""
    quota, left, seconds, _ = standing
    limit, remaining, reset = _HEADERS[quota.unit]
    return (limit, b"%d" % quota.most), (remaining, b"%d" % left), (reset, _duration(seconds).encode())


def _duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: 6m0s, 120ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    rest = math.ceil(seconds)
    if rest < 60:
        return f"{rest}s"
    if rest < 3600:
        return f"{rest // 60}m{rest % 60}s"
    return f"{rest // 3600}h{rest // 60 % 60}m{rest % 60}s"


def _words(seconds: int) -> str:
    return f"{seconds} second{'s'[: seconds != 1]}" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
