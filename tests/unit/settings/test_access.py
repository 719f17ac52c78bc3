"""What `mcp.json` says of keys, groups and an identity provider: read, or refused with the line and the reason."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.paths import ROOT
from toolway.access.keys import hash_of
from toolway.errors import ConfigError
from toolway.settings.access import AccessConfig, Rate, check_name, read_expiry
from toolway.settings.mcp_json import parse_config

HASH = hash_of("one")
OTHER = hash_of("two")


def read(**members: Any) -> AccessConfig:
    return parse_config(json.dumps({"mcpServers": {}, **members}), {}).access


def mistake(text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_config(text, {})
    return raised.value.message


def of_key(**entry: Any) -> str:
    return mistake(json.dumps({"keys": {"alice": {"hash": HASH, **entry}}}))


def test_a_file_that_says_nothing_leaves_it_open() -> None:
    assert not read().is_declared


@pytest.mark.parametrize("members", [{"keys": {}}, {"groups": {}}])
def test_a_word_about_keys_closes_it_also_when_there_are_none(members: Any) -> None:
    assert read(**members).is_declared


def test_a_file_of_keys_alone_needs_no_servers() -> None:
    assert parse_config(json.dumps({"keys": {"alice": {"hash": HASH}}}), {}).access.keys[0].name == "alice"


def test_all_that_a_key_and_its_group_may_have() -> None:
    config = read(
        groups={"home": {"tools": ["weather"], "shared": {"requests": "1000/day"}}},
        keys={
            "Jürgen Müller 🔑": {
                "hash": HASH.upper().replace("SHA", "sha"),
                "group": "home",
                "requests": " 5 / 10 seconds ",
                "tool_calls": "60/minute",
                "routes": ["chat", "mcp"],
                "expires": "2027-01-31",
                "tokens_per_day": 1000,
            }
        },
    )
    (key,) = config.keys
    assert (key.requests, key.tool_calls) == (Rate(5, 10), Rate(60, 60))
    assert (key.group, key.routes, key.hash) == ("home", ("chat", "mcp"), HASH.removeprefix("sha256:"))
    group = config.group("home")
    assert group and group.shared and group.shared.requests == Rate(1000, 86_400)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"tolls": ["x"]}, "keys.alice: 'tolls' is not known; did you mean 'tools'."),
        ({"name": "bob"}, "keys.alice.name: this key is not known."),
        ({"tools": "weather"}, "keys.alice.tools: it must be a list of strings."),
        ({"routes": ["chat", "mpc"]}, "keys.alice.routes[1]: 'mpc' is none of chat, responses"),
        ({"requests": "many"}, "keys.alice.requests: 'many' is no rate like"),
        ({"requests": "0/minute"}, "'0/minute' is no rate"),
        ({"requests": "5/0 seconds"}, "'5/0 seconds' is no rate"),
        ({"requests": "5/fortnight"}, "is no rate"),
        ({"requests": 60}, "60 is no rate"),
        ({"tokens_per_day": 0}, "keys.alice.tokens_per_day: 0 is no number above 0."),
        ({"concurrent_requests": -1}, "-1 is no number"),
        ({"max_rounds": 2.5}, "keys.alice.max_rounds: 2.5 is no whole number"),
        ({"expires": "soon"}, "keys.alice.expires: 'soon' is no date like"),
        ({"expires": "2027-02-30"}, "'2027-02-30' is no date"),
        ({"expires": 5}, "5 is no date"),
        ({"group": "home"}, "keys.alice.group: there is no group 'home'; the groups are: none."),
        ({"hash": "sk-toolway-a-real-key"}, "keys.alice.hash: it is no digest"),
        ({"shared": {}}, "keys.alice: 'shared' is not known"),
        ({"tools": None}, "keys.alice.tools: null says nothing; leave it out, or write [] for none."),
        ({"expires": None}, "keys.alice.expires: null says nothing"),
    ],
)
def test_a_mistake_in_a_key_is_told_with_its_line(entry: Any, said: str) -> None:
    assert said in of_key(**entry)
    assert of_key(**entry).startswith("mcp.json:1: ")


def test_a_key_that_was_written_in_place_of_its_digest_is_not_shown() -> None:
    assert "a-real-key" not in of_key(hash="sk-toolway-a-real-key")


def test_each_mistake_has_its_own_line() -> None:
    text = '{"keys": {\n"a": {},\n"b": {"hash": "HASH",\n"group": "hme"}},\n"groups": {"home": {"tool": []}}}'
    text = text.replace("HASH", HASH)
    assert mistake(text).splitlines() == [
        'mcp.json:2: keys.a: it needs a "hash".',
        "mcp.json:5: groups.home: 'tool' is not known; did you mean 'tools'.",
        "mcp.json:4: keys.b.group: there is no group 'hme'; the groups are: none.",
    ]


def test_two_names_with_one_key_and_two_names_that_look_the_same() -> None:
    said = mistake(json.dumps({"keys": {"a": {"hash": HASH}, "b": {"hash": HASH}}}))
    assert said == "mcp.json:1: keys.b.hash: the key of 'a' is the same."
    said = mistake(json.dumps({"keys": {"Anna": {"hash": HASH}, "ａnna": {"hash": OTHER}}}))
    assert "this name looks like 'Anna'" in said


@pytest.mark.parametrize("name", ["", " a", "a\u200bb", "a\nb", "\u202ea", "x" * 101, "jwt:me", "a\x00"])
def test_a_name_that_people_cannot_tell_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        check_name(name)
    assert "mcp.json:1: keys." in mistake(json.dumps({"keys": {name: {"hash": HASH}}}))


@pytest.mark.parametrize("text", ['{"keys": []}', '{"keys": {"a": 1}}', '{"keys": null}', '{"jwt": []}'])
def test_a_member_of_a_wrong_kind(text: str) -> None:
    assert "must be an object" in mistake(text)


@pytest.mark.parametrize("root", ["key", "kyes", "group"])
def test_a_misspelled_member_does_not_leave_open_what_was_to_be_closed(root: str) -> None:
    said = mistake(json.dumps({"mcpServers": {}, root: {"alice": {"hash": HASH}}}))
    assert f"mcp.json:1: {root}: this key is not read; did you mean" in said


@pytest.mark.parametrize(
    ("jwt", "said"),
    [
        ({}, 'jwt: it needs a "issuer"'),
        ({"issuer": "login.example.com", "audience": "x"}, "'login.example.com' is no URL"),
        ({"issuer": "https://a", "audience": "x", "default_group": "g"}, "jwt.default_group: there is no"),
        ({"issuer": "https://a", "audience": "x", "groups": {"c": "g"}}, "jwt.groups.c: there is no group"),
        ({"issuer": "https://a", "audience": "x", "algorithms": ["none"]}, "'algorithms' is not known"),
    ],
)
def test_a_mistake_about_the_identity_provider(jwt: Any, said: str) -> None:
    assert said in mistake(json.dumps({"jwt": jwt}))


def test_a_date_is_valid_to_its_end_and_a_moment_to_itself() -> None:
    assert read_expiry("2027-01-31") == 1_801_439_999
    assert read_expiry("2027-01-31T00:00:00Z") == 1_801_353_600
    assert read_expiry("2027-01-31T01:00:00+01:00") == 1_801_353_600
    assert read_expiry("2027-01-31T00:00:00") == 1_801_353_600


def test_a_thousand_keys_are_read_at_once() -> None:
    config = read(keys={f"key {number}": {"hash": hash_of(str(number))} for number in range(1000)})
    assert len(config.keys) == 1000


RECIPES = re.findall(r"```jsonc\n(.*?)```", (ROOT / "docs" / "access.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_of_the_documentation_are_read(recipe: str) -> None:
    access = parse_config(recipe, {}).access
    assert access.is_declared or access.rules
