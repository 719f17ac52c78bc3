"""What Toolway does not know survives in both directions, and nothing is added that nobody asked for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.upstream import call_stream, chunk, sse, text_stream, tool_call, whole

OWN_TOOL = {
    "type": "function",
    "function": {"name": "zz_mine", "parameters": {"type": "object"}},
    "vendor": 1,
}
BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


def two_rounds(app: AppServer, *, streamed: bool) -> None:
    if streamed:
        app.set_replies(call_stream(tool_call()), text_stream("Done."))
    else:
        app.set_replies(
            whole({"tool_calls": [tool_call()]}, finish="tool_calls"), whole({"content": "Done."})
        )


def names_in(request: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in request["tools"]]


@BOTH
def test_every_field_of_the_request_goes_along_in_every_round(app: AppServer, streamed: bool):
    fields: dict[str, Any] = {
        "temperature": 0.1,
        "seed": 2**53 + 1,
        "stop": ["\n"],
        "logit_bias": {"50256": -100},
        "chat_template_kwargs": {"enable_thinking": False},
        "metadata": {"a": None},
        "null_vendor": None,
        "response_format": {"type": "json_object"},
        "ünï": "cödé ☁️",
    }
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann", "vendor": {"x": [1]}}
    ]
    two_rounds(app, streamed=streamed)
    answer = app.post({"model": "m", "messages": messages, "stream": streamed, **fields})
    assert answer.status_code == 200
    first, second = (seen.json for seen in app.upstream.seen)
    for request in (first, second):
        assert {key: request[key] for key in fields} == fields
        assert set(request) == {"model", "messages", "stream", "tools", *fields}
        assert request["messages"][0] == messages[0]
    assert len(first["messages"]) == 1


def test_nothing_is_added_to_a_plain_request_but_tools(app: AppServer):
    app.set_replies(whole({"content": "Hi"}))
    app.ask()
    assert set(app.upstream.seen[0].json) == {"model", "messages", "tools"}


def test_the_tool_list_is_sorted_behind_the_clients_and_the_same_each_time(app: AppServer):
    app.set_replies(whole({"content": "Hi"}))
    for _ in range(2):
        app.ask(tools=[OWN_TOOL])
        app.ask()
    with_own, plain, again, plain_again = (seen.body for seen in app.upstream.seen)
    assert with_own == again
    assert plain == plain_again
    assert names_in(orjson.loads(with_own)) == ["zz_mine", "get_weather", "list_cities"]
    assert orjson.loads(with_own)["tools"][0] == OWN_TOOL
    ours = plain.partition(b'"tools":[')[2]
    assert ours.rstrip(b"}]") in with_own


def test_no_address_of_a_tool_server_is_sent_upstream(app: AppServer):
    app.set_replies(whole({"content": "Hi"}))
    app.ask()
    assert b"127.0.0.1" not in app.upstream.seen[0].body
    assert b"http:" not in app.upstream.seen[0].body


def test_without_tools_no_empty_list_is_sent():
    with app_server(whole({"content": "Hi"}), endpoints="") as app:
        app.ask()
        assert set(app.upstream.seen[0].json) == {"model", "messages"}


def test_unknown_members_of_chunks_choices_and_deltas_reach_the_client(app: AppServer):
    logprobs = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]}
    rich = {
        **chunk(content="Hi", reasoning="hm", vendor_delta={"a": 1}),
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "obfuscation": "xx",
        "timings": {"n": 1},
    }
    rich["choices"][0]["logprobs"] = logprobs
    rich["choices"][0]["token_ids"] = [1, 2]
    end = {**chunk(finish="stop"), "timings": {"predicted_ms": 3.5}}
    end["choices"][0]["stop_reason"] = "</s>"
    app.set_replies(call_stream(tool_call()), sse(chunk(role="assistant", content=""), rich, end))
    chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    seen = next(c for c in chunks if c["choices"][0]["delta"].get("content"))
    assert seen == {**rich, "id": seen["id"]}
    assert chunks[-1]["timings"] == {"predicted_ms": 3.5}
    assert chunks[-1]["choices"][0]["stop_reason"] == "</s>"


def test_unknown_members_of_a_whole_answer_reach_the_client(app: AppServer):
    final = whole(
        {"content": "Hi", "annotations": [{"type": "url"}], "refusal": None, "vendor": {"a": [1]}},
        system_fingerprint="fp_1",
        service_tier="default",
        timings={"n": 1},
        usage={"total_tokens": 2, "cost": 0.5, "prompt_tokens_details": {"cached_tokens": 1}},
    )
    first = whole(
        {"tool_calls": [tool_call()]}, "tool_calls",
        usage={"total_tokens": 3, "cost": 0.25, "prompt_tokens_details": {"cached_tokens": 4}},
    )  # fmt: skip
    app.set_replies(first, final)
    answer = app.ask().json()
    sent = orjson.loads(b"".join(p for p in final.parts if isinstance(p, bytes)))
    total = {"total_tokens": 5, "cost": 0.75, "prompt_tokens_details": {"cached_tokens": 5}}
    assert answer == {**sent, "usage": {**sent["usage"], "toolway": {"rounds": 2, **total}}}


def test_a_plain_stream_passes_byte_for_byte(app: AppServer):
    frames = [chunk(role="assistant", content=""), chunk(content="Hi  "), {**chunk(content="☁️"), "x": 1.50}]
    reply = sse(*frames, chunk(finish="stop"))
    app.set_replies(reply)
    text = app.ask(stream=True).content
    for part in reply.parts[1:3]:
        assert isinstance(part, bytes)
        assert part in text


def test_reasoning_of_all_rounds_reaches_the_client_and_goes_back_to_the_model(app: AppServer):
    first = sse(
        chunk(role="assistant", reasoning_content="I need "),
        chunk(reasoning_content="the weather."),
        chunk(reasoning_details=[{"type": "reasoning.text", "text": "a", "index": 0}]),
        chunk(tool_calls=[{**tool_call(), "extra_content": {"google": {"thought_signature": "sig"}}}]),
        chunk(finish="tool_calls"),
    )
    last = sse(
        chunk(role="assistant", reasoning_content=" Cloudy, then."), chunk(content="Cloudy."), chunk("stop")
    )
    app.set_replies(first, last)
    chunks = chunks_of(app.ask(stream=True).text)
    assert content_of(chunks, "reasoning_content") == "I need the weather. Cloudy, then."
    replayed = app.upstream.seen[1].json["messages"][1]
    assert replayed["reasoning_content"] == "I need the weather."
    assert replayed["reasoning_details"] == [{"type": "reasoning.text", "text": "a", "index": 0}]
    assert replayed["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "sig"}}
    assert "index" not in replayed["tool_calls"][0]


def test_reasoning_of_all_rounds_is_in_a_whole_answer(app: AppServer):
    first = whole({"content": None, "reasoning_content": "Hm. ", "tool_calls": [tool_call()]}, "tool_calls")
    app.set_replies(first, whole({"content": "Cloudy.", "reasoning_content": "Ah."}))
    message = app.ask().json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Cloudy.", "reasoning_content": "Hm. Ah."}


def test_content_in_parts_and_as_text_is_replayed_in_its_order(app: AppServer):
    reasoning = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    app.set_replies(
        sse(
            chunk(role="assistant", content=[reasoning]),
            chunk(content="Let me "),
            chunk(content="look."),
            chunk(tool_calls=[tool_call()]),
            chunk(finish="tool_calls"),
        ),
        text_stream("Done."),
    )
    chunks_of(app.ask(stream=True).text)
    assert app.upstream.seen[1].json["messages"][1]["content"] == [
        reasoning,
        {"type": "text", "text": "Let me look."},
    ]


def test_headers_that_are_the_clients_go_along_and_those_of_the_connection_do_not(app: AppServer):
    two_rounds(app, streamed=False)
    headers = {
        "authorization": "Bearer users-key",
        "x-vendor": "1",
        "openai-organization": "org",
        "connection": "keep-alive, x-hop",
        "x-hop": "2",
        "te": "trailers",
        "accept-encoding": "br",
    }
    app.post({"model": "m", "messages": QUESTION}, headers=headers)
    for seen in app.upstream.seen:
        assert seen.header(b"authorization") == b"Bearer users-key"
        assert seen.header(b"x-vendor") == b"1"
        assert seen.header(b"openai-organization") == b"org"
        assert seen.header(b"content-type") == b"application/json"
        assert int(seen.header(b"content-length") or 0) == len(seen.body)
        assert seen.header(b"x-hop") is seen.header(b"te") is seen.header(b"accept-encoding") is None


def test_the_configured_key_is_used_where_the_client_has_none():
    with app_server(whole({"content": "Hi"}), openai_api_key="configured") as app:
        app.ask()
        app.post({"model": "m", "messages": QUESTION}, headers={"authorization": "Bearer own"})
        app.post({"model": "m", "messages": QUESTION}, headers={"api-key": "azure"})
        keys = [(seen.header(b"authorization"), seen.header(b"api-key")) for seen in app.upstream.seen]
    assert keys == [(b"Bearer configured", None), (b"Bearer own", None), (None, b"azure")]


@BOTH
def test_request_ids_and_rate_limits_of_round_1_reach_the_client(app: AppServer, streamed: bool):
    two_rounds(app, streamed=streamed)
    for number, reply in enumerate(app.upstream.replies):
        reply.headers = [*reply.headers, (b"x-request-id", b"r%d" % number), (b"set-cookie", b"a=b")]
    answer = app.ask(stream=streamed)
    assert answer.headers["x-request-id"] == "r0"
    assert "set-cookie" not in answer.headers


def test_headers_that_hold_for_the_model_servers_own_connection_stay_there(app: AppServer):
    reply = text_stream("Hi")
    reply.headers = [
        *reply.headers,
        (b"x-accel-buffering", b"no"),
        (b"cache-control", b"no-store"),
        (b"alt-svc", b'h3=":443"'),
        (b"strict-transport-security", b"max-age=1"),
        (b"access-control-allow-origin", b""),
    ]
    app.set_replies(reply)
    headers = app.ask(stream=True).headers
    assert headers.get_list("x-accel-buffering") == ["no"]
    assert headers.get_list("cache-control") == ["no-cache"]
    assert not {"alt-svc", "strict-transport-security", "access-control-allow-origin"} & set(headers)
