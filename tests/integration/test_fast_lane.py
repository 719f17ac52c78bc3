"""The fast lane and the ordinary way give the same bytes, to the model server and to the client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.lane import (
    CAME,
    HEAD,
    Answers,
    asked,
    connected,
    counted,
    lane,
    ordinary,
    request,
    taken,
    warm,
    watched,
)
from tests.support.raw import split
from tests.support.servers import running
from tests.support.tools import CITY, ToolService, document
from tests.support.upstream import OUT_OF_MEMORY, Reply, json_reply, sse, tool_call, whole
from toolway.access.keys import hash_of
from toolway.net import connection
from toolway.net.connection import MAX_BUFFERED
from toolway.server.lane_protocol import LONG_PASSED_BY, MAX_BEHIND, MAX_SIZE

__all__ = ["lane", "ordinary", "taken", "watched"]

WORDS = whole(
    {"content": "It is cloudy."}, usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
)
CALLS = whole({"tool_calls": [tool_call()]}, finish="tool_calls")


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


def through(app: AppServer, reply: Reply, *pieces: bytes, count: int = 1) -> tuple[Any, ...]:
    """What the client and the model server got, to the byte; the client sends these pieces one by one."""
    warm(app, reply)
    with connected(app) as client:
        for piece in pieces:
            client.sendall(piece)
        return Answers().read(client, count), asked(app)


@settings(max_examples=80, deadline=None)
@given(body=BODY, answer=ANSWER)
def test_both_ways_give_the_same_bytes(lane: AppServer, ordinary: AppServer, body: Any, answer: Any):
    reply, sent = reply_of(as_json(answer)), request(as_json(body))
    assert through(lane, reply, sent) == through(ordinary, reply, sent)


PLAIN = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}]
}
PLAIN_REQUEST = request(as_json({"model": "mock", "messages": QUESTION}))


@settings(max_examples=30, deadline=None)
@given(raw=mutations(as_json(PLAIN)))
def test_both_ways_read_broken_answers_alike(lane: AppServer, ordinary: AppServer, raw: bytes):
    reply = reply_of(raw)
    assert through(lane, reply, PLAIN_REQUEST) == through(ordinary, reply, PLAIN_REQUEST)


@settings(max_examples=40, deadline=None)
@given(
    bodies=st.lists(PLAIN_BODY | WILD_BODY, min_size=1, max_size=3),
    places=st.lists(st.integers(min_value=0), max_size=3),
)
def test_both_ways_read_requests_alike_in_pieces_and_behind_each_other(
    lane: AppServer, ordinary: AppServer, bodies: list[Any], places: list[int]
):
    pieces = split(b"".join(request(as_json(body)) for body in bodies), places)
    reply, count = reply_of(as_json(PLAIN)), len(bodies)
    assert through(lane, reply, *pieces, count=count) == through(ordinary, reply, *pieces, count=count)


HEADERS = st.sampled_from(
    [
        b"Origin: http://localhost\r\n",
        b"Origin: http://page.example\r\n",
        b"Origin: http://evil.example\r\n",
        b"Host: localhost\r\n",
        b"X-Toolway-Tools: none\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive, X-Own\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Content-Encoding: identity\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 00\r\n",
        b"Content-Length : 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Idempotency-Key: a\r\n",
        b"Api-Key: b\r\n",
        b"X-Large: " + b"x" * 60_000 + b"\r\n",
        b"X-Fold: a\r\n b\r\n",
        b"X-Bare: a\nContent-Length: 5\r\n",
        b"X-Nothing:\r\n",
        "X-Latin: \xe9\r\n".encode("latin-1"),
    ]
)


@settings(max_examples=40, deadline=None)
@given(extra=st.lists(HEADERS, max_size=2), again=st.lists(HEADERS, max_size=1))
def test_both_ways_read_heads_alike(
    cors: tuple[AppServer, AppServer], extra: list[bytes], again: list[bytes]
):
    """A head is read once for each connection: the second request has another."""
    body, reply = as_json({"model": "mock", "messages": QUESTION}), reply_of(as_json(PLAIN))
    results = []
    for app in cors:
        warm(app, reply)
        with connected(app) as client:
            received = [b""]
            for more in ([], extra, extra, again, []):
                if b"connection: close" not in received[-1]:
                    head = HEAD.replace(b"X-Own", b"".join(more) + b"X-Own", 1)
                    client.sendall(request(body, head))
                    received.append(Answers().read(client, 1))
            results.append((received, asked(app)))
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def cors() -> Iterator[tuple[AppServer, AppServer]]:
    """With the lane and without."""
    allowed = {"cors_origins": ["http://page.example"]}
    with app_server(**allowed) as one, app_server(has_lane=False, **allowed) as other:
        yield one, other


def test_a_plain_answer_takes_the_lane(lane: AppServer, taken: list[str]):
    warm(lane, WORDS)
    answer = lane.ask()
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "It is cloudy."}
    assert taken == ["answered"]
    assert [tool["function"]["name"] for tool in lane.upstream.seen[0].json["tools"]]


def test_each_answer_has_the_headers_that_the_model_server_gave_it(lane: AppServer, taken: list[str]):
    """Be they those of the answer before, which are not read again, or others."""
    ids = [b"one", b"one", b"one", b"two", b"two", b"one"]
    replies = []
    for number, request_id in enumerate(ids):
        (body,), kind = WORDS.parts, (b"content-type", b"application/json")
        assert isinstance(body, bytes)
        said = body.replace(b"cloudy", b"cloudy" + b"!" * (number % 3))
        length, cookie = (b"content-length", b"%d" % len(said)), (b"set-cookie", b"of=" + request_id)
        replies.append(Reply([said], 200, [kind, length, (b"x-request-id", request_id), cookie]))
    warm(lane, *replies)
    with connected(lane) as client:
        for number, request_id in enumerate(ids):
            client.sendall(PLAIN_REQUEST)
            answer = Answers().read(client, 1)
            assert answer.count(b"x-request-id: " + request_id + b"\r\n") == 1
            assert answer.count(b"x-request-id") == answer.count(b"content-length") == 1
            assert b"set-cookie" not in answer
            assert b"cloudy" + b"!" * (number % 3) + b"." in answer
    assert taken == ["answered"] * len(ids)


@pytest.mark.parametrize("places", [[], [len(HEAD)], [len(HEAD) + 20, -20, -2]])
def test_a_body_may_come_behind_its_head_in_pieces(lane: AppServer, taken: list[str], places: list[int]):
    through(lane, WORDS, *split(PLAIN_REQUEST, places))
    assert taken == ["answered"]


@pytest.mark.parametrize("size", [MAX_BEHIND, MAX_SIZE - 4096])
@pytest.mark.parametrize("more", [{}, {"tools": []}])
def test_long_bodies_are_read_alike_on_both_ways(
    lane: AppServer, ordinary: AppServer, taken: list[str], size: int, more: Any
):
    said = [{"role": "user", "content": "x" * size}]
    sent = request(as_json({"model": "mock", "messages": said, **more}))
    places = [len(HEAD) + 20, size // 3, size // 2, -2]
    got = through(lane, WORDS, *split(sent, places))
    assert taken == ([] if more else ["answered"])
    assert got == through(ordinary, WORDS, *split(sent, places))


def test_the_lane_is_not_offered_each_of_the_long_requests_that_it_does_not_take(
    lane: AppServer, taken: list[str]
):
    long = {"model": "mock", "messages": [{"role": "user", "content": "x" * MAX_BEHIND}]}
    bodies = [{**long, "tools": []}, long, {"model": "mock", "messages": QUESTION}]
    with connected(lane) as client:
        came = []
        for body in [*bodies, *[long] * LONG_PASSED_BY]:
            warm(lane, WORDS)
            client.sendall(request(as_json(body)))
            assert b" 200 " in Answers().read(client, 1)
            came.append([*taken])
    passed_by = [[]] * (LONG_PASSED_BY - 1)
    assert came == [[], [], ["answered"], *passed_by, ["answered"]]


def test_a_body_that_is_too_long_is_refused_before_it_comes_on_both_ways():
    with app_server(max_body_bytes=1000) as one, app_server(max_body_bytes=1000, has_lane=False) as other:
        got = [through(app, WORDS, HEAD % 1001, count=1) for app in (one, other)]
    assert got[0] == got[1]
    assert b" 413 " in got[0][0]


def test_a_body_that_was_too_long_has_no_other_of_its_connection_refused(taken: list[str]):
    long, short = [
        request(as_json({"model": "mock", "messages": QUESTION, "tools": [], "metadata": "x" * size}))
        for size in (1000, 1)
    ]
    with app_server(max_body_bytes=1000) as app:
        warm(app, WORDS)
        with connected(app) as client:
            client.sendall(long)
            assert b" 413 " in Answers().read(client, 1)
            client.sendall(short)
            assert b" 200 " in Answers().read(client, 1)
    assert not taken


HELD = {"role": "assistant", "content": None, "tool_calls": [tool_call()]}
TITLE = {"role": "system", "content": "You are a title generator. You output ONLY a thread title."}


@pytest.mark.parametrize(
    ("body", "headers", "query"),
    [
        ({"n": 2, "tool_choice": "none"}, {}, ""),
        ({"tools": []}, {}, ""),
        ({"tool_choice": "none"}, {}, ""),
        ({"functions": []}, {}, ""),
        ({"messages": [*QUESTION, HELD, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, {}, ""),
        ({"metadata": "x" * MAX_SIZE}, {}, ""),
        ({}, {"x-toolway-tools": "none"}, ""),
        ({}, {"x-toolway-max-calls": "1"}, ""),
        ({}, {"connection": "close"}, ""),
        ({}, {}, "?api-version=1"),
    ],
)
def test_what_wants_more_goes_the_ordinary_way(
    lane: AppServer, taken: list[str], body: Any, headers: dict[str, str], query: str
):
    warm(lane, WORDS)
    url = f"{lane.url}/v1/chat/completions{query}"
    answer = httpx2.post(url, json={"model": "mock", "messages": QUESTION, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert not taken


def long_tools() -> ToolService:
    """Tools whose definitions are longer than a small context."""
    service = ToolService()
    names = [f"get_weather_{number}" for number in range(20)]
    service.document = document(dict.fromkeys(names, CITY))
    for item in service.document["paths"].values():
        item["post"]["description"] = "It has many more details. " * 40
    return service


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_both_ways_offer_the_same_tools_to_every_model(mode: str):
    contexts = {"small": {"max_model_len": 3000}, "large": {"max_model_len": 131_072}, "unknown": {}}
    listed = json_reply(
        {"data": [{"id": name, "object": "model", **said} for name, said in contexts.items()]}
    )
    sent = [request(as_json({"model": name, "messages": QUESTION})) for name in contexts]
    results = []
    with running(long_tools(), lifespan="off") as tools:
        for has_lane in (True, False):
            with app_server(has_lane=has_lane, endpoints=tools, tool_search=mode) as app:
                app.upstream.models = listed
                results.append([through(app, WORDS, one) for one in [*sent, *sent]])
    assert results[0] == results[1]


def test_calls_are_run_and_the_model_server_is_asked_nothing_twice(lane: AppServer, taken: list[str]):
    warm(lane, CALLS, WORDS)
    assert lane.ask().json()["choices"][0]["message"]["content"] == "It is cloudy."
    assert taken == ["handed over"]
    assert len(lane.tools.calls) == 1
    roles = [[message["role"] for message in seen.json["messages"]] for seen in lane.upstream.seen]
    assert roles == [["user"], ["user", "assistant", "tool"]]


def test_an_answer_that_teaches_what_the_model_server_is_is_not_asked_for_again(taken: list[str]):
    named = Reply(CALLS.parts, 200, [*CALLS.headers, (b"server", b"llama.cpp")])
    with app_server() as app:
        warm(app, named, WORDS)
        assert app.ask().json()["choices"][0]["message"]["content"] == "It is cloudy."
        assert taken == ["handed over"]
        roles = [[message["role"] for message in seen.json["messages"]] for seen in app.upstream.seen]
        assert roles == [["user"], ["user", "assistant", "tool"]]


def test_the_time_for_tools_runs_while_the_lane_waits_for_the_model(taken: list[str]):
    async def think() -> None:
        await anyio.sleep(1.7)

    slow = Reply([think, *CALLS.parts], 200, CALLS.headers)
    answers = []
    with running(ToolService(), lifespan="off") as tools:
        for has_lane in (False, True):
            with app_server(has_lane=has_lane, endpoints=tools, max_seconds=1.5) as app:
                warm(app, slow, WORDS)
                app.ask()
                answers.append([seen.json["messages"] for seen in app.upstream.seen])
    assert taken == ["handed over"]
    assert answers[0] == answers[1]
    assert "1.5 s" in answers[1][1][-1]["content"]


@pytest.mark.parametrize("reply", [OUT_OF_MEMORY, sse(PLAIN), Reply(reset=True), Reply([b"{"], cut=True)])
def test_what_fails_is_told_as_on_the_ordinary_way(
    lane: AppServer, ordinary: AppServer, taken: list[str], reply: Reply
):
    got = through(lane, reply, PLAIN_REQUEST)
    assert taken == ["handed over"]
    assert got == through(ordinary, reply, PLAIN_REQUEST)


@pytest.mark.parametrize("has_had_it_for_long", [False, True])
def test_a_request_is_sent_twice_only_where_it_met_the_closing_of_a_used_connection(
    lane: AppServer, ordinary: AppServer, has_had_it_for_long: bool, monkeypatch: pytest.MonkeyPatch
):
    if has_had_it_for_long:
        monkeypatch.setattr(connection, "STALE_SECONDS", -1.0)
    for app in (lane, ordinary):
        answer, _ = through(app, Reply(reset=True), PLAIN_REQUEST)
        assert b" 502 " in answer
        assert len(app.upstream.seen) == (1 if has_had_it_for_long else 2)


def test_an_answer_larger_than_a_buffer_is_read_to_its_end(
    lane: AppServer, ordinary: AppServer, taken: list[str]
):
    long = whole({"content": "x" * 3 * MAX_BUFFERED})
    got = through(lane, long, PLAIN_REQUEST)
    assert taken == ["handed over"]
    assert got == through(ordinary, long, PLAIN_REQUEST)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_an_interrupted_tool_round_keeps_only_its_own_conversation_out_of_the_lane(
    tmp_path: Path, taken: list[str], kind: str
):
    store = "memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'store.db'}"
    gate, key = Gate(), {"authorization": "Bearer x"}
    rome = {"model": "mock", "messages": [{"role": "user", "content": "And in Rome?"}]}
    with app_server(store=store) as app:
        warm(app, CALLS, Reply([b" ", gate]))
        with connected(app) as client:
            client.sendall(request(as_json(rome)))
            gate.wait_for_arrival()
        app.upstream.departures.wait()
        gate.open()
        warm(app, WORDS)
        app.ask(headers=key)
        assert taken == ["answered"]
        app.post(as_json(rome), headers=key)
        goes_on = [*rome["messages"], {"role": "user", "content": "Never mind."}]
        app.post({**rome, "messages": goes_on}, headers=key)
        assert taken == ["answered"]
        app.post({**rome, "metadata": {}}, headers=key)
    assert taken == ["answered", "answered"]


@pytest.mark.parametrize("behind", [b"", b"\r\n", b"\r\n" * 3, b"POST /v1/chat"])
def test_a_client_that_leaves_stops_the_model_server(taken: list[str], behind: bytes):
    gate = Gate()
    with app_server() as app:
        warm(app, Reply([b" ", gate]))
        with connected(app) as client:
            client.sendall(PLAIN_REQUEST)
            gate.wait_for_arrival()
            client.sendall(behind)
        app.upstream.departures.wait()
        gate.open()
    assert taken == ["left"]


@pytest.mark.parametrize("behind", [b"junk\r\n\r\n", b"x" * (MAX_BEHIND + 1)])
def test_a_client_that_leaves_behind_bytes_of_no_request_stops_the_model_server(
    taken: list[str], behind: bytes
):
    for has_lane in (False, True):
        gate = Gate()
        with app_server(has_lane=has_lane) as app:
            warm(app, Reply([b" ", gate]))
            with connected(app) as client:
                client.sendall(PLAIN_REQUEST)
                gate.wait_for_arrival()
                client.sendall(behind)
                httpx2.get(f"{app.url}/healthz")  # then it was read
            app.upstream.departures.wait()
            gate.open()
    assert taken == ["handed over"]


def test_a_connection_is_kept_while_it_is_used_and_closed_when_it_is_not(taken: list[str]):
    idle = 0.5
    with app_server(idle_timeout=idle) as app:
        warm(app, WORDS)
        with connected(app) as client:
            end = time.monotonic() + 3 * idle
            while time.monotonic() < end:
                client.sendall(PLAIN_REQUEST)
                assert b" 200 " in Answers().read(client, 1)
            assert client.recv(1) == b""
    assert set(taken) == {"answered"}


def stopped_while_asked(app: AppServer, stop: Callable[[], None], then: str) -> bytes:
    """What a client gets that waits when its server is told to stop; the model server is then answered, or not."""
    gate = Gate()
    warm(app, Reply([gate, as_json(PLAIN)], 200, [(b"content-type", b"application/json")]))
    with ThreadPoolExecutor() as threads, connected(app) as client, connected(app) as idle:
        client.sendall(PLAIN_REQUEST)
        gate.wait_for_arrival()
        threads.submit(stop)
        assert idle.recv(1) == b""
        if then == "answered":
            gate.open()
        answer = Answers().read(client, 1)
        assert client.recv(1) == b""
        gate.open()
        return answer


@pytest.mark.parametrize("then", ["answered", "not answered"])
def test_a_server_that_stops_ends_a_request_alike_on_both_ways(taken: list[str], then: str):
    answers = []
    for has_lane in (False, True):
        with ExitStack() as stack:
            app = stack.enter_context(app_server(has_lane=has_lane))
            answers.append(stopped_while_asked(app, stack.close, then))
    assert answers[0] == answers[1]
    assert b"connection: close" in answers[0]
    assert (b" 200 " if then == "answered" else b" 503 ") in answers[0]
    assert taken == (["answered"] if then == "answered" else ["handed over"])


def test_a_key_that_is_taken_away_opens_the_lane_no_more(tmp_path: Path, taken: list[str]):
    file = tmp_path / "mcp.json"

    def write(*names: str) -> str:
        keys = {name: {"hash": hash_of(name)} for name in names}
        file.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
        return str(file)

    head = HEAD.replace(b"Bearer x", b"Bearer alice")
    sent = request(as_json({"model": "mock", "messages": QUESTION}), head)
    with app_server(config=write("alice", "bob")) as app:
        app.set_replies(WORDS).ask(headers={"Authorization": "Bearer bob"})
        with connected(app) as client:
            client.sendall(sent)
            assert b" 200 " in Answers().read(client, 1)
            write("bob")
            answer = b" 200 "
            while b" 200 " in answer:
                CAME.clear()
                client.sendall(sent)
                answer = Answers().read(client, 1)
        assert b" 401 " in answer
        assert not taken


@pytest.mark.parametrize(
    ("rights", "status", "came"),
    [
        ({}, 200, ["answered"]),
        ({"models": ["mock"]}, 200, ["answered"]),
        ({"tools": ["get_weather"]}, 200, ["answered"]),
        ({"models": ["other"]}, 404, []),
        ({"routes": ["mcp"]}, 403, []),
        ({"requests": "100/minute"}, 200, []),
        ({"tokens_per_day": 100}, 200, []),
        ({"max_rounds": 3}, 200, []),
        ({"tool_search": "on"}, 200, []),
        ({"expires": "2020-01-01"}, 401, []),
    ],
)
def test_whoever_has_limits_goes_the_ordinary_way(
    tmp_path: Path, taken: list[str], rights: Any, status: int, came: list[str]
):
    keys = {"alice": {"hash": hash_of("alice"), **rights}, "bob": {"hash": hash_of("bob")}}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
    with app_server(config=str(file)) as app:
        app.set_replies(WORDS).ask(headers={"Authorization": "Bearer bob"})
        CAME.clear()
        answer = app.ask(headers={"Authorization": "Bearer alice"})
        assert (answer.status_code, taken) == (status, came)


def test_what_the_lane_answers_is_counted_as_everything_is(taken: list[str]):
    figures = []
    for has_lane in (True, False):
        with app_server(has_lane=has_lane, metrics="on") as app:
            before = counted(app)
            warm(app, WORDS)
            app.ask()
            figures.append({name: value - before.get(name, 0) for name, value in counted(app).items()})
            if has_lane:
                assert taken == ["answered"]
    assert figures[0] == figures[1]
    assert (
        figures[0]['toolway_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}']
        == 2
    )
