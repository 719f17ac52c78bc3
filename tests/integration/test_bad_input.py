"""Requests that cannot be served: each gets a clear error in OpenAI's envelope, at once."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

import httpx2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.answers import assert_error, chunks_of, content_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.upstream import Reply, call_stream, json_reply, sse, text_stream, tool_call, whole

VALID = {"model": "mock", "messages": QUESTION}


@pytest.fixture(scope="module")
def app():
    with app_server(whole({"content": "Hello"}), max_body_bytes=100_000) as server:
        yield server


BAD_BODIES: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "no body"),
    "not json": (b"{oops", "not valid JSON"),
    "not text": (b"\xff\xfe\x00{", "not valid JSON"),
    "NaN": (
        b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        "holds NaN, which is not JSON",
    ),
    "half a character, cut": (b'{"messages":[{"role":"user","content":"\\ud83d"}', "not valid JSON"),
    "cut": (orjson.dumps(VALID)[:-1], "not valid JSON"),
    "two objects": (orjson.dumps(VALID) * 2, "not valid JSON"),
    "too deep": (b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    "a number without end": (b'{"seed":%b}' % (b"9" * 5000), "a number of 5,000 digits"),
    "deep": (b'{"messages":' + b"[" * 300 + b"]" * 300 + b"}", "deeper than 200 levels"),
    "deep on the way": (b'{"x":' + b'{"a":[' * 150 + b"]}" * 150 + b"}", "deeper than 200 levels"),
    "a list": ([VALID], "must be a JSON object"),
    "a text": (b'"hello"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "no messages": ({"model": "mock"}, "messages must be"),
    "empty messages": ({**VALID, "messages": []}, "messages must be"),
    "messages as text": ({**VALID, "messages": "hello"}, "messages must be"),
    "messages null": ({**VALID, "messages": None}, "messages must be"),
    "stream as text": ({**VALID, "stream": "true"}, "stream must be"),
    "stream as object": ({**VALID, "stream": {}}, "stream must be"),
    "tools as object": ({**VALID, "tools": {}}, "tools must be"),
    "functions as object": ({**VALID, "functions": {}}, "functions must be"),
    "several answers": ({**VALID, "n": 2}, "n must be 1"),
    "several answers, streamed": ({**VALID, "n": 2, "stream": True}, "n must be 1"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_a_400_that_says_why(app: AppServer, name: str):
    body, reason = BAD_BODIES[name]
    app.upstream.seen.clear()
    answer = app.post(body)
    assert answer.status_code == 400
    assert_error(answer.json())
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert reason in answer.json()["error"]["message"]
    assert app.upstream.seen == []


def test_a_body_over_the_limit_is_a_413(app: AppServer):
    answer = app.ask(padding="x" * 100_000)
    assert answer.status_code == 413
    assert_error(answer.json())
    assert "TOOLWAY_MAX_BODY_BYTES" in answer.json()["error"]["message"]


def test_a_body_over_the_limit_that_does_not_say_its_size_is_a_413(app: AppServer):
    answer = app.post(b"", headers={"content-type": "application/json"})
    assert answer.status_code == 400

    def parts():
        for _ in range(20):
            yield b"x" * 10_000

    answer = httpx2.post(f"{app.url}/v1/chat/completions", content=parts(), timeout=60)
    assert answer.status_code == 413
    assert_error(answer.json())


@pytest.mark.parametrize("encodings", [["gzip"], ["gzip", "identity"], ["identity", "gzip"]])
def test_a_compressed_body_is_refused_with_words(app: AppServer, encodings: list[str]):
    answer = app.post(b"\x1f\x8b", headers=[("content-encoding", encoding) for encoding in encodings])
    assert answer.status_code == 400
    assert "plain JSON" in answer.json()["error"]["message"]


ODD_BODIES: dict[str, Any] = {
    "messages that are no objects": {"messages": ["hello", 1, None, [], {}]},
    "roles that are no text": {
        "messages": [{"role": ["user"], "content": "Hi"}, *QUESTION, {"role": {}, "content": "Hi"}]
    },
    "tools that are no objects": {"tools": ["x", 1, None, {}, {"function": 3}, {"function": {"name": []}}]},
    "tool_choice of another kind": {"tool_choice": 3},
    "an unknown tool_choice": {"tool_choice": {"type": "allowed_tools"}},
    "allowed tools of another kind": {"tool_choice": {"type": "allowed_tools", "allowed_tools": []}},
    "allowed tools that are no list": {
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": 1}}
    },
    "stream_options of another kind": {"stream_options": ["include_usage"]},
    "a model that is no text": {"model": ["a"]},
    "n as text": {"n": None},
    "calls in the history that are none": {
        "messages": [{"role": "assistant", "tool_calls": [None, 3, {"id": 4}]}, {"role": "tool"}, *QUESTION]
    },
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ODD_BODIES)
def test_what_toolway_need_not_understand_is_the_model_servers_to_judge(
    app: AppServer, name: str, streamed: bool
):
    first = call_stream(tool_call()) if streamed else whole({"tool_calls": [tool_call()]}, "tool_calls")
    app.upstream.replies = [first, text_stream("Fine") if streamed else whole({"content": "Fine"})]
    app.upstream.seen.clear()
    body = {**VALID, "stream": streamed, **ODD_BODIES[name]}
    answer = app.post(body)
    assert answer.status_code == 200
    sent = app.upstream.seen[0].json
    gone = {"tools"} if "tools" in sent else {"tools", "tool_choice"}
    assert {key: value for key, value in sent.items() if key not in gone} == {
        key: value for key, value in body.items() if key not in gone
    }
    if streamed:
        chunks = chunks_of(answer.text)
        assert "error" not in chunks[-1]
        assert content_of(chunks) in ("Fine", "")


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_several_answers_go_through_where_no_tool_is_ours(app: AppServer, streamed: bool):
    payload = b'{"choices": [{"index":0},   {"index":1}]}'
    reply = sse(payload) if streamed else Reply([payload], headers=[(b"content-type", b"application/json")])
    app.upstream.replies = [reply]
    app.upstream.seen.clear()
    body = orjson.dumps({**VALID, "n": 2, "tool_choice": "none", "stream": streamed})
    answer = app.post(body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert answer.content == b"".join(part for part in reply.parts if isinstance(part, bytes))
    assert app.upstream.seen[0].json == {**VALID, "n": 2, "stream": streamed}


def test_several_answers_that_break_off_are_not_taken_for_whole(app: AppServer):
    app.upstream.replies = [Reply([b"data: {}\n\n"], cut=True)]
    app.upstream.seen.clear()
    with pytest.raises(httpx2.RemoteProtocolError):
        app.ask(n=2, tool_choice="none", stream=True)


def test_several_answers_that_are_refused_are_refused(app: AppServer):
    app.upstream.replies = [json_reply({"error": {"message": "Only one completion choice is allowed"}}, 400)]
    app.upstream.seen.clear()
    answer = app.ask(n=2, tool_choice="none")
    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": "Only one completion choice is allowed"}}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("POST", "/chat"),
        ("GET", "/v1"),
        ("GET", "/v2/models"),
        ("GET", "/%2e%2e/etc/passwd"),
    ],
)
def test_an_unknown_route_is_a_404_that_names_it(app: AppServer, method: str, path: str):
    answer = httpx2.request(method, app.url + path, timeout=60)
    assert answer.status_code == 404
    assert_error(answer.json())
    assert "/v1" in answer.json()["error"]["message"]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "slash at the end": lambda path: path + "/",
    "doubled slashes": lambda path: path.replace("/", "//"),
    "doubled slash": lambda path: path.replace("/v1/", "/v1//"),
    "doubled /v1": lambda path: "/v1" + path,
    "no /v1": lambda path: path.removeprefix("/v1"),
    "capitals": str.upper,
    "title": str.title,
    "encoded letters": lambda path: path.replace("c", "%63").replace("r", "%72"),
    "encoded slashes": lambda path: "/v1/" + path.removeprefix("/v1/").replace("/", "%2F"),
    "encoded twice": lambda path: path.replace("o", "%256f"),
    "backslashes": lambda path: "/v1" + path.removeprefix("/v1").replace("/", "\\"),
    "spaces": lambda path: path + "%20",
    "a dot": lambda path: path.replace("/v1/", "/v1/./"),
    "two dots": lambda path: path.replace("/v1/", "/v1/x/../"),
    "encoded dots": lambda path: path.replace("/v1/", "/v1/%2e/"),
    "query": lambda path: path + "/?api-version=1",
    "parameters": lambda path: path + ";v=1",
    "parameters inside": lambda path: path.replace("/v1/", "/v1;a=b/"),
    "NUL": lambda path: path + "%00",
    "line ends": lambda path: path + "%0D%0A",
}


def post_raw(app: AppServer, path: str) -> tuple[int, bytes]:
    """POST a question to a path as it stands, which no client library changes."""
    connection = http.client.HTTPConnection(app.url.removeprefix("http://"), timeout=60)
    try:
        question = orjson.dumps({**VALID, "input": "Hello"})
        connection.request("POST", path, question, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
@given(names=st.lists(st.sampled_from(sorted(SPELLINGS)), max_size=3, unique=True))
@settings(max_examples=60, deadline=None)
def test_no_spelling_of_a_route_of_ours_reaches_the_model_server_without_tools(
    app: AppServer, route: str, names: list[str]
):
    path = route
    for name in sorted(names, key=list(SPELLINGS).index):
        path = SPELLINGS[name](path)
    app.set_replies(whole({"content": "Hello"}))
    status, body = post_raw(app, path)
    if status == 200:
        (request,) = app.upstream.seen
        assert "get_weather" in str(orjson.loads(request.body)["tools"])
    else:
        assert status in (400, 404)
        assert_error(orjson.loads(body))
        assert app.upstream.seen == []


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("name", sorted(SPELLINGS.keys() - {"a dot", "two dots", "encoded dots"}))
def test_a_route_is_found_however_clients_spell_it(app: AppServer, route: str, name: str):
    app.set_replies(whole({"content": "Hello"}))
    assert post_raw(app, SPELLINGS[name](route))[0] == 200


def test_a_stored_response_is_found_with_another_spelling_of_its_path(app: AppServer):
    app.set_replies(whole({"content": "Hello"}))
    made = httpx2.post(f"{app.url}/v1/responses", json={**VALID, "input": "Hello"}).json()
    for path in ("/V1/Responses/", "/responses/", "/v1//responses/"):
        assert httpx2.get(f"{app.url}{path}{made['id']}/").json()["id"] == made["id"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1//chat/completions/", "POST"),
        ("GET", "/v1/responses", "POST"),
        ("PATCH", "/v1/responses/resp_1", "GET, HEAD, DELETE"),
        ("GET", "/v1/responses/resp_1/cancel", "POST"),
        ("GET", "/v1/messages", "POST"),
        ("PUT", "/v1/messages/count_tokens", "POST"),
        ("POST", "/healthz", "GET"),
        ("DELETE", "/", "GET"),
        ("PUT", "/mcp", "DELETE, GET, POST"),
        ("POST", "/docs", "GET"),
        ("GET", "/tools/get_weather", "POST"),
        ("POST", "/console/app.js", "GET, HEAD"),
    ],
)
def test_a_route_says_for_which_methods_it_is(app: AppServer, method: str, path: str, allow: str):
    app.set_replies(whole({"content": "Hello"}))
    answer = httpx2.request(method, app.url + path, timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    assert "use" in answer.text
    assert app.upstream.seen == []


def test_a_route_of_the_model_server_is_the_model_servers_to_refuse(app: AppServer):
    app.upstream.replies = [json_reply({"detail": "Method Not Allowed"}, 405)]
    app.upstream.seen.clear()
    answer = httpx2.get(f"{app.url}/v1/chat/completions", timeout=60)
    assert (answer.status_code, answer.json()) == (405, {"detail": "Method Not Allowed"})


def test_health_and_readiness_answer(app: AppServer):
    app.upstream.replies = [json_reply({"data": []})]
    assert httpx2.get(f"{app.url}/healthz").json() == {"status": "ok"}
    ready = httpx2.get(f"{app.url}/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert httpx2.head(f"{app.url}/healthz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_half_a_character_is_one_that_cannot_be_shown(app: AppServer, path: str):
    app.set_replies(whole({"content": "Hello"}))
    body = b'{"model":"mock","messages":[{"role":"user","content":"a\\ud83d b\\ud83d\\ude00"}]}'
    if path == "/v1/responses":
        body = b'{"model":"mock","input":"a\\ud83d b\\ud83d\\ude00"}'
    answer = httpx2.post(f"{app.url}{path}", content=body, timeout=60)
    assert answer.status_code == 200
    assert app.upstream.seen[-1].json["messages"][-1]["content"] == "a\ufffd b\U0001f600"
