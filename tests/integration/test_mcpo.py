"""Real mcpo servers in front of a real MCP server: one, several, and with a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.test_tool_servers import eventually, names_in, offered, result_in
from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.mcpo import mcpo, mcpo_python
from tests.support.upstream import Reply, call_stream, text_stream, tool_call, whole
from toolway.settings.env_endpoints import Endpoint

__all__ = ["mcpo_python"]

pytestmark = pytest.mark.timeout(600)
"""The first run installs mcpo."""

PARIS = '{"timezone":"Europe/Paris"}'
IN_PARIS = '"It is 18:30 in Europe/Paris"'


@pytest.fixture(scope="module")
def both(mcpo_python: Path) -> Iterator[tuple[Callable[[], str], Callable[[], str]]]:
    """Two of them start at once: each needs seconds, and so does every server behind it."""
    strict = "--api-key", "s3cret", "--strict-auth"
    with mcpo(mcpo_python) as one, mcpo(mcpo_python, *strict, names=("clock", "watch")) as other:
        yield one, other


@pytest.fixture
def single(both: Any) -> str:
    url: str = both[0]()
    return url


@pytest.fixture
def several(both: Any) -> str:
    url: str = both[1]()
    return url


@contextmanager
def app_in_front_of(endpoints: Any, *replies: Reply, tools: int, **settings: Any) -> Iterator[AppServer]:
    """Toolway in front of mcpo, once it offers as many tools."""
    with app_server(endpoints=endpoints, **settings) as app:
        app.upstream.replies = [whole({"content": "Hi"})]
        eventually(lambda: len(offered(app)) == tools)
        app.upstream.replies = list(replies)
        app.upstream.seen.clear()
        yield app


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_tool_of_mcpo_is_called_for_the_model(single: str, streamed: bool):
    call = tool_call("tool_get_current_time_post", PARIS)
    first = call_stream(call) if streamed else whole({"tool_calls": [call]}, "tool_calls")
    last = text_stream("Half past six.") if streamed else whole({"content": "Half past six."})
    with app_in_front_of(single, first, last, tools=3) as app:
        answer = app.ask(stream=streamed)
        request = app.upstream.seen[0].json
        assert names_in(request) == ["tool_add_post", "tool_get_current_time_post", "tool_list_zones_post"]
        assert result_in(app) == IN_PARIS
    if streamed:
        chunks = chunks_of(answer.text)
        assert_one_clean_answer(chunks)
        assert content_of(chunks) == "Half past six."
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "Half past six."
    described = next(t for t in request["tools"] if "current_time" in t["function"]["name"])["function"]
    assert described["description"] == "The time of day in a time zone."
    assert described["parameters"]["required"] == ["timezone"]


def test_short_names_and_arguments_of_every_kind(single: str):
    calls = [
        tool_call("add", '{"a":2,"b":3}', id="1"),
        tool_call("add", '{"a":2,"b":null}', id="2", index=1),
        tool_call("list_zones", "", id="3", index=2),
        tool_call("get_current_time", "{}", id="4", index=3),
    ]
    with app_in_front_of(
        single, call_stream(*calls), text_stream("Done."), tools=3, tool_names="short"
    ) as app:
        chunks_of(app.ask(stream=True).text)
        assert names_in(app.upstream.seen[0].json) == ["add", "get_current_time", "list_zones"]
        results = [message["content"] for message in app.upstream.seen[1].json["messages"][2:]]
    assert results[:3] == ["5", "3", '["Asia/Tokyo","Europe/Paris"]']
    assert "`timezone` is required" in results[3]


def test_an_error_of_the_tool_is_read_by_the_model_in_its_own_words(single: str):
    call = tool_call("tool_get_current_time_post", '{"timezone":"Mars/Olympus"}')
    with app_in_front_of(single, call_stream(call), text_stream("Sorry."), tools=3) as app:
        assert content_of(chunks_of(app.ask(stream=True).text)) == "Sorry."
        assert "no such time zone: Mars/Olympus" in result_in(app)
        assert "Unexpected error" not in result_in(app)


def test_the_servers_of_one_mcpo_are_all_found_and_told_apart(several: str):
    endpoint = Endpoint(label="mcpo", url=several, token="s3cret")
    calls = [
        tool_call("clock__tool_get_current_time_post", PARIS, id="1"),
        tool_call("watch__tool_add_post", '{"a":40,"b":2}', id="2", index=1),
    ]
    with app_in_front_of([endpoint], call_stream(*calls), text_stream("Done."), tools=6) as app:
        chunks_of(app.ask(stream=True).text)
        names = names_in(app.upstream.seen[0].json)
        results = [message["content"] for message in app.upstream.seen[1].json["messages"][2:]]
    assert {name.partition("__")[0] for name in names} == {"clock", "watch"}
    assert results == [IN_PARIS, "42"]


def test_one_server_of_several_can_be_the_endpoint(several: str):
    with_key = several.replace("http://", "http://user:s3cret@")
    call = call_stream(tool_call("tool_get_current_time_post", PARIS))
    with app_in_front_of(f"{with_key}/clock", call, text_stream("Done."), tools=3) as app:
        chunks_of(app.ask(stream=True).text)
        assert result_in(app) == IN_PARIS


def test_a_wrong_key_is_told_in_plain_words(several: str):
    endpoint = Endpoint(label="mcpo", url=several, token="wrong")
    with app_server(whole({"content": "Hi"}), endpoints=[endpoint]) as app:
        assert offered(app) == []
        assert httpx2.get(f"{app.url}/readyz").json()["servers"] == {"mcpo": "failed"}
