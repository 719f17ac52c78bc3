"""What the fast lane offers a model is what the ordinary way does: no tools, or a search in their place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.test_fast_lane import (
    ANSWER,
    PLAIN,
    PLAIN_BODY,
    TITLE,
    WILD_BODY,
    WORDS,
    as_json,
    long_tools,
    reply_of,
)
from tests.integration.test_streamed_lane import through as streamed_through
from tests.integration.test_tool_search import many_tools, names, search, through
from tests.support.app_server import POLL_SECONDS, QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.lane import Answers, asked, connected, request, taken, warm, watched
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import (
    OUT_OF_MEMORY,
    Reply,
    call_stream,
    json_reply,
    text_stream,
    tool_call,
    whole,
)
from toolway.tools.catalog import Catalog

__all__ = ["taken", "watched"]

SMALL = json_reply({"data": [{"id": "mock", "object": "model", "max_model_len": 3000}]})
"""A model that cannot read all definitions of `long_tools`."""


class Pair:
    """The same Toolway with the lane and without."""

    def __init__(self, lane: AppServer, ordinary: AppServer) -> None:
        self.lane = lane
        self.ordinary = ordinary


def started(
    stack: ExitStack, service: ToolService | None, models: Reply | None = None, **options: Any
) -> Pair:
    """Both with the same tools: what is said of these names their server."""
    tools = stack.enter_context(running(service, lifespan="off")) if service else ""
    apps = [
        stack.enter_context(app_server(has_lane=has_lane, endpoints=tools, models=models, **options))
        for has_lane in (True, False)
    ]
    return Pair(*apps)


KINDS = ("none", "searched", "searched with one", "searched since they are long")


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    with ExitStack() as stack:
        yield {
            "none": started(stack, None),
            "searched": started(stack, many_tools(), tool_search="on"),
            "searched with one": started(
                stack,
                many_tools,
                tool_search="on",
                tool_search_always=["get_weather"],
                tool_search_way="call",
            ),
            "searched since they are long": started(stack, long_tools(), SMALL),
        }


CALL = st.sampled_from(
    [
        search("the weather"),
        through("get_weather", {"city": "Paris"}),
        tool_call("get_weather", '{"city": "Paris"}'),
        tool_call("list_cities", "{}"),
        tool_call("nothing", "{}"),
    ]
)
CALLED = CALL.map(lambda call: whole({"tool_calls": [call]}, finish="tool_calls"))
REPLY = st.one_of(ANSWER.map(lambda answer: reply_of(as_json(answer))), CALLED)
SIDE_BODY = PLAIN_BODY.map(lambda body: {**body, "messages": [TITLE, *QUESTION]})


def exchanged(app: AppServer, body: Any, *replies: Reply) -> tuple[Any, ...]:
    """What the client and the model server got, to the byte."""
    warm(app, *replies)
    with connected(app) as client:
        client.sendall(request(as_json(body)))
        return Answers().read(client, 1), asked(app)


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), body=PLAIN_BODY | WILD_BODY | SIDE_BODY, reply=REPLY)
def test_both_ways_offer_the_same_and_go_on_alike(pairs: dict[str, Pair], kind: str, body: Any, reply: Reply):
    pair, replies = pairs[kind], (reply, reply_of(as_json(PLAIN)))
    assert exchanged(pair.lane, body, *replies) == exchanged(pair.ordinary, body, *replies)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    body=PLAIN_BODY | SIDE_BODY,
    reply=CALL.map(call_stream) | st.just(text_stream("It ", "is.")),
)
def test_both_ways_offer_the_same_in_streams(pairs: dict[str, Pair], kind: str, body: Any, reply: Reply):
    pair, sent = pairs[kind], request(as_json({**body, "stream": True}))
    replies = reply, text_stream("So ", "be it.")
    assert streamed_through(pair.lane, sent, *replies) == streamed_through(pair.ordinary, sent, *replies)


@pytest.mark.parametrize(
    ("kind", "offered"),
    [
        ("none", []),
        ("searched", ["search_tools", "call_tool"]),
        ("searched with one", ["get_weather", "search_tools", "call_tool"]),
        ("searched since they are long", ["search_tools", "call_tool"]),
    ],
)
def test_each_of_these_offers_takes_the_lane(
    pairs: dict[str, Pair], taken: list[str], kind: str, offered: list[str]
):
    app = pairs[kind].lane
    warm(app, WORDS)
    app.ask()
    assert taken == ["answered"]
    assert names(app.upstream.seen[0].json) == offered


def test_a_request_that_a_client_makes_for_itself_takes_the_lane_without_tools(
    pairs: dict[str, Pair], taken: list[str]
):
    app = pairs["searched"].lane
    warm(app, WORDS)
    app.ask(messages=[TITLE, *QUESTION])
    assert taken == ["answered"]
    assert "tools" not in app.upstream.seen[0].json


def test_a_search_goes_on_where_the_lane_stopped(pairs: dict[str, Pair], taken: list[str]):
    app = pairs["searched"].lane
    warm(app, whole({"tool_calls": [search("invoices")]}, finish="tool_calls"), WORDS)
    app.ask()
    assert taken == ["handed over"]
    roles = [[message["role"] for message in seen.json["messages"]] for seen in app.upstream.seen]
    assert roles == [["user"], ["user", "assistant", "tool"]]


def test_what_a_conversation_found_is_offered_again(taken: list[str]):
    """Tools that were found are kept for the conversation in which they were, and open the lane for all others."""
    with app_server(tools=many_tools(), tool_search="on", tool_search_way="append") as app:
        warm(app, whole({"tool_calls": [search("the weather")]}, finish="tool_calls"), WORDS)
        key = {"authorization": "Bearer x"}
        app.ask(headers=key)
        warm(app, WORDS)
        asks_more = [*QUESTION, {"role": "assistant", "content": "It is cloudy."}, *QUESTION]
        app.ask(headers=key, messages=asks_more)
        assert not taken
        assert "get_weather" in names(app.upstream.seen[0].json)
        app.ask(headers=key, messages=[{"role": "user", "content": "Another question"}])
        app.ask(headers={"authorization": "Bearer y"}, messages=asks_more)
    assert taken == ["answered", "answered"]


@pytest.mark.parametrize("then", ["call", "refusal", "words", "client leaves"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_request_keeps_the_tools_that_it_began_with(
    tmp_path: Path, taken: list[str], monkeypatch: pytest.MonkeyPatch, streamed: bool, then: str
):
    """Also where their server is taken out of the file meanwhile; when it ends, nothing holds them."""
    file, gate, service = tmp_path / "mcp.json", Gate(), ToolService()
    catalogs: list[Catalog] = []
    hold = Catalog.hold
    monkeypatch.setattr(Catalog, "hold", lambda self, *given: catalogs.append(self) or hold(self, *given))
    call, words = (
        (call_stream(tool_call()), text_stream("It ", "rains."))
        if streamed
        else (whole({"tool_calls": [tool_call()]}, finish="tool_calls"), whole({"content": "It rains."}))
    )
    reply = {"call": call, "refusal": OUT_OF_MEMORY}.get(then, words)
    with running(service, lifespan="off") as tools, ThreadPoolExecutor() as threads:
        servers = {"weather": {"type": "openapi", "url": tools}}
        file.write_text(json.dumps({"mcpServers": servers}))
        with app_server(config=str(file), endpoints="") as app:
            warm(app, Reply([gate, *reply.parts], reply.status, reply.headers), words)
            with connected(app) as client:
                body = {"model": "mock", "messages": QUESTION, "stream": streamed}
                client.sendall(request(as_json(body)))
                gate.wait_for_arrival()
                file.write_text(json.dumps({"mcpServers": {}}))
                app.until_servers_are()
                if then == "client leaves":
                    client.close()
                    app.upstream.departures.wait()
                else:
                    answer = threads.submit(Answers().read, client, 1)
                gate.open()
                if then != "client leaves":
                    assert (b"out of memory" if then == "refusal" else b"rains.") in answer.result()
            assert len(taken) == 1
            assert len(service.calls) == (then == "call")
            asked_with = [names(seen.json) for seen in app.upstream.seen]
            assert asked_with == [["get_weather", "list_cities"]] * (2 if then == "call" else 1)
            end = time.monotonic() + DEADLINE
            while catalogs[0]._in_use:
                assert time.monotonic() < end
                time.sleep(POLL_SECONDS)


def test_the_lane_learns_how_found_tools_are_called(pairs: dict[str, Pair], taken: list[str]):
    """A model server that keeps prompts is not sent a list of tools that grows."""
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    says_so = whole({"content": "It is cloudy."}, usage=usage)
    with app_server(tools=many_tools(), tool_search="on") as app:
        warm(app, says_so)
        app.ask()
        assert taken == ["answered"]
        app.set_replies(whole({"tool_calls": [search("the weather")]}, finish="tool_calls"), WORDS)
        app.ask()
    found = json.dumps(app.upstream.seen[1].json["messages"])
    assert "Run them with call_tool" in found
    assert names(app.upstream.seen[1].json) == ["search_tools", "call_tool"]
