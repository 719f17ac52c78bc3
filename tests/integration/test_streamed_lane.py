"""Streams in the fast lane: the same events as on the ordinary way, which goes on from the first call of a tool."""

from __future__ import annotations

import gc
import json
import re
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.app_server import POLL_SECONDS, QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.lane import (
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
from tests.support.raw import raw_server, request_head, split
from tests.support.upstream import Reply, call_stream, chunk, json_reply, text_stream, tool_call, whole
from toolway.access.keys import hash_of
from toolway.server.lane_protocol import LaneProtocol
from toolway.wire.sse import KEEP_ALIVE, STREAM_END, encode

__all__ = ["lane", "ordinary", "taken", "watched"]


def body(**more: Any) -> bytes:
    return json.dumps({"model": "mock", "stream": True, "messages": QUESTION, **more}).encode()


STREAMED = request(body())
WORDS = text_stream("It ", "is ", "cloudy.")
LONG = text_stream(*["x" * 60_000] * 400)
CALLS = call_stream(tool_call())
CALL_CHUNKS = (chunk(tool_calls=[tool_call()]), chunk(finish="tool_calls"))

COUNTED = 'toolway_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}'

TEXT = st.text(alphabet=st.sampled_from('abé日"\\\n '), max_size=5)
FRAME = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
PLAIN_DELTA = TEXT.map(lambda text: {"content": text})
DELTA = PLAIN_DELTA | st.one_of(
    TEXT.map(lambda text: {"reasoning_content": text}),
    st.sampled_from(
        [
            {},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": None},
            {"content": [{"type": "text", "text": "x"}]},
            {"content": None, "refusal": "no"},
            {"function_call": {"name": "f", "arguments": "{}"}},
            {"tool_calls": [tool_call()]},
            {"tool_calls": [tool_call(index=1, id="call_2")]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "  "}}]},
            {"tool_calls": None},
            {"tool_calls": []},
        ]
    ),
)
FINISH = st.sampled_from(["stop", "stop", "tool_calls", "length", "error", "", 1])
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(choice: dict[str, Any] | None, **more: Any) -> bytes:
    return encode(json.dumps({**FRAME, "choices": [choice] if choice else [], **more}).encode())


def deltas(kind: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    return kind.map(lambda delta: event({"index": 0, "delta": delta, "finish_reason": None}))


def finish(reason: Any) -> bytes:
    return event({"index": 0, "delta": {}, "finish_reason": reason})


ODD_EVENT = st.sampled_from(
    [
        KEEP_ALIVE,
        b"event: message\nid: 1\ndata: {}\n\n",
        event(None, prompt_filter_results=[1]),
        event(None, usage=USAGE),
        event({"index": 0, "delta": {"content": "x"}}, usage=USAGE),
        event({"index": 0, "error": {"message": "no", "code": 400}, "delta": {}}),
        encode(b'{"error": {"message": "out of memory", "type": "server_error"}}'),
        encode(b'{"error": {"message": "the context is too long", "code": "context_length_exceeded"}}'),
        encode(
            b'{"id": "c", "created": 1, "model": "m", "x": NaN, "choices": [{"delta": {"content": "x"}}]}'
        ),
        encode(b"[1]"),
        encode(b"{"),
        b'{"error": "no"}\n',
        b"<html>\n\n",
        b"stray: x\n\n",
        STREAM_END,
    ]
)
PLAIN_EVENTS = st.lists(deltas(PLAIN_DELTA), min_size=1, max_size=8)
EVENTS = PLAIN_EVENTS | st.lists(deltas(DELTA) | ODD_EVENT, max_size=8)
END = st.tuples(
    st.sampled_from([finish("stop")]) | FINISH.map(finish) | st.just(b""),
    st.sampled_from([b"", event(None, usage=USAGE)]),
    st.sampled_from([STREAM_END, STREAM_END, b""]),
).map(b"".join)
HEADS = st.sampled_from(
    [
        (200, b"text/event-stream"),
        (200, b"text/event-stream; charset=utf-8"),
        (200, b"application/json"),
        (201, b""),
        (500, b"text/event-stream"),
    ]
)


@st.composite
def streams(draw: Any) -> Reply:
    """One that a model server may write, in pieces, and may break off."""
    raw = b"".join(draw(EVENTS)) + draw(END)
    if draw(st.booleans()):
        raw = raw.replace(b"\n", b"\r\n")
    pieces = split(raw, draw(st.lists(st.integers(min_value=0), max_size=4)))
    status, kind = draw(st.just((200, b"text/event-stream")) | HEADS)
    headers = [(b"content-type", kind), (b"x-request-id", b"r1"), (b"set-cookie", b"a=b")]
    return Reply(pieces, status, headers, cut=draw(st.sampled_from([False, False, True])))


def through(app: AppServer, sent: bytes, *replies: Reply) -> tuple[Any, ...]:
    """The head and the events that the client got, whether they came whole, and what the model server was asked."""
    warm(app, *replies)
    with connected(app) as client:
        client.sendall(sent)
        answers = Answers()
        head = answers.read(client, 1).partition(b"\r\n\r\n")[0]
        return head, answers.body, answers.whole, asked(app)


MODELS = count()
"""What is learned of one model by its errors must not keep the next request out of the lane."""


@settings(max_examples=150, deadline=None)
@given(reply=streams(), usage=st.booleans())
def test_both_ways_give_the_same_events(
    lane: AppServer, ordinary: AppServer, taken: list[str], reply: Reply, usage: bool
):
    wants = {"stream_options": {"include_usage": True}} if usage else {}
    sent = request(body(model=f"mock-{next(MODELS)}", **wants))
    got = through(lane, sent, reply, WORDS)
    assert len(taken) == 1
    assert got == through(ordinary, sent, reply, WORDS)


@pytest.mark.parametrize("parts", [WORDS.parts, [b"".join(WORDS.parts)]])  # type: ignore[arg-type]
def test_a_plain_stream_takes_the_lane(lane: AppServer, taken: list[str], parts: Any):
    _, events, whole_answers, _ = through(lane, STREAMED, Reply(parts))
    assert taken == ["streamed"]
    assert whole_answers == 1
    texts = [
        json.loads(line[6:])["choices"][0]["delta"].get("content") for line in events.split(b"\n\n")[:-3]
    ]
    assert texts == ["", "It ", "is ", "cloudy."]
    assert events.endswith(STREAM_END)


def test_one_connection_carries_streams_and_whole_answers_in_turn(lane: AppServer, taken: list[str]):
    warm(lane, WORDS, whole({"content": "Yes."}), CALLS, WORDS, WORDS)
    plain = request(json.dumps({"model": "mock", "messages": QUESTION}).encode())
    with connected(lane) as client:
        for sent in (STREAMED, plain, STREAMED, STREAMED):
            client.sendall(sent)
            assert b" 200 " in Answers().read(client, 1)
    assert taken == ["streamed", "answered", "handed over, begun", "streamed"]


def test_text_before_a_call_is_seen_before_the_call_is_made(lane: AppServer, taken: list[str]):
    gate = Gate()
    look = chunk(role="assistant", content="Let me look. ")
    text, *call = [encode(json.dumps(one).encode()) for one in (look, *CALL_CHUNKS)]
    warm(lane, Reply([text, gate, *call]), WORDS)
    with connected(lane) as client:
        client.sendall(STREAMED)
        gate.wait_for_arrival()
        seen = b""
        while b"Let me look. " not in seen:
            seen += client.recv(65536)
        gate.open()
        rest = b""
        while STREAM_END not in rest:
            rest += client.recv(65536)
    assert taken == ["handed over, begun"]
    assert b"cloudy." in rest
    assert b"HTTP/1.1" not in rest
    assert [len(seen.json["messages"]) for seen in lane.upstream.seen] == [1, 3]
    assert len(lane.tools.calls) == 1


def test_a_stream_that_is_silent_is_kept_alive(taken: list[str]):
    gate = Gate()
    first, *rest = WORDS.parts
    with app_server(keepalive_interval=0.1) as app:
        warm(app, Reply([first, gate, *rest]))
        with connected(app) as client:
            client.sendall(STREAMED)
            received = b""
            while received.count(KEEP_ALIVE) < 2:
                received += client.recv(65536)
            gate.open()
            while STREAM_END not in received:
                received += client.recv(65536)
            assert KEEP_ALIVE not in received.partition(b"cloudy")[2]
    assert taken == ["streamed"]


def test_a_client_that_reads_slowly_is_waited_for_on_the_ordinary_way(
    lane: AppServer, ordinary: AppServer, taken: list[str]
):
    got = through(lane, STREAMED, LONG)
    assert taken == ["handed over, begun"]
    assert got == through(ordinary, STREAMED, LONG)


def test_a_client_that_leaves_stops_the_model_server(taken: list[str]):
    gate = Gate()
    with app_server() as app:
        warm(app, Reply([WORDS.parts[0], gate]))
        with connected(app) as client:
            client.sendall(STREAMED)
            gate.wait_for_arrival()
        app.upstream.departures.wait()
        gate.open()
    assert taken == ["left"]


def test_an_end_that_never_comes_behind_the_last_event_is_not_waited_for(lane: AppServer, taken: list[str]):
    gate = Gate()
    _, events, whole_answers, _ = through(lane, STREAMED, Reply([*WORDS.parts, gate]))
    gate.open()
    assert events.endswith(STREAM_END)
    assert whole_answers == 1
    assert taken == ["streamed"]
    assert through(lane, STREAMED, WORDS)[2] == 1


def stopped_in_mid_stream(app: AppServer, stop: Callable[[], None], then: str, behind: bytes) -> bytes:
    """What a client gets whose stream has begun when its server is told to stop; the model server goes on, or not.

    A request stands `behind` the stream's, if it is any.
    """
    gate = Gate()
    first, *rest = WORDS.parts
    warm(app, Reply([first, gate, *rest]), WORDS)
    with ThreadPoolExecutor() as threads, connected(app) as client, connected(app) as idle:
        client.sendall(STREAMED)
        gate.wait_for_arrival()
        client.sendall(behind)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        Answers().read(idle, 1)  # then what stands behind was read too
        threads.submit(stop)
        assert idle.recv(1) == b""
        if then == "answered":
            gate.open()
        answers = Answers()
        answers.read(client, 2)
        gate.open()
        assert answers.whole == (2 if behind else 1)
        return answers.body


@pytest.mark.parametrize("behind", [b"", STREAMED])
@pytest.mark.parametrize("then", ["answered", "not answered"])
def test_a_server_that_stops_ends_a_stream_alike_on_both_ways(taken: list[str], then: str, behind: bytes):
    answers = []
    for has_lane in (False, True):
        with ExitStack() as stack:
            app = stack.enter_context(app_server(has_lane=has_lane))
            answers.append(stopped_in_mid_stream(app, stack.close, then, behind))
    assert answers[0] == answers[1]
    first, _, second = answers[0].partition(STREAM_END)
    for answer in (first, second) if behind else (first,):
        assert (b"cloudy" if then == "answered" else b"server_stopping") in answer
    is_streamed = then == "answered" and not behind
    assert taken == (["streamed"] if is_streamed else ["handed over, begun"])


def test_no_call_is_run_in_a_stream_whose_key_is_taken_away(tmp_path: Path, taken: list[str]):
    file, gate = tmp_path / "mcp.json", Gate()

    def write(*names: str) -> str:
        keys = {name: {"hash": hash_of(name)} for name in names}
        file.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
        return str(file)

    head = HEAD.replace(b"Bearer x", b"Bearer alice")
    said, *call = [encode(json.dumps(one).encode()) for one in (chunk(content="Well."), *CALL_CHUNKS)]
    with app_server(config=write("alice", "bob")) as app:
        app.upstream.models = json_reply({"data": []})
        app.set_replies(WORDS).ask(headers={"Authorization": "Bearer bob"})
        app.set_replies(Reply([said, gate, *call]))
        with connected(app) as client:
            client.sendall(request(body(), head))
            gate.wait_for_arrival()
            write("bob")
            alice = {"Authorization": "Bearer alice"}
            while httpx2.get(f"{app.url}/v1/models", headers=alice).status_code != 401:
                pass
            gate.open()
            answers = Answers()
            answers.read(client, 1)
    *_, error, end, _ = answers.body.split(b"\n\n")
    assert json.loads(error[6:])["error"]["code"] == "invalid_api_key"
    assert encode(end[6:]) == STREAM_END
    assert answers.whole == 1
    assert taken[-1] == "handed over, begun"
    assert not app.tools.calls


def test_streams_of_the_lane_are_counted_as_all_are(taken: list[str]):
    figures = []
    for has_lane in (True, False):
        with app_server(has_lane=has_lane, metrics="on") as app:
            before = counted(app)
            warm(app, WORDS, CALLS, WORDS)
            for _ in range(2):
                assert app.ask(stream=True).status_code == 200
            figures.append({name: value - before.get(name, 0) for name, value in counted(app).items()})
            if has_lane:
                assert taken == ["streamed", "handed over, begun"]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("then", [WORDS.parts[1:], [encode(json.dumps(one).encode()) for one in CALL_CHUNKS]])
def test_a_stream_is_counted_once_and_when_it_begins_on_both_ways(taken: list[str], then: Any):
    seen = []
    for has_lane in (True, False):
        gate = Gate()
        with app_server(has_lane=has_lane, metrics="on") as app:
            warm(app, Reply([WORDS.parts[0], gate, *then]), WORDS)
            before = counted(app)[COUNTED]
            with connected(app) as client:
                client.sendall(STREAMED)
                received = client.recv(65536)
                begun = counted(app)[COUNTED] - before
                gate.open()
                while STREAM_END not in received:
                    received += client.recv(65536)
            seen.append((begun, counted(app)[COUNTED] - before))
            assert len(taken) == has_lane
    assert seen == [(1, 1), (1, 1)]


def test_a_stream_that_falls_silent_is_counted_on_both_ways(taken: list[str]):
    figures = []
    for has_lane in (True, False):
        gate = Gate()
        with app_server(has_lane=has_lane, metrics="on", upstream_silence_timeout=1) as app:
            before = counted(app)
            warm(app, Reply([WORDS.parts[0], gate]))
            assert "silent for too long" in app.ask(stream=True).text
            gate.open()
            figures.append({name: value - before.get(name, 0) for name, value in counted(app).items()})
            if has_lane:
                assert taken == ["handed over, begun"]
    assert figures[0] == figures[1]


def test_a_whole_answer_to_a_streamed_request_is_streamed(
    lane: AppServer, ordinary: AppServer, taken: list[str]
):
    answer = whole({"content": "It is cloudy."})
    got = through(lane, STREAMED, answer)
    assert taken == ["handed over"]
    assert got == through(ordinary, STREAMED, answer)
    assert httpx2.Response(200, content=got[1]).text.count("cloudy") == 1


def ended(figures: dict[str, float]) -> dict[str, float]:
    """How many conversations came to which end."""
    return {name: value for name, value in figures.items() if name.startswith("toolway_conversations_total")}


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_client_that_leaves_a_stream_is_counted_on_both_ways(taken: list[str], is_behind: bool):
    """Be it while the model server says nothing, or while it says more than its client reads."""
    figures = []
    for has_lane in (True, False):
        gate = Gate()
        said = Reply([WORDS.parts[0], gate])
        with app_server(has_lane=has_lane, metrics="on") as app:
            before = counted(app)
            warm(app, LONG if is_behind else said)
            with connected(app) as client:
                client.sendall(STREAMED)
                assert client.recv(1)
                while has_lane and is_behind and not taken:
                    time.sleep(POLL_SECONDS)
            while sum(ended(now := counted(app)).values()) < sum(ended(before).values()) + 2:
                time.sleep(POLL_SECONDS)
            gate.open()
            figures.append({name: value - before.get(name, 0) for name, value in now.items()})
            if has_lane:
                assert taken == ["handed over, begun" if is_behind else "left"]
    assert figures[0] == figures[1]
    assert [name for name in ended(figures[0]) if 'outcome="client left"' in name]


NO_CHUNK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n"
)


def test_an_answer_that_is_broken_as_soon_as_it_begins_is_none_on_both_ways(taken: list[str]):
    said = b"".join(part for part in whole({"content": "Well."}).parts if isinstance(part, bytes))
    well = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    got = []
    for has_lane in (True, False):
        answers = [well % (len(said), said), NO_CHUNK]

        async def serve(reader: StreamReader, writer: StreamWriter, left: list[bytes] = answers) -> None:
            while True:
                head = await request_head(reader)
                length = re.search(rb"content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                is_asked = head.startswith(b"POST")
                writer.write(left.pop(0) if is_asked else b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")

        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            port = stack.enter_context(portal.wrap_async_context_manager(raw_server(serve)))
            url = f"http://127.0.0.1:{port}/v1"
            app = stack.enter_context(app_server(has_lane=has_lane, openai_base_url=url))
            assert app.ask().status_code == 200
            client = stack.enter_context(connected(app))
            client.sendall(STREAMED)
            answer = Answers()
            got.append((answer.read(client, 1).partition(b"\r\n")[0], answer.body))
            if has_lane:
                assert taken[-1] == "handed over"
    assert got[0] == got[1]
    assert b" 502 " in got[0][0]


def protocols() -> int:
    return sum(isinstance(one, LaneProtocol) for one in gc.get_objects())


def test_no_connection_waits_at_its_end_for_the_garbage_collector(lane: AppServer, taken: list[str]):
    gc.collect()
    gc.disable()
    try:
        before = protocols()  # takes seconds; no connection to the model server is idle for so long
        warm(lane, WORDS)
        with connected(lane) as client:
            client.sendall(STREAMED)
            Answers().read(client, 1)
        end = time.monotonic() + DEADLINE
        while protocols() > before:
            assert time.monotonic() < end, "it is still there"
    finally:
        gc.enable()
    assert taken == ["streamed"]
