"""What happens when: text at once, comments in silence, calls side by side, clients that leave. No sleeps: gates."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio.lowlevel
import httpx2
import orjson
import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, chunk, sse, text_stream, tool_call, whole

BODY: dict[str, Any] = {"model": "mock", "messages": QUESTION}


@contextmanager
def open_stream(app: AppServer, **more: Any) -> Iterator[httpx2.Response]:
    """A streamed request whose head has come; leaving the block leaves the server."""
    url = f"{app.url}/v1/chat/completions"
    with (
        httpx2.Client(timeout=DEADLINE) as client,
        client.stream("POST", url, json={**BODY, "stream": True, **more}) as answer,
    ):
        yield answer


def read_until(answer: Iterator[bytes], text: bytes) -> bytes:
    """What came up to the part with this text in it."""
    seen = b""
    while text not in seen:
        seen += next(answer)
    return seen


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


def slow_tool(gate: Gate) -> ToolService:
    async def slow(_: Any) -> str:
        await gate()
        return "slow but well"

    return ToolService(slow=slow)


def slow_call() -> Reply:
    return call_stream(tool_call("slow"))


def test_text_reaches_the_client_while_the_round_goes_on(gate: Gate):
    first, rest = chunk(role="assistant", content="Let me look."), chunk(finish="stop")
    parts = [*sse(first, done=False).parts, gate, *sse(rest).parts]
    with app_server(Reply(parts)) as app, open_stream(app) as answer:
        received = answer.iter_raw()
        assert b"Let me look." in read_until(received, b"Let me look.")
        gate.wait_for_arrival()
        gate.open()
        assert b"[DONE]" in read_until(received, b"[DONE]")


def test_the_head_and_comments_come_while_a_tool_runs(gate: Gate):
    replies = slow_call(), text_stream("Done.")
    with (
        app_server(*replies, tools=slow_tool(gate), keepalive_interval=0.05) as app,
        open_stream(app) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        gate.wait_for_arrival()
        received = answer.iter_raw()
        early = read_until(received, b": keep-alive\n\n: keep-alive\n\n")
        gate.open()
        everything = early + b"".join(received)
    chunks = chunks_of(everything.decode())
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "Done."


def test_comments_come_while_the_model_server_is_silent(gate: Gate):
    parts = [*sse(chunk(role="assistant", content=""), done=False).parts, gate, *text_stream("Late.").parts]
    with app_server(Reply(parts), keepalive_interval=0.05) as app, open_stream(app) as answer:
        received = answer.iter_raw()
        early = read_until(received, b": keep-alive\n\n")
        gate.open()
        assert content_of(chunks_of((early + b"".join(received)).decode())) == "Late."


def test_two_slow_tools_run_side_by_side():
    gates = {"Paris": Gate(), "Rome": Gate()}

    async def slow(arguments: Any) -> str:
        await gates[arguments["city"]]()
        return f"{arguments['city']} is fine"

    calls = [
        tool_call("slow", '{"city":"Paris"}', id="1"),
        tool_call("slow", '{"city":"Rome"}', id="2", index=1),
    ]
    with app_server(call_stream(*calls), text_stream("Done."), tools=ToolService(slow=slow)) as app:
        with open_stream(app) as answer:
            gates["Paris"].wait_for_arrival()
            gates["Rome"].wait_for_arrival()
            gates["Rome"].open()
            gates["Paris"].open()
            answer.read()
        results = [message["content"] for message in app.upstream.seen[1].json["messages"][2:]]
    assert results == ['"Paris is fine"', '"Rome is fine"']


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_stops_the_tool(gate: Gate, streamed: bool):
    call = slow_call() if streamed else whole({"tool_calls": [tool_call("slow")]}, finish="tool_calls")
    with app_server(call, tools=slow_tool(gate)) as app:
        leave_while(app, gate.wait_for_arrival, streamed=streamed)
        app.tools.departures.wait()
        assert app.tools.departures.names == ["slow"]
        assert len(app.upstream.seen) == 1


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_closes_the_model_servers_connection(gate: Gate, streamed: bool):
    first = sse(chunk(role="assistant", content="Well"), done=False).parts
    with app_server(Reply([*first, gate])) as app:
        leave_while(app, gate.wait_for_arrival, streamed=streamed)
        app.upstream.departures.wait()
        assert app.upstream.departures.names == ["/v1/chat/completions"]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_leaves_before_the_model_server_answers_closes_its_connection(
    gate: Gate, streamed: bool
):
    with app_server(text_stream("never")) as app:
        app.upstream.before = gate
        leave_while(app, gate.wait_for_arrival, streamed=streamed)
        app.upstream.departures.wait()
        assert len(app.upstream.seen) == 1


def leave_while(app: AppServer, reached: Callable[[], None], *, streamed: bool) -> None:
    """Send a request and hang up as soon as `reached` returns."""
    request = httpx2.Request("POST", f"{app.url}/v1/chat/completions", json={**BODY, "stream": streamed})
    host, port = app.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        reached()


def test_nine_conversations_at_once_do_not_mix():
    gate = Gate()

    async def meet(arguments: Any) -> Any:
        await gate()
        return arguments

    def model(request: dict[str, Any]) -> Reply:
        last = request["messages"][-1]
        if last["role"] == "tool":
            return text_stream("You said ", last["content"])
        word = last["content"]
        return call_stream(tool_call("meet", f'{{"city":"{word}"}}', id=f"call_{word}"))

    with app_server(tools=ToolService(meet=meet)) as app, ThreadPoolExecutor(9) as pool:
        app.upstream.answer = model
        words = [f"word{number}" for number in range(9)]

        def talk(word: str) -> str:
            answer = app.post({"model": "m", "stream": True, "messages": [{"role": "user", "content": word}]})
            chunks = chunks_of(answer.text)
            assert_one_clean_answer(chunks)
            return content_of(chunks)

        talks = [pool.submit(talk, word) for word in words]
        for _ in words:
            gate.wait_for_arrival()
        gate.open()
        assert [t.result(DEADLINE) for t in talks] == [f'You said {{"city":"{word}"}}' for word in words]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_model_that_calls_for_ever_is_brought_to_an_end(streamed: bool):
    reply = (
        call_stream(tool_call()) if streamed else whole({"tool_calls": [tool_call()]}, finish="tool_calls")
    )
    with app_server(reply, max_rounds=3) as app:
        answer = app.ask(stream=streamed)
        assert len(app.tools.calls) == 3
        assert len(app.upstream.seen) == 5
        assert "tools" not in app.upstream.seen[-1].json
    if streamed:
        chunks = chunks_of(answer.text)
        assert_one_clean_answer(chunks)
        text = content_of(chunks)
    else:
        text = answer.json()["choices"][0]["message"]["content"]
        assert "tool_calls" not in answer.text
    assert "limit of 3 rounds" in text


def test_bytes_that_arrive_three_at_a_time_make_the_same_answer():
    streams = [call_stream(tool_call()), text_stream("Il fait 20 °C à Paris — ☁️")]
    slices = [b"".join(p for p in reply.parts if isinstance(p, bytes)) for reply in streams]
    cut = [Reply([body[i : i + 3] for i in range(0, len(body), 3)]) for body in slices]
    with app_server(*cut) as app:
        chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "Il fait 20 °C à Paris — ☁️"


def test_a_client_that_does_not_read_is_cut_off_and_the_model_server_told():
    (event,) = sse(chunk(role="assistant", content="x" * 9000), done=False).parts
    flood = itertools.cycle([event, anyio.lowlevel.checkpoint])
    body = orjson.dumps({**BODY, "stream": True})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with app_server(Reply(flood), send_timeout=0.4) as app:
        port = int(app.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + body)
            app.upstream.departures.wait()
    assert app.upstream.departures.names == ["/v1/chat/completions"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_server_that_can_wait_no_longer_tells_so_before_it_stops(gate: Gate, path: str, streamed: bool):
    call = slow_call() if streamed else whole({"tool_calls": [tool_call("slow")]}, finish="tool_calls")
    with ThreadPoolExecutor() as threads:
        with app_server(call, tools=slow_tool(gate)) as app:
            question = {**BODY, "input": "Hello", "stream": streamed}
            asked = threads.submit(httpx2.post, f"{app.url}{path}", json=question, timeout=DEADLINE)
            gate.wait_for_arrival()
        answer = asked.result()
    assert "Toolway is being stopped" in answer.text
    if streamed:
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert answer.json()["error"]["code"] == "server_stopping"


def test_what_is_passed_on_and_has_no_answer_when_the_server_stops_is_a_503(gate: Gate):
    with ThreadPoolExecutor() as threads:
        with app_server(text_stream("never")) as app:
            app.upstream.before = gate
            asked = threads.submit(httpx2.post, f"{app.url}/v1/embeddings", json={}, timeout=DEADLINE)
            gate.wait_for_arrival()
        answer = asked.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_stopping")


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_of_http_1_0_gets_a_body_without_chunks(streamed: bool):
    reply = text_stream("Hello") if streamed else whole({"content": "Hello"})
    body = orjson.dumps({**BODY, "stream": streamed})
    with app_server(reply) as app:
        host, port = app.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as client:
            head = (
                b"POST /v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
                % len(body)
            )
            client.sendall(head + body)
            received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, answer = received.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert answer.endswith(b"data: [DONE]\n\n" if streamed else b"}")
    assert answer.startswith(b"data: {" if streamed else b"{")
