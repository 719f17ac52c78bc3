"""Model servers, tools and clients that fail while a response is made: what the client is told, and what is ended."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    THEIRS,
    approval_tool,
    ask,
    decision,
    error_of,
    events_of,
    get,
    items_of,
    kinds,
    respond,
    sent,
    server,
    text_of,
    turn,
    types,
)
from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.responses import check_events
from tests.support.servers import free_port
from tests.support.tools import ToolService
from tests.support.upstream import OUT_OF_MEMORY, Reply, chunk, json_reply, sse, tool_call

OURS = tool_call(id="ours")
JSON_TYPE = ((b"content-type", b"application/json"),)
BROKEN = {
    "refused": OUT_OF_MEMORY,
    "refused with 429": json_reply({"error": {"message": "slow down"}}, 429, [(b"retry-after", b"7")]),
    "reset": Reply(reset=True),
    "html": Reply([b"<html>502</html>"], headers=((b"content-type", b"text/html"),)),
    "not json": Reply([b"{oops"], headers=JSON_TYPE),
    "error in a 200": json_reply({"error": {"message": "out of memory"}}),
    "no choices": json_reply({"id": "x", "choices": None}),
    "cut": Reply([b'{"id":'], headers=JSON_TYPE, cut=True),
}


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    """A Toolway that does not wait for a model server that has no time."""
    with app_server(retry_wait=0.1) as server:
        yield server


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_breaks_in_round_2_fails_in_words(app: AppServer, name: str):
    app.set_replies(turn("Wait.", OURS, streamed=True), BROKEN[name])
    answer = respond(app, input=QUESTION, stream=True, tools=[server(app)])
    assert answer.status_code == 200
    events = events_of(answer.text)
    response = check_events(events)
    assert types(events)[-2:] == ["error", "response.failed"]
    assert events[-2]["error"]["message"] == response["error"]["message"]
    expected = "rate_limit_exceeded" if "429" in name else "server_error"
    assert (response["status"], response["error"]["code"]) == ("failed", expected)
    assert kinds(response) == ["mcp_list_tools", "message", "mcp_call"]
    assert response["output"][2]["status"] == "completed"
    assert str(app.upstream.seen[0].header(b"host"), "ascii") not in answer.text
    assert len(app.tools.calls) == 1
    assert get(app, response["id"]).json() == response
    refused = respond(app, input="And?", previous_response_id=response["id"])
    assert "is failed" in error_of(refused, 400)["message"]


TOO_LONG = "context_length_exceeded"
REFUSALS = {
    "llama.cpp's": (400, {"code": 400, "message": "too long", "type": "exceed_context_size_error"}, TOO_LONG),
    "OpenAI's": (400, {"code": TOO_LONG, "message": "too long"}, TOO_LONG),
    "no quota": (429, {"code": "insufficient_quota", "message": "pay"}, "insufficient_quota"),
    "too fast": (429, {"code": None, "message": "slow down"}, "rate_limit_exceeded"),
    "a code of its own": (400, {"code": "moon_phase", "message": "not now"}, "moon_phase"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_the_code_of_a_refusal_survives_in_later_rounds(app: AppServer, name: str):
    status, error, code = REFUSALS[name]
    refusal = json_reply({"error": error}, status)
    app.set_replies(turn("", OURS, streamed=True), refusal, refusal)
    events = events_of(respond(app, input=QUESTION, stream=True).text)
    published = "server_error" if code == "moon_phase" else code
    assert (events[-2]["error"]["code"], events[-1]["response"]["error"]["code"]) == (code, published)
    check_events(events)
    app.set_replies(turn("", OURS, streamed=False), refusal, refusal)
    assert error_of(respond(app, input=QUESTION), 502)["code"] == code


def test_the_official_client_raises_when_a_stream_fails(app: AppServer):
    app.set_replies(turn("Wait.", OURS, streamed=True), BROKEN["refused"])
    with app.client() as client, pytest.raises(openai.APIError, match="out of memory"):
        list(client.responses.create(model="mock", input="Hi", stream=True))


@pytest.mark.parametrize("name", BROKEN)
def test_a_whole_response_that_breaks_in_round_2_is_not_to_be_retried(app: AppServer, name: str):
    app.set_replies(turn("", OURS, streamed=False), BROKEN[name])
    answer = respond(app, input=QUESTION)
    assert error_of(answer, 502)["type"] == "upstream_error"
    assert answer.headers["x-should-retry"] == "false"
    assert len(app.tools.calls) == 1


@BOTH
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_refusal_in_round_1_is_relayed(app: AppServer, status: int, streamed: bool):
    body = b'{ "error" : {"message":"no",   "code":null} }'
    headers = [*JSON_TYPE, (b"retry-after", b"7"), (b"x-request-id", b"req-1")]
    app.set_replies(Reply([body], status, headers))
    answer = respond(app, input=QUESTION, stream=streamed)
    assert (answer.status_code, answer.content) == (status, body)
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("7", "req-1")
    assert "x-should-retry" not in answer.headers


@BOTH
@pytest.mark.parametrize("name", ["reset", "html", "not json", "error in a 200", "no choices", "cut"])
def test_what_breaks_before_a_tool_ran_is_a_502_that_may_be_retried(
    app: AppServer, name: str, streamed: bool
):
    app.set_replies(BROKEN[name])
    answer = respond(app, input=QUESTION, stream=streamed)
    assert error_of(answer, 502)["type"] == "upstream_error"
    assert "x-should-retry" not in answer.headers


def test_no_model_server_at_all_is_a_502():
    with app_server(openai_base_url=f"http://127.0.0.1:{free_port()}/v1") as app:
        for streamed in (True, False):
            assert error_of(respond(app, input="Hi", stream=streamed), 502)["type"] == "upstream_error"


@pytest.mark.parametrize("said", ["text", "reasoning", "a call", "nothing"])
def test_a_stream_that_is_cut_is_a_failure(app: AppServer, said: str):
    begin = {
        "text": [chunk(role="assistant", content="It is")],
        "reasoning": [chunk(role="assistant", reasoning_content="Hm")],
        "a call": [chunk(role="assistant", tool_calls=[tool_call("theirs", '{"a":', "c")])],
        "nothing": [chunk(role="assistant", content="")],
    }[said]
    for cut in (True, False):
        reply = sse(*begin, done=False)
        reply.cut = cut
        app.set_replies(reply)
        answer = respond(app, input=QUESTION, stream=True, tools=[THEIRS])
        response = check_events(events_of(answer.text))
        assert response["status"] == "failed"
        assert all(item["status"] == "incomplete" for item in response["output"])


def test_an_error_in_the_middle_of_a_stream_is_a_failure(app: AppServer):
    app.set_replies(sse(chunk(role="assistant", content="It is"), {"error": {"message": "out of memory"}}))
    answer = respond(app, input=QUESTION, stream=True)
    assert "out of memory" in check_events(events_of(answer.text))["error"]["message"]


def test_a_model_server_that_is_asked_to_stream_and_does_not_is_understood(app: AppServer):
    app.set_replies(turn("Hello", streamed=False))
    response = check_events(events_of(respond(app, input=QUESTION, stream=True).text))
    assert text_of(response) == "Hello"


@BOTH
def test_an_empty_answer_is_an_empty_message(app: AppServer, streamed: bool):
    app.set_replies(turn("", streamed=streamed))
    response = ask(app, streamed=streamed)
    assert kinds(response) == ["message"]
    assert text_of(response) == ""


@BOTH
def test_a_tool_server_that_died_is_a_failed_call(streamed: bool):
    async def die(_: Any) -> Any:
        raise ConnectionAbortedError("as the test wants it")

    with app_server(tools=ToolService(get_weather=die)) as app:
        app.set_replies(turn("", OURS, streamed=streamed), turn("Sorry.", streamed=streamed))
        response = ask(app, streamed=streamed, tools=[server(app)])
        (call,) = items_of(response, "mcp_call")
        assert (call["status"], call["output"]) == ("failed", None)
        assert call["error"]["content"][0]["text"]
        assert text_of(response) == "Sorry."


@BOTH
def test_a_tool_that_nobody_has_is_told_to_the_model(app: AppServer, streamed: bool):
    app.set_replies(
        turn("", tool_call("get_wether", id="ours"), streamed=streamed), turn("Sorry.", streamed=streamed)
    )
    response = ask(app, streamed=streamed, tools=[server(app)])
    assert kinds(response) == ["mcp_list_tools", "message"]
    assert "get_weather" in sent(app)[-1]["content"]


@BOTH
def test_a_result_that_is_too_long_is_cut_for_the_model(streamed: bool):
    async def long(_: Any) -> str:
        return "x" * 50_000

    with app_server(tools=ToolService(get_weather=long), max_result_chars=1000) as app:
        app.upstream.models = json_reply({"data": []})
        app.set_replies(turn("", OURS, streamed=streamed), turn("Long.", streamed=streamed))
        response = ask(app, streamed=streamed, tools=[server(app)])
        assert len(sent(app)[-1]["content"]) < 1500
        assert items_of(response, "mcp_call")[0]["status"] == "completed"


@BOTH
def test_a_model_that_never_ends_is_ended(streamed: bool):
    def call(number: int) -> Any:
        return turn("", tool_call(arguments=f'{{"city":"{number}"}}', id=f"c{number}"), streamed=streamed)

    with app_server(*(call(number) for number in range(9)), max_rounds=3) as app:
        response = ask(app, streamed=streamed, tools=[server(app)])
        assert len(items_of(response, "mcp_call")) == len(app.tools.calls) == 3
        assert "limit of 3 rounds" in text_of(response)
        assert "tools" not in app.upstream.seen[-1].json


def test_a_client_that_leaves_ends_the_model_servers_work():
    gate = Gate()
    reply = sse(chunk(role="assistant", content="It"), done=False)
    with app_server(Reply([*reply.parts, gate])) as app:
        body = {"model": "mock", "input": QUESTION, "stream": True}
        with httpx2.stream("POST", f"{app.url}/v1/responses", json=body, timeout=60):
            gate.wait_for_arrival()
        app.upstream.departures.wait()
        gate.open()


@contextmanager
def asked(app: AppServer, body: Any) -> Iterator[None]:
    """A request whose client waits for its answer as long as the block lasts, and leaves then."""
    content = json.dumps(body).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    place = urlsplit(app.url)
    with socket.create_connection((place.hostname, place.port), DEADLINE) as client:
        client.sendall(head.encode() + content)
        yield


@BOTH
def test_a_client_that_leaves_before_an_answer_ends_the_model_servers_work(streamed: bool):
    gate = Gate()
    with app_server() as app:
        app.upstream.models = json_reply({"data": []})
        app.upstream.before = gate
        app.set_replies(turn("Hello", streamed=streamed))
        with asked(app, {"model": "mock", "input": "Hi", "stream": streamed}):
            gate.wait_for_arrival()
        app.upstream.departures.wait()
        gate.open()


@BOTH
def test_a_client_that_leaves_ends_the_tool(streamed: bool):
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "late"

    with app_server(tools=ToolService(get_weather=slow)) as app:
        app.set_replies(turn("", OURS, streamed=streamed))
        with asked(app, {"model": "mock", "input": "Hi", "stream": streamed}):
            gate.wait_for_arrival()
        app.tools.departures.wait()
        gate.open()
        assert len(app.upstream.seen) == 1


def test_comments_keep_a_stream_alive_while_a_tool_works():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "done"

    with app_server(tools=ToolService(get_weather=slow), keepalive_interval=0.05) as app:
        app.set_replies(turn("", OURS, streamed=True), turn("Fine.", streamed=True))
        body = {"model": "mock", "input": QUESTION, "stream": True, "tools": [server(app)]}
        with httpx2.stream("POST", f"{app.url}/v1/responses", json=body, timeout=60) as stream:
            text = ""
            for part in stream.iter_text():
                text += part
                if text.count(": keep-alive") > 2:
                    gate.open()
        assert check_events(events_of(text))["status"] == "completed"


def test_a_tool_that_takes_too_long_is_given_up():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "late"

    with app_server(tools=ToolService(get_weather=slow), tool_timeout=0.1) as app:
        app.set_replies(turn("", OURS, streamed=False), turn("Sorry.", streamed=False))
        response = ask(app, tools=[server(app)])
        gate.open()
        assert "did not answer in time" in json.dumps(items_of(response, "mcp_call")[0]["error"])


@BOTH
def test_a_failure_after_an_approved_call_is_not_to_be_retried(app: AppServer, streamed: bool):
    """The call has run. Whether to ask again is for whoever approved it, not for an SDK by itself."""
    app.set_replies(turn("", OURS, streamed=streamed))
    entry = approval_tool(app)
    first = ask(app, streamed=streamed, tools=[entry])
    approval = decision(first["output"][-1])
    app.set_replies(BROKEN["refused"])
    answer = respond(app, input=[approval], tools=[entry], previous_response_id=first["id"], stream=streamed)
    if streamed:
        response = check_events(events_of(answer.text))
        assert (response["status"], kinds(response)) == ("failed", ["mcp_call"])
    else:
        assert error_of(answer, 502)
        assert answer.headers["x-should-retry"] == "false"
    assert len(app.tools.calls) == 1


def test_a_request_that_is_repeated_after_a_failure_tells_what_was_said_before_it():
    with app_server() as app:
        refusal = json_reply({"error": {"message": "out of memory", "type": "server_error"}}, 500)
        said = turn("Let me look. ", OURS, reasoning="Where?", streamed=False)
        app.set_replies(said, refusal, turn("Cloudy.", streamed=False))
        key = {"authorization": "Bearer one"}
        assert respond(app, input=QUESTION, headers=key).status_code == 502
        response = ask(app, headers=key)
    assert kinds(response) == ["reasoning", "message", "message"]
    assert text_of(response) == "Let me look. Cloudy."
    assert len(app.tools.calls) == 1
