"""The fast lane and the ordinary way give the same bytes, to the model server and to the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.upstream import OUT_OF_MEMORY, Reply, sse, tool_call, whole
from toolway.engine.fast_lane import FastLane, Handover

WORDS = whole(
    {"content": "It is cloudy."}, usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
)
CALLS = whole({"tool_calls": [tool_call()]}, finish="tool_calls")


@pytest.fixture(scope="module")
def lane() -> Iterator[AppServer]:
    with app_server() as server:
        yield server


@pytest.fixture(scope="module")
def ordinary() -> Iterator[AppServer]:
    """A profile closes the lane, whether anybody asks for it or not."""
    with app_server(profiles={"nobodys": ["none*"]}) as server:
        yield server


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What came of each request that took the lane."""
    came: list[Any] = []
    ask = FastLane.ask

    async def watched(self: FastLane, request: Any) -> Any:
        came.append(None)
        came[-1] = await ask(self, request)
        return came[-1]

    monkeypatch.setattr(FastLane, "ask", watched)
    return came


TEXT = st.text(alphabet=st.sampled_from('aé日\n"\\\u2028 '), max_size=6)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXT)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2), max_leaves=5
)
SAYING = {"role": st.sampled_from(["user", "system", "assistant"]), "content": TEXT}
MESSAGE = st.fixed_dictionaries(SAYING) | st.fixed_dictionaries(
    {**SAYING, "content": VALUE},
    optional={"extra": VALUE, "tool_calls": st.sampled_from([[], [tool_call()]]), "tool_call_id": TEXT},
)
MESSAGES = st.lists(st.fixed_dictionaries(SAYING), min_size=1, max_size=2) | st.lists(
    MESSAGE | VALUE, max_size=3
)
PLAIN_BODY = st.fixed_dictionaries(
    {"model": st.just("mock"), "messages": MESSAGES}, optional={"metadata": VALUE}
)
WILD_BODY = st.fixed_dictionaries(
    {"model": VALUE, "messages": MESSAGES},
    optional={
        "stream": st.sampled_from([False, None]),
        "n": st.sampled_from([1, None]),
        "tool_choice": st.sampled_from(["auto", "none", None]),
        "tools": st.sampled_from([[], None]),
        "parallel_tool_calls": st.booleans(),
    },
)
BODY = st.booleans().flatmap(lambda is_plain: PLAIN_BODY if is_plain else WILD_BODY)
ENDS = st.sampled_from(["stop", "tool_calls", "length", "error", None])
WORDS_ALONE = st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT.filter(bool)})
SAID = WORDS_ALONE | st.fixed_dictionaries(
    {"content": TEXT | VALUE},
    optional={
        "role": VALUE,
        "refusal": VALUE,
        "reasoning_content": TEXT,
        "tool_calls": st.sampled_from([None, [], "x"]),
        "function_call": VALUE,
    },
)
CHOICE = {"index": st.integers(0, 2), "message": SAID, "finish_reason": ENDS}
WILD_CHOICE = st.fixed_dictionaries(
    {"message": SAID | VALUE}, optional={"finish_reason": VALUE, "logprobs": VALUE}
)
PLAIN_ANSWER = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries({**CHOICE, "message": WORDS_ALONE}), min_size=1, max_size=2)},
    optional={"usage": VALUE, "extra": VALUE},
)
WILD_ANSWER = st.fixed_dictionaries(
    {"choices": st.lists(st.fixed_dictionaries(CHOICE) | WILD_CHOICE, max_size=2) | VALUE},
    optional={"usage": VALUE, "error": st.none() | VALUE, "object": TEXT, "extra": VALUE},
)
ANSWER = st.booleans().flatmap(lambda is_plain: PLAIN_ANSWER if is_plain else WILD_ANSWER)


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(", ", ": ")).encode()


def reply_of(raw: bytes) -> Reply:
    kept, dropped = (b"x-request-id", b"r1"), (b"set-cookie", b"a=b")
    return Reply([raw], 200, [(b"content-type", b"application/json"), kept, dropped])


@st.composite
def mutations(draw: Any, raw: bytes) -> bytes:
    start, end = sorted((draw(st.integers(0, len(raw))), draw(st.integers(0, len(raw)))))
    return raw[:start] + draw(st.binary(max_size=3) | st.just(raw[start:end] * 2)) + raw[end:]


def through(app: AppServer, body: bytes, reply: Reply) -> tuple[Any, ...]:
    """What the client and the model server got."""
    app.set_replies(reply)
    headers = {"content-type": "application/json", "x-own": "kept", "authorization": "Bearer x"}
    answer = app.post(body, headers=headers)
    asked = [
        (seen.path, seen.query, seen.body, [header for header in seen.headers if header[0] != b"host"])
        for seen in app.upstream.seen
    ]
    return answer.status_code, answer.content, answer.headers.raw, asked


@settings(max_examples=80, deadline=None)
@given(body=BODY, answer=ANSWER)
def test_both_ways_give_the_same_bytes(lane: AppServer, ordinary: AppServer, body: Any, answer: Any):
    reply = reply_of(as_json(answer))
    assert through(lane, as_json(body), reply) == through(ordinary, as_json(body), reply)


PLAIN = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}]
}


@settings(max_examples=30, deadline=None)
@given(raw=mutations(as_json(PLAIN)))
def test_both_ways_read_broken_answers_alike(lane: AppServer, ordinary: AppServer, raw: bytes):
    body = as_json({"model": "mock", "messages": QUESTION})
    assert through(lane, body, reply_of(raw)) == through(ordinary, body, reply_of(raw))


def test_a_plain_answer_takes_the_lane(lane: AppServer, taken: list[Any]):
    lane.set_replies(WORDS)
    answer = lane.ask()
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "It is cloudy."}
    assert [type(came) for came in taken] == [tuple]
    assert [tool["function"]["name"] for tool in lane.upstream.seen[0].json["tools"]]


HELD = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
TITLE = {"role": "system", "content": "You are a title generator. You output ONLY a thread title."}


@pytest.mark.parametrize(
    ("body", "headers", "query"),
    [
        ({"stream": True}, {}, ""),
        ({"n": 2, "tool_choice": "none"}, {}, ""),
        ({"tools": []}, {}, ""),
        ({"tool_choice": "none"}, {}, ""),
        ({"functions": []}, {}, ""),
        ({"messages": [*QUESTION, HELD, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, {}, ""),
        ({"messages": [TITLE, *QUESTION]}, {}, ""),
        ({}, {"x-toolway-tools": "none"}, ""),
        ({}, {"x-toolway-max-calls": "1"}, ""),
        ({}, {}, "?api-version=1"),
    ],
)
def test_what_wants_more_goes_the_ordinary_way(
    lane: AppServer, taken: list[Any], body: Any, headers: dict[str, str], query: str
):
    lane.set_replies(WORDS)
    url = f"{lane.url}/v1/chat/completions{query}"
    answer = httpx2.post(url, json={"model": "mock", "messages": QUESTION, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert not taken


def test_calls_are_run_and_the_model_server_is_asked_nothing_twice(lane: AppServer, taken: list[Any]):
    lane.set_replies(CALLS, WORDS)
    assert lane.ask().json()["choices"][0]["message"]["content"] == "It is cloudy."
    assert [type(came) for came in taken] == [Handover]
    assert len(lane.tools.calls) == 1
    roles = [[message["role"] for message in seen.json["messages"]] for seen in lane.upstream.seen]
    assert roles == [["user"], ["user", "assistant", "tool"]]


@pytest.mark.parametrize("reply", [OUT_OF_MEMORY, sse(PLAIN), Reply(reset=True), Reply([b"{"], cut=True)])
def test_what_fails_is_told_as_on_the_ordinary_way(
    lane: AppServer, ordinary: AppServer, taken: list[Any], reply: Reply
):
    body = as_json({"model": "mock", "messages": QUESTION})
    assert through(lane, body, reply) == through(ordinary, body, reply)
    assert [type(came) for came in taken] == [Handover]


def test_a_client_that_leaves_stops_the_model_server():
    gate = Gate()
    with app_server(Reply([b" ", gate])) as app:
        with httpx2.Client(timeout=2) as client, ThreadPoolExecutor() as pool:
            asked = pool.submit(client.post, f"{app.url}/v1/chat/completions", json={"messages": QUESTION})
            gate.wait_for_arrival()
            client.close()
            with pytest.raises(Exception):  # noqa: B017
                asked.result()
        gate.open()
        app.upstream.departures.wait()
