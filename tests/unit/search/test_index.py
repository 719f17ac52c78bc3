"""The index of tools: what is found for which words, and at what cost."""

from __future__ import annotations

import time

import pytest

from toolway.search.index import ToolIndex
from toolway.search.ranking import fuse, fuse_with_meaning, top_hits
from toolway.types import Tool


def tool(name: str, description: str = "", server: str = "things", **properties: str) -> Tool:
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string", "description": text} for key, text in properties.items()},
    }
    return Tool(name=name, server=server, description=description, parameters=parameters)


TOOLS = {
    t.name: t
    for t in (
        tool("get_forecast", "Weather of the next days.", "weather", city="Name of the city"),
        tool("get_alerts", "Warnings of the weather service.", "weather", region="Region"),
        tool("write_file", "Write text to a file.", "filesystem", path="Where", content="What"),
        tool("read_file", "Read a file.", "filesystem", path="Where"),
        tool("sendMail", "Sends an email.", "mail", recipient="To whom", subject="Subject"),
        tool("list_issues", "Issues of a repository.", "github", assignee="Who works on it"),
        tool("create_presentation", "Begin a new slide deck.", "office"),
        tool("jiudian", "酒店搜索", "travel"),
    )
}
INDEX = ToolIndex.build(TOOLS)


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("what will the weather be in Paris", "get_forecast"),
        ("save it to /tmp/notes.txt", "write_file"),
        ("send mail", "sendMail"),
        ("tickets assigned to me, by assignee", "list_issues"),
        ("make a powerpoint", "create_presentation"),
        ("sned an emial to Ann", "sendMail"),
        ("搜索酒店", "jiudian"),
        ("find a hotel", "jiudian"),
        ("写入文件", "write_file"),
    ],
)
def test_a_tool_is_found_by_what_a_model_writes(query: str, best: str):
    assert INDEX.search(query)[0] == best


@pytest.mark.parametrize("query", ["", "the", "zzzzzz", "🙂", "\ud800", "\0" * 100, "((((", "a" * 100_000])
def test_words_that_say_nothing_find_nothing(query: str):
    assert INDEX.search(query) == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("weather forecast", True),
        ("save text to a file", True),
        ("weather in Kuala Lumpur", True),
        ("Wettervorhersage für Hamburg", False),
        ("will I need an anorak", False),
        ("", False),
    ],
)
def test_meaning_decides_only_where_no_tool_says_the_words(query: str, said: bool):
    ranked = INDEX.search(query)
    meant = next(name for name in INDEX.names if name not in ranked)
    place = fuse_with_meaning(INDEX, query, ranked, [meant]).index(meant)
    assert place == (len(ranked) if said else min(1, len(ranked)))


def test_only_what_is_allowed_is_found():
    assert INDEX.search("weather", among={"get_alerts", "read_file"}) == ["get_alerts"]


def test_the_order_does_not_depend_on_the_order_of_the_tools():
    backwards = ToolIndex.build(dict(reversed(TOOLS.items())))
    for query in ("read or write a file", "weather warnings", "send", "new"):
        assert backwards.search(query) == INDEX.search(query)


def test_a_schema_that_is_none_is_indexed_all_the_same():
    deep: dict[str, object] = {}
    for _ in range(3000):
        deep = {"properties": {"x": deep, "y": [1, {"properties": None}]}}
    odd = [deep, {"properties": []}, {"properties": {"a": 3, "b": {"description": 4, "enum": 5}}}, {}]
    tools = {
        str(n): Tool(name=f"odd{n}", server="s", description="", parameters=p) for n, p in enumerate(odd)
    }  # type: ignore[arg-type]
    assert len(ToolIndex.build(tools).search("odd0 odd1 odd2 odd3")) == 4


def test_the_best_are_shown_whole_and_their_neighbours_by_name():
    result = top_hits(INDEX, INDEX.search("weather forecast"), set(TOOLS), shown=1)
    assert result.shown == ("get_forecast",)
    assert result.neighbours["weather"] == ["get_alerts"]
    assert next(iter(result.neighbours)) == "weather"


def test_a_neighbour_that_is_not_allowed_is_not_named():
    among = set(TOOLS) - {"get_alerts"}
    result = top_hits(INDEX, INDEX.search("weather forecast", among), among)
    assert "get_alerts" not in [*result.shown, *(n for names in result.neighbours.values() for n in names)]


def test_one_name_at_two_servers_takes_one_place():
    twins = {"a__find": tool("find", "Find things.", "a"), "b__find": tool("find", "Find things.", "b")}
    index = ToolIndex.build({**twins, "look": tool("look", "Find things by eye.", "c")})
    result = top_hits(index, index.search("find things"), set(index.names))
    assert set(result.shown) == {"a__find", "look"}
    assert result.neighbours == {"b": ["b__find"]}


def test_rankings_are_fused_by_rank():
    assert fuse((["a", "b", "c"], 1.0), (["b", "c", "a"], 1.0)) == ["b", "a", "c"]
    assert fuse((["a", "b"], 1.0), (["b", "a"], 0.1)) == ["a", "b"]


def test_ten_thousand_tools_are_indexed_in_a_second_and_searched_in_five_milliseconds():
    nouns = "invoice customer ticket repository file picture song route weather stock".split()
    verbs = "get list create update delete search export archive share rename".split()
    many = {
        f"{verb}_{noun}_{n}": tool(
            f"{verb}_{noun}_{n}",
            f"{verb} one {noun} of department {n} " + "with all its parts " * 4,
            f"s{n % 300}",
        )
        for n in range(100)
        for verb in verbs
        for noun in nouns
    }
    steps, index = ToolIndex.build_in_steps(many), None
    began, long = time.process_time(), 0
    while index is None:
        before = time.process_time()
        try:
            next(steps)
        except StopIteration as end:
            index = end.value
        long += time.process_time() - before > 0.01
    assert len(index.names) == 10_000
    assert time.process_time() - began < 1.0
    assert long <= 5  # the garbage collector's
    index.search("rename the picture of the ticket")
    began = time.process_time()
    for _ in range(20):
        index.search("rename the picture of the ticket of department 7")
    assert (time.process_time() - began) / 20 < 0.005
