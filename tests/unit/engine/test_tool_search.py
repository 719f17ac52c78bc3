"""The search of one request, without a model: what it shares with other requests, and what it never may."""

from __future__ import annotations

from tests.unit.engine.scripted_model import InMemorySource, echo
from toolway.conversation.message import ChatRequest
from toolway.engine.request_tools import RequestTools
from toolway.engine.tool_search import SearchRules
from toolway.tools.catalog import Snapshot
from toolway.types import Choice, Tool

SNAPSHOT = Snapshot([InMemorySource("cities", weather=echo, secret=echo)])


def finder(snapshot: Snapshot = SNAPSHOT, *names: str, context: int | None = None, **body: object) -> Tool:
    """The search tool of a request that may use these names alone, if there are some."""
    selection = [[Choice(patterns=names)]] if names else ()
    tools = RequestTools(ChatRequest.of({"messages": [], **body}), snapshot, selection)
    tools.search_rules = SearchRules(context=context)
    tools.begin_search()
    assert tools.search
    assert [tool.name for tool in tools.tools.values()] == [
        tools.search.finder.name,
        tools.search.caller.name,
    ]
    return tools.search.finder


def test_the_catalogue_is_written_once_for_all_requests_that_may_use_everything():
    assert finder() is finder(model="another")


def test_requests_that_see_other_names_have_catalogues_of_their_own():
    limited = finder(SNAPSHOT, "weather")
    assert "secret" not in limited.description
    assert "secret" in finder().description
    assert "secret" not in finder(SNAPSHOT, "weather").description, "whatever was written before"


def test_room_names_and_tools_that_differ_have_catalogues_of_their_own():
    mine = [{"type": "function", "function": {"name": "search_tools"}}]
    tools = RequestTools(ChatRequest.of({"messages": [], "tools": mine}), SNAPSHOT)
    tools.search_rules = SearchRules()
    tools.begin_search()
    assert tools.search
    assert tools.search.finder.name == "toolway_search_tools"
    assert "cities (2)" not in finder(context=100).description
    other = Snapshot([InMemorySource("cities", weather=echo, more=echo)])
    assert "more" in finder(other).description
