"""What every kind of store promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import count
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis.strategies import DataObject, binary, data, integers

from toolway.errors import ConfigError, StoreError
from toolway.settings.load import load_settings
from toolway.stores import EntryKind, Key, Store, open_store
from toolway.types import JSON

DEADLINE = 20


TEST: EntryKind[JSON] = EntryKind("test", dict[str, Any])


def key(name: str, owner: str = "me") -> Key[JSON]:
    return TEST.key(owner, name)


@asynccontextmanager
async def opened(url: str, *, ttl: float = 86_400.0, max_bytes: int = 64 * 2**20) -> AsyncIterator[Store]:
    async with open_store(url, ttl=ttl, max_bytes=max_bytes) as store:
        yield store


async def until_gone(store: Store, name: str) -> None:
    with anyio.fail_after(DEADLINE):
        while await store.get(key(name)) is not None:
            await anyio.lowlevel.checkpoint()


async def test_what_is_put_can_be_got_again_and_again(store_url: str):
    async with opened(store_url) as store:
        value = {"text": "snow \u2603", "deep": [{"a": None}]}
        await store.put(key("k"), value)
        assert [await store.get(key("k")), await store.get(key("k"))] == [value, value]
        assert await store.get(key("another")) is None


async def test_what_is_kept_may_be_there(store_url: str):
    other: EntryKind[JSON] = EntryKind("another", dict[str, Any])
    async with opened(store_url) as store:
        await store.put(key("k"), {"n": 1})
        assert store.may_have("me", other, TEST)
        # False is said only by who knows; entries in memory do, and SQLite does of a key.
        assert not (store_url.startswith("memory") and store.may_have("me", other))
        assert not (store_url.startswith("memory") and store.may_have("somebody", TEST))
        assert store.may_hold(key("k"))
        assert store.may_hold(key("other")) == store_url.startswith("redis")
        assert store.may_hold(key("k", "somebody")) == store_url.startswith("redis")


async def test_what_has_ended_is_not_thought_to_be_there(store_url: str):
    other: EntryKind[JSON] = EntryKind("another", dict[str, Any])
    async with opened(store_url) as store:
        await store.put(key("stays"), {"n": 1})
        await store.put(other.key("me", "ends"), {"n": 1}, ttl=0.05)
        while await store.get(other.key("me", "ends")) is not None:
            await anyio.lowlevel.checkpoint()
        assert store.may_have("me", TEST)
        assert not (store_url.startswith("memory") and store.may_have("me", other))


async def test_the_newest_value_of_a_key_counts(store_url: str):
    async with opened(store_url) as store:
        await store.put(key("k"), {"n": 1})
        await store.put(key("k"), {"n": 2})
        assert await store.get(key("k")) == {"n": 2}


async def test_nobody_changes_what_another_one_reads(store_url: str):
    async with opened(store_url) as store:
        value = {"list": [1]}
        await store.put(key("k"), value)
        value["list"].append(2)
        got = await store.get(key("k"))
        assert got == {"list": [1]}
        got["list"].append(3)
        assert await store.get(key("k")) == {"list": [1]}


async def test_a_value_is_gone_after_its_time(store_url: str):
    async with opened(store_url, ttl=1e-6) as store:
        await store.put(key("k"), {"n": 1})
        await until_gone(store, "k")
        assert not await store.delete(key("k"))
        assert await store.add(key("k"), {"n": 2})


async def test_a_value_can_have_a_time_of_its_own(store_url: str):
    async with opened(store_url, ttl=1e-6) as store:
        await store.put(key("long"), {}, ttl=DEADLINE)
        assert await store.add(key("long, added"), {}, ttl=DEADLINE)
        await store.put(key("short"), {})
        await until_gone(store, "short")
        assert [await store.get(key("long")), await store.get(key("long, added"))] == [{}, {}]
    async with opened(store_url) as store:
        await store.put(key("short"), {}, ttl=1e-6)
        assert await store.add(key("short, added"), {}, ttl=1e-6)
        await until_gone(store, "short")
        await until_gone(store, "short, added")


async def test_a_new_value_has_a_new_time(store_url: str):
    async with opened(store_url) as store:
        await store.put(key("k"), {"n": 1}, ttl=1e-6)
        await store.put(key("k"), {"n": 2})
        await store.put(key("other"), {})
        assert await store.get(key("k")) == {"n": 2}


async def test_a_time_may_be_as_long_as_you_like(store_url: str):
    async with opened(store_url, ttl=1e300) as store:
        await store.put(key("k"), {"n": 1})
        assert await store.get(key("k")) == {"n": 1}


async def test_only_the_first_value_is_added(store_url: str):
    async with opened(store_url) as store:
        assert [await store.add(key("k"), {"n": n}) for n in range(3)] == [True, False, False]
        assert await store.get(key("k")) == {"n": 0}
        await store.put(key("put"), {"n": 1})
        assert not await store.add(key("put"), {"n": 2})
        assert await store.get(key("put")) == {"n": 1}


async def test_what_is_deleted_is_gone_and_can_be_added_again(store_url: str):
    async with opened(store_url) as store:
        await store.put(key("k"), {"n": 1})
        assert [await store.delete(key("k")), await store.delete(key("k"))] == [True, False]
        assert await store.get(key("k")) is None
        assert await store.add(key("k"), {"n": 2})


async def test_a_value_that_is_too_large_is_not_kept_and_harms_nobody(store_url: str):
    async with opened(store_url, max_bytes=25_000) as store:
        await store.put(key("small"), {})
        await store.put(key("large"), {"n": 1})
        await store.put(key("large"), {"text": "x" * 100_000})
        assert await store.get(key("large")) is None
        assert await store.get(key("small")) == {}


async def test_what_is_too_large_to_be_added_is_an_error(store_url: str):
    async with opened(store_url, max_bytes=25_000) as store:
        with pytest.raises(StoreError, match="TOOLWAY_STORE_MAX_BYTES"):
            await store.add(key("large"), {"text": "x" * 100_000})
        assert await store.get(key("large")) is None


async def test_many_write_at_once(store_url: str):
    async with opened(store_url) as store:
        async with anyio.create_task_group() as group:
            for n in range(200):
                group.start_soon(store.put, key(f"k{n % 10}"), {"n": n})
        assert [(await store.get(key(f"k{n}")))["n"] % 10 for n in range(10)] == list(range(10))


async def test_exactly_one_of_many_adds_and_exactly_one_deletes(store_url: str):
    async with opened(store_url) as store:
        added: list[bool] = []
        deleted: list[bool] = []

        async def add(n: int) -> None:
            added.append(await store.add(key("k"), {"n": n}))

        async def delete() -> None:
            deleted.append(await store.delete(key("k")))

        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(add, n)
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(delete)
        assert (added.count(True), len(added)) == (1, 100)
        assert (deleted.count(True), len(deleted)) == (1, 100)


async def test_several_values_are_got_at_once(store_url: str):
    async with opened(store_url) as store:
        await store.put(key("a"), {"n": 1})
        await store.put(key("b", "you"), {"n": 2})
        keys = [key("a"), key("none"), key("b", "you")]
        assert await store.get_all(keys) == [{"n": 1}, None, {"n": 2}]
        assert await store.get_all([]) == []


async def test_what_is_renewed_lives_as_if_it_were_new(store_url: str):
    async with opened(store_url) as store:
        for name in ("a", "b"):
            await store.put(key(name), {"n": 1}, ttl=DEADLINE)
        assert await store.renew([key("a")], ttl=1e-6)
        await until_gone(store, "a")
        assert not await store.renew([key("b"), key("a")])
        assert await store.renew([])
        assert await store.renew([key("b")])
        assert await store.get(key("b")) == {"n": 1}


async def test_what_is_renewed_goes_last(store_url: str):
    async with opened(store_url, max_bytes=50_000) as store:
        for name in ("a", "b", "c", "d"):
            await store.put(key(name), {"text": "x" * 10_000})
        assert await store.renew([key("b"), key("a")])
        await store.put(key("e"), {"text": "x" * 30_000})
        assert [await store.get(key(name)) is not None for name in "abcd"] == [True, False, False, False]


async def test_a_store_that_can_be_used_says_so(store_url: str):
    async with opened(store_url) as store:
        assert await store.is_ready()


@dataclass(frozen=True, kw_only=True)
class Point:
    x: int
    tags: Sequence[str] = ()


POINT = EntryKind("point", Point)


async def test_a_value_has_the_type_of_its_kind(store_url: str):
    async with opened(store_url) as store:
        await store.put(POINT.key("me", "k"), Point(x=1, tags=("a",)))
        assert await store.get(POINT.key("me", "k")) == Point(x=1, tags=["a"])


@pytest.mark.parametrize("version", [0, 2])
async def test_a_value_in_another_version_counts_as_gone(store_url: str, version: int, caplog):
    other = EntryKind("point", Point, version=version)
    async with opened(store_url) as store:
        await store.put(other.key("me", "k"), Point(x=1))
        assert await store.get(POINT.key("me", "k")) is None
        assert not await store.add(POINT.key("me", "k"), Point(x=2))
    assert "in another version" in caplog.text


async def test_a_value_of_another_form_counts_as_gone(store_url: str, caplog):
    async with opened(store_url) as store:
        await store.put(EntryKind("point", dict).key("me", "k"), {"y": 1})
        assert await store.get(POINT.key("me", "k"), certain=True) is None
    assert "damaged" in caplog.text


@given(data())
def test_a_value_that_is_damaged_counts_as_gone(draw: DataObject):
    async def damage() -> None:
        async with opened("memory:") as store:
            mine, other = POINT.key("me", "k"), POINT.key("me", "l")
            await store.put(mine, Point(x=1, tags=("a", "b")))
            (text,) = await store._entries.read(mine)
            assert text
            begin = draw.draw(integers(0, len(text)))
            end = draw.draw(integers(begin, len(text)))
            damaged = text[:begin] + draw.draw(binary(max_size=8)) + text[end:]
            await store._entries.write(mine, damaged, 60)
            assert (await store.get(mine) is None) == (damaged != text)
            await store._entries.write(other, text, 60)
            assert await store.get(other) is None

    anyio.run(damage)


HOSTILE: dict[str, Any] = {
    "half a surrogate pair": "\ud800",
    "a number beyond 64 bits": 10**30,
    "nested": reduce(lambda deep, _: [deep], range(300), []),
}


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Sequence[Point]
    rest: Any


OUTER = EntryKind("outer", Outer)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
async def test_hostile_values_come_back_as_they_were(store_url: str, value: Any):
    outer = Outer(inner=[Point(x=1, tags=["a"])], rest={"n": value})
    async with opened(store_url) as store:
        await store.put(key("k"), {"n": value}, certain=True)
        assert await store.get(key("k")) == {"n": value}
        assert await store.add(OUTER.key("me", "k"), outer)
        assert await store.get(OUTER.key("me", "k")) == outer


BOUNDED = ["memory", "sqlite"]
"""Redis has its own bound for all values together."""


@pytest.mark.parametrize("store_url", BOUNDED, indirect=True)
async def test_what_was_written_first_goes_first_whatever_its_time(store_url: str):
    async with opened(store_url, max_bytes=25_000) as store:
        ttls = count(DEADLINE * 10, -DEADLINE)
        for name in ("a", "b", "a", "c"):
            await store.put(key(name), {"text": "x" * 10_000}, ttl=next(ttls))
        assert [await store.get(key(name)) is not None for name in ("a", "b", "c")] == [True, False, True]


@pytest.mark.parametrize("store_url", BOUNDED, indirect=True)
async def test_what_is_over_goes_before_what_is_old(store_url: str):
    async with opened(store_url, max_bytes=25_000) as store:
        await store.put(key("old"), {"text": "x" * 10_000})
        await store.put(key("over"), {"text": "x" * 10_000}, ttl=1e-6)
        await until_gone(store, "over")
        await store.add(key("new"), {"text": "x" * 10_000})
        assert [await store.get(key(name)) is not None for name in ("old", "new")] == [True, True]


@pytest.mark.parametrize("store_url", BOUNDED, indirect=True)
async def test_as_much_goes_as_must(store_url: str):
    async with opened(store_url, max_bytes=105_000) as store:
        for n in range(9):
            await store.put(key(f"k{n}"), {"text": "x" * 10_000})
        await store.add(key("large"), {"text": "x" * 58_000})
        kept = [n for n in range(9) if await store.get(key(f"k{n}"))]
        assert kept == [5, 6, 7, 8]


@pytest.mark.parametrize("store_url", BOUNDED, indirect=True)
async def test_who_has_most_makes_room_for_all(store_url: str):
    async with opened(store_url, max_bytes=100_000) as store:
        await store.put(key("first", "alice"), {"text": "x" * 10_000})
        for n in range(30):
            await store.put(key(f"k{n}", "bob"), {"text": "x" * 10_000})
        await store.put(key("second", "alice"), {"text": "x" * 10_000})
        await store.put(key("first", "carol"), {"text": "x" * 10_000})
        kept = [n for n in range(30) if await store.get(key(f"k{n}", "bob"))]
        assert kept == list(range(24, 30))
        mine = [await store.get(key(*place)) for place in (("first", "alice"), ("second", "alice"))]
        assert None not in [*mine, await store.get(key("first", "carol"))]


async def test_one_caller_with_many_credentials_has_one_share(store_url: str):
    async with opened(store_url, max_bytes=100_000) as store:
        await store.put(key("first", "alice"), {"text": "x" * 10_000})
        for n in range(30):
            await store.put(key("k", f"bob:{n}"), {"text": "x" * 10_000})
        kept = [await store.get(key("k", f"bob:{n}")) is not None for n in range(30)]
        assert (kept[0], kept[-1]) == (False, True)
        assert await store.get(key("k", "bob")) is None
        assert await store.get(key("first", "alice"))


@pytest.mark.parametrize("store_url", BOUNDED, indirect=True)
async def test_what_takes_the_room_of_others_is_not_kept(store_url: str):
    async with opened(store_url, max_bytes=100_000) as store:
        await store.put(key("k", "alice"), {"text": "x" * 30_000})
        await store.put(key("k", "bob"), {"text": "x" * 90_000})
        with pytest.raises(StoreError):
            await store.add(key("l", "bob"), {"text": "x" * 90_000})
        assert await store.get(key("k", "alice"))
        assert [await store.get(key(name, "bob")) for name in "kl"] == [None, None]


async def test_what_an_owner_keeps_is_read_from_the_newest_on(store_url: str):
    async with opened(store_url) as store:

        async def newest(most: int = 10, after: str = "") -> list[tuple[str, Any]]:
            found = [(digest, value["n"]) async for digest, value in store.newest(TEST, "me", most, after)]
            assert [digest for digest, _ in found] == [key(str(n)).digest for _, n in found]
            return found

        assert await newest() == []
        for n in range(5):
            await store.put(key(str(n)), {"n": n})
            await store.put(key(str(n), "another"), {"n": -n})
        assert [n for _, n in await newest()] == [4, 3, 2, 1, 0]
        assert [n for _, n in await newest(2)] == [4, 3]
        await store.put(key("1"), {"n": 1})
        await store.delete(key("3"))
        await store.put(key("0"), {"n": 0}, ttl=1e-6)
        await until_gone(store, "0")
        assert [n for _, n in await newest()] == [1, 4, 2]
        assert [n for _, n in await newest(after=key("4").digest)] == [1]
        assert await newest(after=key("1").digest) == []
        assert [n for _, n in await newest(after=key("gone").digest)] == [1, 4, 2]


@pytest.mark.parametrize("store_url", ["memory"], indirect=True)
async def test_a_key_that_is_written_again_and_again_takes_no_more_room(store_url: str):
    async with opened(store_url) as store:
        for n in range(1000):
            await store.put(key("k"), {"n": n})
        assert len(store._entries._ends.items) < 100
        assert await store.get(key("k")) == {"n": 999}


NO_STORES = [
    "memory",
    "sqlite:",
    "sqlite:///",
    "sqlite://x",
    "http://h",
    "redis+sentinel://h",
    "redis:",
    "redis://",
    "redis://h:x",
    "redis://h:0",
    "redis://h/db",
    "redis://h/0/1",
    "redis://h/0?nonsense=1",
    "redis://h#1",
    "redis://h?db=x",
    "unix://",
    "unix://h?ssl_ca_certs=x",
]


@pytest.mark.parametrize("url", NO_STORES)
def test_a_store_that_does_not_exist_is_refused(url: str):
    with pytest.raises(ConfigError, match="TOOLWAY_STORE"):
        load_settings({"TOOLWAY_STORE": url}, None)


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@h:x", "redis://:hun/ter2@h", "rediss://u:hunter2@h/x", "redis:hunter2"]
)
def test_a_store_that_is_refused_is_shown_without_its_password(url: str):
    with pytest.raises(ConfigError) as caught:
        load_settings({"TOOLWAY_STORE": url}, None)
    assert "ter2" not in caught.value.message


def test_the_password_of_a_store_is_a_secret():
    settings = load_settings({"TOOLWAY_STORE": "rediss://me:hunter%402@h:6380/3?ssl_ca_certs=/ca.pem"}, None)
    assert {"hunter%402", "hunter@2"} <= set(settings.secrets)
    assert "hunter" not in repr(settings)
    assert load_settings({"TOOLWAY_STORE": "unix:///r.sock?password=hunter3"}, None).secrets == ("hunter3",)
