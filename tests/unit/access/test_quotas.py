"""Quotas: what is counted, for whom, by which clock, and what happens when Redis is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from redis.asyncio import Redis

from tests.support.redis import RedisServer, redis  # noqa: F401 - a fixture
from toolway.access.local_counters import LocalCounters
from toolway.access.quotas import Meter, open_meter
from toolway.access.redis_counters import ANSWER_SECONDS
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
            assert [one["x-ratelimit-remaining-requests"] for one in told] == ["1", "0"]
            assert [one["x-ratelimit-limit-requests"] for one in told] == ["2", "2"]
            assert all(one["x-ratelimit-reset-requests"] in ("1m0s", "59s", "60s") for one in told), told
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
            with anyio.fail_after(60):
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
            if closed:
                with pytest.raises(QuotasUnknown):
                    await ask(meter, alice)
            else:
                await ask(meter, alice)
                with pytest.raises(OverQuota):
                    await ask(meter, alice)

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
            assert time.monotonic() - started < 5 * ANSWER_SECONDS, "each of the five waited"
            with pytest.raises(OverQuota):
                await ask(meter, alice)

    run(main)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_frees_nobody_and_locks_nobody_out(
    store: str, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_meter(store) as meter, open_meter(store) as replica:
            alice = who(quota("requests", 1))
            spender = who(quota("tokens", 10, account="spender"), name="spender")
            await ask(meter, alice)
            await ask(meter, spender, tokens=10)
            monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 + jump)
            other = replica if store != "memory:" else meter
            for principal in (alice, spender):
                with pytest.raises(OverQuota) as refused:
                    await ask(other, principal)
                assert 58 <= int(dict(refused.value.headers)[b"retry-after"]) <= 60
            await ask(other, who(quota("requests", 1, account="bob"), name="bob"))
            monkeypatch.undo()
            with pytest.raises(OverQuota):
                await ask(meter, who(quota("requests", 1, account="bob"), name="bob"))

    run(main)


def test_what_one_quota_refuses_is_counted_by_none(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            narrow, wide = quota("requests", 1, account="group"), quota("requests", 5)
            await ask(meter, who(wide, narrow))
            for _ in range(3):
                with pytest.raises(OverQuota, match="1 requests per minute"):
                    await ask(meter, who(wide, narrow))
            assert (await ask(meter, who(wide)))["x-ratelimit-remaining-requests"] == "3"

    run(main)


def test_a_request_costs_redis_one_round_trip_and_its_tokens_another(redis: RedisServer) -> None:  # noqa: F811
    async def main() -> None:
        async with open_meter(redis.url) as meter, Redis.from_url(redis.url) as watcher:
            alice = who(
                quota("requests", 9),
                quota("requests", 99, 3600),
                quota("tokens", 99),
                quota("requests", 99, account="g"),
            )
            await ask(meter, alice, tokens=1)  # opens the connection, and has the scripts there
            before = await watcher.info("commandstats")
            await ask(meter, alice, tokens=1)
            after = await watcher.info("commandstats")
            calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
            assert calls["cmdstat_evalsha"] == 2
            assert calls.get("cmdstat_eval", 0) + calls.get("cmdstat_script|load", 0) == 0

    run(main)


def test_accounts_whose_time_is_over_are_forgotten() -> None:
    counters = LocalCounters()
    for number in range(3_000):
        counters.add(quota("tokens", 1, 0, f"{number}"), 1)
        counters.take([quota("requests", 1, 0, f"{number}")])
    assert len(counters._windows) < 2_000


def test_many_are_counted_in_a_window_that_does_not_move(store: str) -> None:
    async def main() -> None:
        async with open_meter(store) as meter:
            many = quota("requests", 1_000_000)
            for left in ("999999", "999998"):
                assert (await ask(meter, who(many)))["x-ratelimit-remaining-requests"] == left

    run(main)
