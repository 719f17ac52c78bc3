"""A bug in the fast lane: the client has one answer all the same, and nothing is held for it."""

from __future__ import annotations

import gc
import json
import time
from itertools import count
from typing import Any

import pytest

from tests.support.app_server import POLL_SECONDS, QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.lane import Answers, connected, request, taken, warm, watched
from tests.support.upstream import Reply, text_stream, whole
from toolway.api.chat.chat_lane import _ChatResponder
from toolway.conversation.events import (
    ConversationBegan,
    ConversationEnded,
    Event,
    EventStream,
    HeadArrived,
    ModelAnswered,
    ModelAsked,
    RoundBegan,
)
from toolway.conversation.message import ChatRequest
from toolway.engine import lane_exchange
from toolway.engine.fast_lane import FastLane
from toolway.engine.model_target import ModelTarget
from toolway.server.lane_protocol import LaneProtocol
from toolway.wire.sse import STREAM_END

__all__ = ["taken", "watched"]

WHOLE = whole({"content": "It is cloudy."})
STREAM = text_stream("It ", "is ", "cloudy.")


def sent(*, stream: bool) -> bytes:
    return request(json.dumps({"model": "mock", "messages": QUESTION, "stream": stream}).encode())


def fail_once(patch: pytest.MonkeyPatch, owner: Any, name: str, nth: int = 1) -> None:
    """Has the n-th call of a function raise before it does anything."""
    given, calls = getattr(owner, name), count(1)

    def fail(*args: Any, **more: Any) -> Any:
        if next(calls) == nth:
            raise ValueError("a bug")
        return given(*args, **more)

    patch.setattr(owner, name, fail)


def fail_at(patch: pytest.MonkeyPatch, kind: type[Event]) -> None:
    """Has a subscriber raise when it is told of the first event of this kind."""
    given, left = EventStream.notify, [kind]

    def notify(self: EventStream, event: Event) -> None:
        given(self, event)
        if type(event) in left:
            left.clear()
            raise ValueError("a bug")

    patch.setattr(EventStream, "notify", notify)


def until_nothing_is_held() -> None:
    """No exchange with the model server is under way, and no tools are held, in the servers that run."""
    engines = [one for one in gc.get_objects() if isinstance(one, FastLane)]
    end = time.monotonic() + DEADLINE
    for engine in engines:
        client, catalog = engine._resources.upstream._client, engine._catalog
        while not client._is_closed and (client.under_way or catalog._in_use):
            assert time.monotonic() < end, (client.under_way, catalog._in_use)
            time.sleep(POLL_SECONDS)
        assert client.under_way == 0 or client._is_closed


def begin(app: AppServer, reply: Reply) -> None:
    """Have the lane know what it needs to know: what it offers, and a connection to the model server."""
    warm(app, reply)
    app.ask(stream=reply is STREAM)


def asked_twice(app: AppServer, patch: pytest.MonkeyPatch, *, stream: bool) -> bytes:
    """What comes of a request that meets a bug; the next one on its connection is answered."""
    with connected(app) as client:
        client.sendall(sent(stream=stream))
        first = Answers()
        head = first.read(client, 1)
        assert (head.count(b"HTTP/1.1 "), head[9:12]) == (1, b"200")
        patch.undo()
        client.sendall(sent(stream=stream))
        second = Answers()
        assert second.read(client, 1).startswith(b"HTTP/1.1 200 ")
        assert b"cloudy." in second.body
    until_nothing_is_held()
    return first.body


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (ChatRequest, "with_tools"),
        (lane_exchange.ModelExchange, "begin"),
        (lane_exchange.ModelExchange, "_take_head"),
        (lane_exchange, "whole_message"),
        (lane_exchange, "is_plain"),
        (_ChatResponder, "answer"),
        (LaneProtocol, "answer"),
        (ModelTarget, "learn_from"),
    ],
)
def test_a_bug_before_a_whole_answer_or_behind_it_leaves_one_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: Any, name: str
):
    with app_server() as app:
        begin(app, WHOLE)
        fail_once(monkeypatch, owner, name)
        body = asked_twice(app, monkeypatch, stream=False)
    assert json.loads(body)["choices"][0]["message"]["content"] == "It is cloudy."
    assert "a bug in the fast lane" in caplog.text


@pytest.mark.parametrize(
    ("owner", "name", "nth", "is_whole"),
    [
        (ChatRequest, "with_tools", 1, True),
        (lane_exchange.ModelExchange, "_take_head", 1, True),
        (LaneProtocol, "start", 1, False),
        (LaneProtocol, "write", 1, False),
        (LaneProtocol, "write", 2, False),
        (LaneProtocol, "end", 1, False),
        (ModelTarget, "learn_from", 1, True),
    ],
)
def test_a_bug_in_a_stream_ends_it_with_an_error_if_the_client_has_it_not_whole(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
    nth: int,
    is_whole: bool,
):
    with app_server() as app:
        begin(app, STREAM)
        fail_once(monkeypatch, owner, name, nth)
        body = asked_twice(app, monkeypatch, stream=True)
    assert body.endswith(STREAM_END)
    assert (b'"error"' in body) != is_whole
    assert (b"cloudy." in body) or not is_whole
    assert "a bug in the fast lane" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "kind", [ConversationBegan, RoundBegan, ModelAsked, HeadArrived, ModelAnswered, ConversationEnded]
)
def test_a_subscriber_that_fails_takes_no_answer_away(
    monkeypatch: pytest.MonkeyPatch, kind: type[Event], stream: bool
):
    with app_server(metrics="on") as app:
        begin(app, STREAM if stream else WHOLE)
        fail_at(monkeypatch, kind)
        body = asked_twice(app, monkeypatch, stream=stream)
    assert b"cloudy." in body
    assert b'"error"' not in body
