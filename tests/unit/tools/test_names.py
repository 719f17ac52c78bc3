"""Tool names: legal for every backend, unique, and the same whatever the order the servers come in."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.tools import names
from toolway.types import Tool

LEGAL = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_-]{0,63}$")


def tool(name: str, server: str = "weather") -> Tool:
    return Tool(name=name, server=server, description="", parameters={"type": "object", "properties": {}})


def assigned(*tools: Tool) -> dict[str, tuple[str, str]]:
    return {name: (tool.server, tool.name) for name, tool in names.assign(tools).items()}


def test_a_legal_and_unique_name_stays_as_it_is():
    assert assigned(tool("get-weather_2")) == {"get-weather_2": ("weather", "get-weather_2")}


def test_a_shared_name_gets_the_prefix_of_each_server():
    assert assigned(tool("now", "clock"), tool("now", "sun"), tool("rise", "sun")) == {
        "clock__now": ("clock", "now"),
        "rise": ("sun", "rise"),
        "sun__now": ("sun", "now"),
    }


def test_with_prefixes_no_name_depends_on_what_others_offer():
    alone = names.assign([tool("now", "clock")], prefixed=True)
    together = names.assign([tool("now", "clock"), tool("now", "sun"), tool("rise", "sun")], prefixed=True)
    assert list(alone) == ["clock__now"]
    assert list(together) == ["clock__now", "sun__now", "sun__rise"]


def test_a_kept_name_stays_and_the_others_make_way():
    kept = {("clock", "now"): "now"}
    named = names.assign([tool("now", "sun"), tool("now", "clock")], kept=kept)
    assert {name: tool.server for name, tool in named.items()} == {"now": "clock", "sun__now": "sun"}


def test_names_are_sorted():
    assert list(names.assign([tool("b"), tool("a"), tool("c")])) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "legal"),
    [("repos/list", "repos_list"), ("get weather", "get_weather"), ("7zip", "_7zip"), ("", "_"), ("é", "_")],
)
def test_illegal_characters_go(name: str, legal: str):
    assert names.legal(name) == legal


def test_a_long_name_is_cut_and_marked_with_a_hash_of_the_whole():
    first, second = names.legal("x" * 100), names.legal("x" * 101)
    assert first != second
    assert len(first) == len(second) == 64


@given(
    st.lists(st.tuples(st.text(max_size=80), st.sampled_from(["a", "b", "a b", "ä"])), max_size=12),
    st.randoms(),
)
def test_every_tool_has_one_legal_name_in_any_order(pairs: list[tuple[str, str]], chance: random.Random):
    tools = [tool(name, server) for name, server in dict.fromkeys(pairs)]
    named = names.assign(tools)
    assert sorted(map(id, named.values())) == sorted(map(id, tools))
    assert all(LEGAL.match(name) for name in named)
    chance.shuffle(tools)
    assert {n: (t.server, t.name) for n, t in names.assign(tools).items()} == {
        n: (t.server, t.name) for n, t in named.items()
    }


@pytest.mark.parametrize(
    "written", ["get_weather", "functions.get_weather", "<|tool|>get_weather", "`get_weather`", "get_weather:0",
                "Get_Weather", "tools:get_weather"],
)  # fmt: skip
def test_markup_around_a_known_name_is_taken_off(written: str):
    assert names.find(written, {"get_weather": tool("get_weather"), "list": tool("list")}) == "get_weather"


@pytest.mark.parametrize("written", ["weather", "", "get_weather_now", "functions."])
def test_another_name_is_not_guessed(written: str):
    assert names.find(written, {"get_weather": tool("get_weather")}) is None


def test_close_names_are_named():
    assert names.closest("get_wether", ["get_weather", "list_cities"]) == ["get_weather"]
    assert names.closest("ecoh", ["echo", "drop"]) == ["echo"]


@pytest.mark.parametrize(("name", "known"), [("nope", "drop"), ("fetch", "search"), ("read", "create_task")])
def test_names_that_only_share_letters_are_not_close(name: str, known: str):
    assert names.closest(name, [known]) == []


def test_close_names_are_named_also_while_a_server_starts():
    told = names.hint("ecoh", ["echo"], untried=["slow"])
    assert told == "Did you mean echo? The tool server slow is still starting; try again."
    assert (
        names.hint("zzz", ["echo"], untried=["a", "b"])
        == "The tool servers a, b are still starting; try again."
    )
