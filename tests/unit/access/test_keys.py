"""API keys: what they look like, whose they are, until when, and what each may do."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.logs import logged
from toolway.access.keys import KeyRing, hash_of, new_secret
from toolway.access.principal import ROUTES
from toolway.errors import Unauthorized
from toolway.settings.access import AccessConfig, GroupConfig, KeyConfig, Quotas, Rate
from toolway.settings.settings import Settings
from toolway.types import Principal, Quota, Tool, is_selected


def key(name: str, secret: str = "", **rights: Any) -> KeyConfig:
    return KeyConfig(name=name, hash=hash_of(secret or name).removeprefix("sha256:"), **rights)


def ring(*keys: KeyConfig, groups: tuple[GroupConfig, ...] = (), api_keys: tuple[str, ...] = ()) -> KeyRing:
    return KeyRing(api_keys, AccessConfig(is_declared=True, keys=keys, groups=groups))


def principal(*groups: GroupConfig, **rights: Any) -> Principal:
    found = ring(key("alice", **rights), groups=groups).find(b"alice")
    assert found
    return found


def sees(who: Principal, server: str, name: str) -> bool:
    return is_selected(name, Tool(name=name, server=server, description="", parameters={}), who.selection)


def test_a_new_key_can_be_told_by_its_prefix_and_no_two_are_the_same() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"sk-toolway-[A-Za-z0-9]{43}", secret) for secret in secrets)


def test_a_key_is_found_by_what_it_is_and_nothing_like_it() -> None:
    keys = ring(key("alice"), key("bob"))
    found = keys.find(b"alice")
    assert found and found.name == "alice"
    for secret in (b"", b"Alice", b"alice ", b"alic", b"\xff", "álice".encode(), b"a" * 100_000):
        assert keys.find(secret) is None


@given(st.binary(max_size=100))
def test_no_other_bytes_are_a_key(secret: bytes) -> None:
    assert ring(key("alice", "s")).find(secret) is None or secret == b"s"


def test_a_key_of_the_environment_may_do_everything() -> None:
    found = ring(key("alice"), api_keys=("sesame",)).find(b"sesame")
    assert found and re.fullmatch("[0-9a-f]{12}", found.name)
    assert found.routes is None and not found.selection and not found.quotas


def test_a_key_that_both_have_may_do_what_the_file_says() -> None:
    found = ring(key("alice", "sesame", tools=("a",)), api_keys=("sesame",)).find(b"sesame")
    assert found and found.name == "alice" and found.selection


def test_a_key_is_over_when_its_time_is() -> None:
    assert ring(key("alice", expires=time.time() + 60)).find(b"alice")
    with pytest.raises(Unauthorized, match="expired"):
        ring(key("alice", expires=time.time() - 1)).find(b"alice")


def test_who_has_a_key_stays_the_same_when_it_is_rotated() -> None:
    before, after = ring(key("alice", "old")), ring(key("alice", "new"))
    assert (one := before.find(b"old")) and (other := after.find(b"new")) and one.id == other.id
    assert after.find(b"old") is None


def test_where_there_were_keys_there_is_no_way_in_without_one() -> None:
    keys = ring(key("alice"))
    with logged(Settings()) as lines:
        keys.replace(AccessConfig())
    assert keys.is_closed and keys.find(b"alice") is None
    assert "nobody may do anything" in lines.getvalue()


def test_a_key_says_nothing_and_may_do_all_but_look_at_others() -> None:
    found = principal()
    assert found.routes == ROUTES and "console" not in ROUTES
    assert sees(found, "git", "push") and found.may_use_model("any") and found.may_use_model(None)


def test_a_group_and_a_key_each_narrow_the_other() -> None:
    group = GroupConfig(name="g", tools=("git.*", "weather"), exclude=("git.push",), models=("small*",))
    found = principal(group, group="g", tools=("git.*",), exclude=("git.log",), models=("*-7b", "small"))
    assert sees(found, "git", "status")
    for server, name in (
        ("git", "push"),
        ("git", "log"),
        ("w", "weather"),
        ("gitt", "x"),
    ):
        assert not sees(found, server, name), name
    assert found.may_use_model("small-7b") and found.may_use_model("small")
    assert not any(
        map(found.may_use_model, ("small-3b", "big-7b", "Small-7b", "small ", "", None, 7, ["small"]))
    )


def test_an_empty_list_is_nothing_at_all() -> None:
    found = principal(tools=(), models=(), routes=())
    assert not sees(found, "a", "b") and not found.may_use_model("m") and found.routes == frozenset()


def test_routes_are_those_that_both_allow() -> None:
    group = GroupConfig(name="g", routes=("chat", "console"))
    assert principal(group, group="g").routes == {"chat", "console"}
    assert principal(group, group="g", routes=("chat", "mcp")).routes == {"chat"}


def test_the_lowest_limit_holds() -> None:
    group = GroupConfig(name="g", max_rounds=5, max_seconds=9.5)
    assert principal(group, group="g", max_rounds=7, max_calls=3).limits == {
        "max_rounds": 5,
        "max_calls": 3,
        "max_seconds": 9.5,
    }


def test_quotas_are_counted_for_each_key_and_what_is_shared_for_all_of_the_group() -> None:
    group = GroupConfig(
        name="g",
        requests=Rate(60, 60),
        concurrent_tool_calls=4,
        shared=Quotas(tokens_per_day=1000, requests=Rate(9, 60)),
    )
    keys = ring(key("a", group="g", requests=Rate(6, 60)), key("b", group="g"), groups=(group,))
    one, other = keys.find(b"a"), keys.find(b"b")
    assert one and other
    assert {(q.unit, q.most, q.seconds) for q in one.quotas if q.account == one.id} == {
        ("requests", 6, 60),
        ("tool_calls", 4, 0),
    }
    assert Quota(account=other.id, unit="requests", most=60, seconds=60) in other.quotas
    shared = [{q for q in who.quotas if q.account != who.id} for who in (one, other)]
    assert shared[0] == shared[1] and {q.unit for q in shared[0]} == {"requests", "tokens"}
