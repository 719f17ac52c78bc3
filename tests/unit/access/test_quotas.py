"""Quotas: what is counted, for whom, by which clock, and what happens when Redis is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.support.redis import RedisServer, redis  # noqa: F401 - a fixture
from toolway.access.local_counters import LocalCounters
from toolway.access.quotas import Meter, open_meter
from toolway.errors import OverQuota, QuotasUnknown
from toolway.types import Principal, Quota


def who(*quotas: Quota, name: str = "alice") -> Principal:
    return Principal(id=name, name=name, quotas=quotas)


def quota(unit: str, most: int, seconds: int = 60, account: str = "alice") -> Quota:
    return Quota(account=account, unit=unit, most=most, seconds=seconds)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("redis").url) if request.param == "redis" else "memory:"


async def ask(meter: Meter, principal: Principal, *, tokens: int = 0) -> dict[str, str]:
    async with meter.request(principal) as headers:
        meter.spend(principal, tokens)
        return {name.decode(): value.decode() for name, value in headers}


def run(work: Callable[[], object]) -> None:
    anyio.run(work)  # type: ignore[arg-type]


def test_requests_are_counted_to_the_quota_and_no_further(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            alice = who(quota("requests", 2))
            told = [await ask(meter, alice), await ask(meter, alice)]
            if store == "memory:":
                assert [one["x-ratelimit-remaining-requests"] for one in told] == ["1", "0"]
                assert told[0]["x-ratelimit-limit-requests"] == "2"
            with pytest.raises(OverQuota, match="2 requests per minute is used up; try again in") as refused:
                await ask(meter, alice)
            headers = dict(refused.value.headers)
            assert 1 <= int(headers[b"retry-after"]) <= 60
            assert headers[b"x-ratelimit-remaining-requests"] == b"0"
            await ask(meter, who(quota("requests", 2, account="bob"), name="bob"))

    run(main)


def test_a_window_moves_with_the_time(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            alice = who(quota("requests", 1, 1))
            await ask(meter, alice)
            with pytest.raises(OverQuota):
                await ask(meter, alice)
            with anyio.fail_after(10):
                while True:
                    try:
                        await ask(meter, alice)
                        return
                    except OverQuota:
                        await anyio.lowlevel.checkpoint()

    run(main)


def test_what_is_shared_is_used_up_together(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as one, open_meter(store) as other:
            shared = quota("requests", 2, account="group")
            await ask(one, who(quota("requests", 9), shared))
            second = other if store != "memory:" else one
            await ask(second, who(quota("requests", 9, account="bob"), shared, name="bob"))
            with pytest.raises(OverQuota):
                await ask(one, who(quota("requests", 9), shared))

    run(main)


def test_tokens_are_counted_after_a_request_and_beyond_the_quota(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            alice = who(quota("tokens", 100, 86_400))
            assert (await ask(meter, alice, tokens=70))["x-ratelimit-remaining-tokens"] == "100"
            assert (await ask(meter, alice, tokens=70))["x-ratelimit-remaining-tokens"] == "30"
            with pytest.raises(OverQuota, match="100 tokens per day") as refused:
                await ask(meter, alice)
            assert dict(refused.value.headers)[b"x-should-retry"] == b"false"

    run(main)


def test_requests_at_the_same_time_are_refused_and_calls_wait() -> None:
    async def main() -> None:
        async with open_meter("memory:") as meter:
            alice = who(quota("requests", 1, 0), quota("tool_calls", 1, 0))
            async with meter.request(alice):
                with pytest.raises(OverQuota, match="1 requests under way"):
                    await ask(meter, alice)
            await ask(meter, alice)
            order: list[str] = []

            @asynccontextmanager
            async def call(name: str) -> AsyncIterator[None]:
                async with meter.call(alice):
                    order.append(name)
                    yield
                    order.append(name)

            async def second() -> None:
                async with call("b"):
                    pass

            async with anyio.create_task_group() as group, call("a"):
                group.start_soon(second)
                await anyio.wait_all_tasks_blocked()
            assert order == ["a", "a", "b", "b"]

    run(main)


def test_calls_are_counted_to_the_quota(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            alice = who(quota("tool_calls", 1))
            async with meter.call(alice):
                pass
            with pytest.raises(OverQuota, match="1 tool calls per minute"):
                async with meter.call(alice):
                    pass

    run(main)


@pytest.mark.parametrize("closed", [False, True])
def test_without_redis_each_process_counts_or_nothing_is_done(redis: RedisServer, closed: bool) -> None:  # noqa: F811
    async def main() -> None:
        async with open_meter(redis.url, fails_closed=closed) as meter:
            alice = who(quota("requests", 1))
            await ask(meter, alice)
            redis.stop()
            started = time.monotonic()
            if closed:
                with pytest.raises(QuotasUnknown):
                    await ask(meter, alice)
            else:
                await ask(meter, alice)
                with pytest.raises(OverQuota):
                    await ask(meter, alice)
            assert time.monotonic() - started < 5

    run(main)


def test_a_redis_that_answers_late_is_waited_for_once(redis: RedisServer) -> None:  # noqa: F811
    async def main() -> None:
        async with open_meter(redis.url) as meter:
            alice = who(quota("requests", 5))
            await ask(meter, alice)
            redis.freeze()
            started = time.monotonic()
            for _ in range(5):
                await ask(meter, alice)
            assert time.monotonic() - started < 3
            with pytest.raises(OverQuota):
                await ask(meter, alice)

    run(main)


def test_a_clock_that_jumps_frees_nobody_and_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        counters = LocalCounters()
        limited, tokens = quota("requests", 1), quota("tokens", 10)
        assert await counters.take(limited)
        await counters.add(tokens, 10)
        for jump in (-86_400.0, 86_400.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: 1_800_000_000.0 + jump)
            assert not await counters.take(limited)
            left, seconds = await counters.left(tokens)
            assert (left, 59 < seconds <= 60) == (0, True)
        assert await counters.take(quota("requests", 1, account="bob"))

    run(main)


def test_accounts_whose_time_is_over_are_forgotten() -> None:
    async def main() -> None:
        counters = LocalCounters()
        for number in range(3_000):
            await counters.add(quota("tokens", 1, 0, f"{number}"), 1)
            await counters.take(quota("requests", 1, 0, f"{number}"))
        assert len(counters._counts) + len(counters._hits) < 2_000

    run(main)


def test_many_are_counted_in_a_window_that_does_not_move(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            many = quota("requests", 1_000_000)
            for left in (999_999, 999_998):
                await ask(meter, who(many))
                assert (await meter._left(many))[0] == left

    run(main)
