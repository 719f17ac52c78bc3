"""A model server that refuses, breaks, falls silent or talks nonsense: what the client is told, and that it is told."""

from __future__ import annotations

import gc
import gzip
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx2
import orjson
import pytest

from tests.support.answers import assert_error, assert_one_clean_answer, chunks_of, content_of, error_of
from tests.support.app_server import QUESTION, AppServer, app_server, serving
from tests.support.gate import DEADLINE, Gate
from tests.support.servers import free_port
from tests.support.upstream import (
    OUT_OF_MEMORY,
    Reply,
    call_stream,
    chunk,
    json_reply,
    sse,
    text_stream,
    tool_call,
    whole,
)
from toolway.net.connection import Connection

STREAM = {"stream": True}
BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
HTML_TYPE = ((b"content-type", b"text/html"),)


def first_round(*, streamed: bool) -> Reply:
    if streamed:
        return call_stream(tool_call())
    return whole({"tool_calls": [tool_call()]}, finish="tool_calls")


@BOTH
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 503])
def test_a_refusal_in_round_1_is_relayed_byte_for_byte(app: AppServer, status: int, streamed: bool):
    body = b'{ "error" : {"message":"no",   "code":null, "vendor": "\\u00e9"} }\n'
    headers = [
        (b"content-type", b"application/json; vendor=1"),
        (b"retry-after", b"7"),
        (b"x-request-id", b"req-1"),
        (b"x-ratelimit-remaining-requests", b"0"),
    ]
    app.set_replies(Reply([body], status, headers))
    answer = app.ask(stream=streamed)
    assert (answer.status_code, answer.content) == (status, body)
    assert {key.encode(): value.encode() for key, value in answer.headers.items()}.items() >= dict(
        headers
    ).items()
    assert len(app.upstream.seen) == 1


@BOTH
def test_a_compressed_refusal_can_be_read(app: AppServer, streamed: bool):
    body = b'{"error":{"message":"no"}}'
    headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    app.set_replies(Reply([gzip.compress(body)], 400, headers))
    answer = app.ask(stream=streamed)
    assert (answer.status_code, answer.content) == (400, body)


BARE_REFUSALS = {
    "web page": (
        Reply([b"<html><title>502 Bad\n Gateway</title>"], 502, HTML_TYPE),
        "a web page: 502 Bad Gateway.",
    ),
    "web page without a title": (Reply([HTML.replace(b"h1", b"p")], 503, HTML_TYPE), "with a web page."),
    "nothing": (Reply([], 401), "did not say why."),
    "text": (Reply([b"no  such\nroute"], 404, [(b"content-type", b"text/plain")]), "404: no such route"),
    "redirect": (
        Reply([b""], 307, [(b"location", b"http://10.0.0.7/v1")]),
        "is a redirect, which is not followed",
    ),
    "JSON that is no object": (Reply([b'"no"'], 400), '400: "no"'),
}


@BOTH
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("name", BARE_REFUSALS)
def test_a_refusal_that_is_no_json_is_told_in_the_envelope(
    app: AppServer, name: str, path: str, streamed: bool
):
    reply, words = BARE_REFUSALS[name]
    app.set_replies(reply)
    question = {"model": "mock", "messages": QUESTION, "input": "Hello", "stream": streamed}
    answer = httpx2.post(f"{app.url}{path}", json=question)
    assert answer.status_code == reply.status
    assert "location" not in answer.headers
    assert_error(answer.json())
    assert words in answer.json()["error"]["message"]


def test_a_refusal_of_several_answers_is_told_in_the_envelope(app: AppServer):
    app.set_replies(BARE_REFUSALS["web page"][0])
    answer = app.ask(n=2, tool_choice="none")
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


@pytest.mark.parametrize("body", [b"404 page not found", b'{"detail":"Not Found"}'])
def test_a_404_of_a_base_url_without_v1_says_so(body: bytes):
    with app_server(Reply([body], 404)) as app:
        lacking = replace(app.settings.upstream, base_url=app.settings.upstream.base_url.removesuffix("/v1"))
        with serving(replace(app.settings, upstream=lacking)) as url:
            answer = httpx2.post(f"{url}/v1/chat/completions", json={"model": "mock", "messages": QUESTION})
    assert answer.status_code == 404
    assert "OPENAI_BASE_URL has no /v1 at its end" in answer.json()["error"]["message"]


def gzipped(body: bytes, kind: bytes = b"application/json") -> Reply:
    return Reply([gzip.compress(body)], headers=[(b"content-type", kind), (b"content-encoding", b"gzip")])


@BOTH
def test_a_small_answer_that_grows_beyond_the_limit_is_a_502_that_names_the_setting(streamed: bool):
    with app_server(gzipped(b'{"a":"' + b"A" * 4_000_000 + b'"}'), max_answer_bytes=1_000_000) as app:
        answer = app.ask(stream=streamed)
    assert answer.status_code == 502
    assert (
        "larger than 1,000,000 bytes (the setting TOOLWAY_MAX_ANSWER_BYTES)"
        in answer.json()["error"]["message"]
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(gzipped(b"x" * 8_000_000), id="no JSON"),
        pytest.param(gzipped(b'["' + b"x" * 8_000_000 + b'"]'), id="no object"),
        pytest.param(gzipped(b"x" * 20_000_000), id="too large"),
        pytest.param(gzipped(b"data: " + b"x" * 20_000_000 + b"\n\n", b"text/event-stream"), id="stream"),
    ],
)
def test_nothing_of_a_bad_answer_waits_for_the_garbage_collector(reply: Reply, path: str):
    with app_server(reply) as app, httpx2.Client(base_url=app.url) as client:
        question = {"model": "mock", "messages": QUESTION, "input": "Hello", "stream": True}
        assert "upstream_error" in client.post(path, json=question).text
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(4):
                client.post(path, json=question)
            deadline = time.monotonic() + DEADLINE
            while tracemalloc.get_traced_memory()[0] >= 4_000_000:  # what only counting references gives back
                assert time.monotonic() < deadline
                client.get("/healthz")
        finally:
            tracemalloc.stop()
            gc.enable()


@BOTH
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(reset=True), id="no answer"),
        pytest.param(
            Reply([b'{"a":'], headers=((b"content-type", b"application/json"),), cut=True),
            id="half an answer",
        ),
        pytest.param(Reply([b'data: {"choices":[]}\n\n'], cut=True), id="half a stream"),
        pytest.param(Reply([HTML], headers=HTML_TYPE), id="html"),
    ],
)
def test_no_connection_that_failed_waits_for_the_garbage_collector(reply: Reply, path: str, streamed: bool):
    with app_server(reply) as app, httpx2.Client(base_url=app.url) as client:
        question = {"model": "mock", "messages": QUESTION, "input": "Hello", "stream": streamed}
        client.post(path, json=question)
        gc.collect()
        gc.disable()
        try:
            before = connections()
            for _ in range(6):
                client.post(path, json=question)
            deadline = time.monotonic() + DEADLINE
            while connections() > before + 1:  # what only counting references gives back
                assert time.monotonic() < deadline
                client.get("/healthz")
        finally:
            gc.enable()


def connections() -> int:
    """How many connections there are that went, or go, to a server."""
    return sum(isinstance(one, Connection) for one in gc.get_objects())


BROKEN_IN_ROUND_2 = {
    "refused": OUT_OF_MEMORY,
    "refused with 429": json_reply({"error": {"message": "slow down"}}, 429, [(b"retry-after", b"700")]),
    "reset": Reply(reset=True),
    "html": Reply([HTML], headers=HTML_TYPE),
    "html error": Reply([HTML], 502, HTML_TYPE),
    "not json": Reply([b"{oops"], headers=[(b"content-type", b"application/json")]),
    "error in a 200": json_reply({"error": {"message": "out of memory"}}),
    "no choices": json_reply({"id": "x", "choices": None}),
    "cut": Reply([b'{"id":'], headers=[(b"content-type", b"application/json")], cut=True),
}


@pytest.mark.parametrize("name", BROKEN_IN_ROUND_2)
def test_a_stream_that_breaks_in_round_2_ends_with_an_error(app: AppServer, name: str):
    app.set_replies(first_round(streamed=True), BROKEN_IN_ROUND_2[name])
    answer = app.ask(**STREAM)
    assert answer.status_code == 200
    error = error_of(chunks_of(answer.text))
    assert str(app.upstream.seen[0].header(b"host"), "ascii") not in error["message"]
    assert len(app.tools.calls) == 1


@pytest.mark.parametrize("name", BROKEN_IN_ROUND_2)
def test_a_whole_answer_that_breaks_in_round_2_is_not_to_be_retried(app: AppServer, name: str):
    app.set_replies(first_round(streamed=False), BROKEN_IN_ROUND_2[name])
    answer = app.ask()
    assert answer.status_code == 502
    assert answer.headers["x-should-retry"] == "false"
    assert_error(answer.json())
    assert len(app.tools.calls) == 1


@BOTH
@pytest.mark.parametrize("name", ["reset", "html", "not json", "error in a 200", "no choices", "cut"])
def test_what_breaks_before_a_tool_ran_is_a_502_that_may_be_retried(
    app: AppServer, name: str, streamed: bool
):
    app.set_replies(BROKEN_IN_ROUND_2[name])
    answer = app.ask(stream=streamed)
    assert answer.status_code == 502
    assert "x-should-retry" not in answer.headers
    assert_error(answer.json())


def text_then(*parts: bytes, cut: bool = False, done: bool = False) -> Reply:
    first = sse(chunk(role="assistant", content="Well"), done=False).parts
    return Reply([*first, *parts, *([b"data: [DONE]\n\n"] if done else [])], cut=cut)


BROKEN_STREAMS = {
    "ends without finish or [DONE]": text_then(),
    "cut": text_then(cut=True),
    "cut inside an event": text_then(b'data: {"id":"chatcmpl-s","choi', cut=True),
    "ends inside an event": text_then(b'data: {"id":"chatcmpl-s","choi'),
    "no event": Reply(),
    "comments only": Reply([b": loading\n\n" * 50]),
    "[DONE] only": Reply([b"data: [DONE]\n\n"]),
    "error event": text_then(b'data: {"error":{"message":"out of memory","code":500}}\n\n', done=True),
    "error event without [DONE]": text_then(b'data: {"error":{"message":"out of memory"}}\n\n'),
    "error as text": text_then(b'data: {"error":"out of memory"}\n\n'),
    "error line": text_then(b'{"error":{"message":"out of memory"}}\n'),
    "error line without a line end": text_then(b'{"error":{"message":"out of memory"}}'),
    "error object of old servers": Reply(
        [
            b'data: {"object":"error","message":"out of memory","type":"X","code":50001}\n\n',
            b"data: [DONE]\n\n",
        ]
    ),
    "error beside a choice": text_then(
        b'data: {"error":{"message":"out of memory"},"choices":[{"index":0,"delta":{"content":""},'
        b'"finish_reason":"error"}]}\n\n'
    ),
    "error as a field": text_then(b'error: {"code":500,"message":"out of memory"}\n\n', done=True),
    "error without a wrapper": text_then(b'data: {"message":"out of memory","code":500}\n\n', done=True),
    "error of object error": text_then(b'data: {"object":"error","message":"out of memory"}\n\n', done=True),
    "error of FastAPI": text_then(b'data: {"detail":"out of memory"}\n\n', done=True),
    "error as a named event": text_then(
        b'event: error\ndata: {"message":"out of memory","type":"x"}\n\n', done=True
    ),
    "a field nobody knows and no finish": text_then(b"failure: out of memory\n\n", done=True),
    "a chunk nobody knows and no finish": text_then(b'data: {"status":"failed"}\n\n', done=True),
    "html in the middle": text_then(b"<html><body>502</body></html>\n"),
    "an event that is not json": text_then(b"data: {nonsense\n\n", done=True),
    "an event that is no object": text_then(b"data: [1]\n\n", done=True),
    "an empty finish_reason": text_then(
        b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":""}]}\n\n'
    ),
}


@pytest.mark.parametrize("name", BROKEN_STREAMS)
def test_a_broken_stream_ends_with_an_error_and_no_finish(app: AppServer, name: str):
    app.set_replies(BROKEN_STREAMS[name])
    answer = app.ask(**STREAM)
    chunks = chunks_of(answer.text)
    error = error_of(chunks)
    if "error" in name:
        assert error["message"].endswith("out of memory")
    if BROKEN_STREAMS[name].parts[1:] and len(chunks) > 1:
        assert content_of(chunks) == "Well"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'data: [{"error":{"message":"overloaded"}}]', "overloaded"),
        (b'[{"error":{"message":"overloaded"}}]', "overloaded"),
        (b'data: {"error":true,"message":"overloaded"}', "overloaded"),
        (b'data: {"error":{"msg":"overloaded","code":1234567890123456789012}}', "overloaded"),
        (b'data: {"error":{"message":"half \\ud83c"}}', "half \ufffd"),
        (b"upstream connect error or disconnect", "upstream connect error"),
        (b"data: null", "'null'"),
        (b'data: {"choices":[{"index":0,"delta":{},"finish_reason":null}]}', "without an answer in it"),
    ],
)
def test_what_a_server_says_in_place_of_an_answer_reaches_the_client(
    app: AppServer, payload: bytes, message: str
):
    app.set_replies(Reply([payload + b"\n\n", b"data: [DONE]\n\n"]))
    assert message in error_of(chunks_of(app.ask(stream=True).text))["message"]


def test_a_stream_request_that_is_answered_with_an_error_object(app: AppServer):
    app.set_replies(json_reply({"error": {"message": "out of memory", "type": "server_error", "code": 500}}))
    answer = app.ask(**STREAM)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "out of memory"


@BOTH
@pytest.mark.parametrize("kind", [None, b"application/json", b"text/event-stream"])
def test_an_answer_without_content_is_a_502_that_says_so(app: AppServer, streamed: bool, kind: bytes | None):
    headers = [(b"content-type", kind)] if kind else []
    answer = app.set_replies(Reply([], 204, headers)).ask(stream=streamed)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "The model server's answer is empty."


@BOTH
def test_json_that_is_too_deep_to_be_read_is_called_that(app: AppServer, streamed: bool):
    deep = b'{"choices":' + b"[" * 5000 + b"]" * 5000 + b"}"
    kind = [(b"content-type", b"application/json")]
    answer = app.set_replies(Reply([deep], 200, kind)).ask(stream=streamed)
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].endswith("nested too deeply to be read.")


def test_what_nobody_knows_does_not_hurt_a_stream_that_says_how_it_ends(app: AppServer):
    odd = [b"x-vendor: 1\n\n", b'data: {"type":"ping"}\n\n', b'data: {"detail":null}\n\n']
    app.set_replies(Reply([*odd, *text_stream("Hello").parts]))
    chunks = chunks_of(app.ask(**STREAM).text)
    assert content_of(chunks) == "Hello"
    app.set_replies(text_then(done=True))
    assert content_of(chunks_of(app.ask(**STREAM).text)) == "Well"


@pytest.mark.parametrize("kind", [b"application/json", b"application/json; charset=utf-8"])
def test_a_stream_request_that_is_answered_whole_is_streamed_all_the_same(app: AppServer, kind: bytes):
    answer_1 = whole({"tool_calls": [tool_call()]}, finish="tool_calls")
    answer_2 = whole({"content": "It is cloudy."}, usage={"total_tokens": 3})
    for reply in (answer_1, answer_2):
        reply.headers = ((b"content-type", kind),)
    app.set_replies(answer_1, answer_2)
    answer = app.ask(stream=True, stream_options={"include_usage": True})
    chunks = chunks_of(answer.text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "It is cloudy."
    assert chunks[-1]["usage"] == {"total_tokens": 3}
    assert len(app.tools.calls) == 1


@pytest.mark.parametrize(
    "kind", [None, b"text/plain", b"Text/Event-Stream;charset=UTF-8", b"application/octet-stream"]
)
def test_a_stream_is_known_whatever_it_is_called(app: AppServer, kind: bytes | None):
    reply = text_stream("Hello")
    reply.headers = () if kind is None else ((b"content-type", kind),)
    app.set_replies(reply)
    assert content_of(chunks_of(app.ask(**STREAM).text)) == "Hello"


@BOTH
def test_a_model_server_that_is_down_is_a_502_that_says_so(streamed: bool):
    with app_server(openai_base_url=f"http://127.0.0.1:{free_port()}/v1") as app:
        answer = app.ask(stream=streamed)
    assert answer.status_code == 502
    assert_error(answer.json())
    assert answer.json()["error"]["type"] == "upstream_error"
    assert "OPENAI_BASE_URL" in answer.json()["error"]["message"]


@BOTH
def test_a_silent_model_server_is_a_504(streamed: bool):
    gate = Gate()
    with app_server(text_stream("never"), upstream_silence_timeout=0.2) as app:
        app.upstream.before = gate
        answer = app.ask(stream=streamed)
        gate.open()
    assert answer.status_code == 504
    assert_error(answer.json())
    assert "silent" in answer.json()["error"]["message"]


def test_a_stream_that_falls_silent_ends_with_an_error():
    gate = Gate()
    parts: Sequence[Any] = [*text_then().parts, gate]
    with app_server(Reply(parts), upstream_silence_timeout=1) as app:
        chunks = chunks_of(app.ask(**STREAM).text)
        gate.open()
    assert "silent" in error_of(chunks)["message"]
    assert content_of(chunks) == "Well"


def test_a_redirect_of_the_model_server_is_not_followed(app: AppServer):
    app.set_replies(Reply([b"moved"], 302, [(b"location", b"http://127.0.0.1:1/elsewhere")]))
    answer = app.ask()
    assert answer.status_code in (302, 502)
    assert len(app.upstream.seen) == 1


@pytest.mark.parametrize(
    "text", [r'"half \ud83d"', r'"\ud83d\ude00"', "NaN", "-Infinity"], ids=["half", "pair", "nan", "infinity"]
)
def test_a_chunk_that_only_lenient_readers_take_does_not_end_the_stream(app: AppServer, text: str):
    odd = orjson.dumps(chunk(content="Well", odd="ODD")).replace(b'"ODD"', text.encode())
    app.set_replies(sse(chunk(role="assistant", content=""), odd, chunk(finish="stop")))
    assert content_of(chunks_of(app.ask(**STREAM).text)) == "Well"


def test_a_character_split_in_two_halves_reaches_the_client_and_the_model(app: AppServer):
    halves = [orjson.dumps(chunk(content="X")).replace(b"X", half) for half in (rb"\ud83d", rb"\ude00")]
    app.set_replies(
        sse(*halves, chunk(tool_calls=[tool_call()]), chunk(finish="tool_calls")), text_stream("Done.")
    )
    answer = app.ask(**STREAM)
    assert r"\ud83d" in answer.text
    assert app.upstream.seen[1].json["messages"][1]["content"] == "😀"
