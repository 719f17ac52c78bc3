"""The official OpenAI client, sync and async, streamed and whole: it sees one clean answer and nothing of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from tests.support.answers import assert_one_clean_answer, content_of
from tests.support.app_server import QUESTION, AppServer, app_server, serving
from tests.support.tools import Raw, ToolService
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
from toolway.conversation.call_ids import original_id

OWN_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "client_tool",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
SUM_OF_TWO = {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
USAGE_OF_TWO = {
    "prompt_tokens": 10,
    "completion_tokens": 4,
    "total_tokens": 14,
    "toolway": {"rounds": 2, **SUM_OF_TWO},
}


async def broken(_: Any) -> Raw:
    return Raw(b'{"detail": "no such city"}', status=500)


@pytest.fixture(scope="module")
def app():
    with app_server(tools=ToolService(broken=broken)) as server:
        yield server


def calls_reply(*calls: dict[str, Any], text: str | None = None) -> Reply:
    plain = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    return whole({"content": text, "tool_calls": plain}, finish="tool_calls", usage=USAGE)


def set_rounds(app: AppServer, *rounds: Any, streamed: bool) -> None:
    """Each round is a text, a call, or a tuple of an optional text and calls."""
    replies = []
    for entry in rounds:
        text, calls = ("", entry) if isinstance(entry, tuple) else (entry, ())
        if streamed:
            parts = [chunk(content=text[:4]), chunk(content=text[4:])] if text else []
            called = [chunk(tool_calls=[call]) for call in calls]
            end = chunk(finish="tool_calls" if calls else "stop")
            last = {**chunk(), "choices": [], "usage": USAGE}
            replies.append(sse(chunk(role="assistant", content=""), *parts, *called, end, last))
        else:
            replies.append(calls_reply(*calls) if calls else whole({"content": text}, usage=USAGE))
    app.upstream.replies = replies
    app.upstream.seen.clear()
    app.tools.calls.clear()


def ask(app: AppServer, *, streamed: bool, **more: Any) -> tuple[str, str | None, Any]:
    """(text, finish_reason, usage), as the client library reads them."""
    with app.client() as client:
        if not streamed:
            answer = client.chat.completions.create(model="mock", messages=QUESTION, **more)
            assert not answer.choices[0].message.tool_calls
            return answer.choices[0].message.content or "", answer.choices[0].finish_reason, answer.usage
        with client.chat.completions.create(
            model="mock", messages=QUESTION, stream=True, stream_options={"include_usage": True}, **more
        ) as stream:
            chunks = [chunk.model_dump(exclude_unset=True) for chunk in stream]
    assert_one_clean_answer(chunks)
    assert not any(c["choices"][0]["delta"].get("tool_calls") for c in chunks if c["choices"])
    finish = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1]
    return content_of(chunks), finish, chunks[-1]["usage"]


def dumped(usage: Any) -> dict[str, Any]:
    values = usage if isinstance(usage, dict) else usage.model_dump()
    return {key: value for key, value in values.items() if value is not None}


BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


@BOTH
def test_a_plain_answer_passes(app: AppServer, streamed: bool):
    set_rounds(app, "Hello there", streamed=streamed)
    text, finish, usage = ask(app, streamed=streamed)
    assert (text, finish, dumped(usage)) == ("Hello there", "stop", USAGE)


@BOTH
def test_one_round_of_tools_is_run_unseen(app: AppServer, streamed: bool):
    set_rounds(app, (tool_call(),), "It is cloudy.", streamed=streamed)
    text, finish, usage = ask(app, streamed=streamed)
    assert (text, finish, dumped(usage)) == ("It is cloudy.", "stop", USAGE_OF_TWO)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    messages = app.upstream.seen[1].json["messages"]
    assert messages[-1] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": '{"city":"Paris","sky":"cloudy"}',
    }


@BOTH
def test_a_setting_gives_the_sum_of_all_rounds(streamed: bool):
    with app_server(usage="sum") as app:
        set_rounds(app, (tool_call(),), "It is cloudy.", streamed=streamed)
        assert dumped(ask(app, streamed=streamed)[2]) == SUM_OF_TWO


@BOTH
def test_several_rounds_add_up(app: AppServer, streamed: bool):
    cities = tool_call("list_cities", "{}", id="call_0")
    set_rounds(app, (cities,), (tool_call(),), "Done.", streamed=streamed)
    text, _, usage = ask(app, streamed=streamed)
    assert text == "Done."
    assert (dumped(usage)["total_tokens"], dumped(usage)["toolway"]["total_tokens"]) == (16, 36)
    assert [name for name, _ in app.tools.calls] == ["list_cities", "get_weather"]
    roles = [message["role"] for message in app.upstream.seen[2].json["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


@BOTH
def test_parallel_calls_answer_in_their_order(app: AppServer, streamed: bool):
    rome = tool_call(arguments='{"city":"Rome"}', id="call_2", index=1)
    set_rounds(app, (tool_call(), rome), "Both cloudy.", streamed=streamed)
    assert ask(app, streamed=streamed)[0] == "Both cloudy."
    assert sorted(arguments["city"] for _, arguments in app.tools.calls) == ["Paris", "Rome"]
    results = app.upstream.seen[1].json["messages"][2:]
    assert [result["tool_call_id"] for result in results] == ["call_1", "call_2"]
    assert ["Paris" in results[0]["content"], "Rome" in results[1]["content"]] == [True, True]


@BOTH
def test_a_failing_tool_is_told_to_the_model_not_to_the_client(app: AppServer, streamed: bool):
    set_rounds(app, (tool_call("broken"),), "Sorry.", streamed=streamed)
    assert ask(app, streamed=streamed)[0] == "Sorry."
    result = app.upstream.seen[1].json["messages"][-1]["content"]
    assert result == "Error: The server answered 500 Internal Server Error: no such city"


def test_text_before_a_call_is_the_same_streamed_and_whole(app: AppServer):
    usage = {**chunk(), "choices": [], "usage": USAGE}
    app.upstream.replies = [
        sse(
            chunk(role="assistant", content="Let me "),
            chunk(content="look. "),
            chunk(tool_calls=[tool_call()]),
            chunk(finish="tool_calls"),
            usage,
        ),
        text_stream("It is cloudy.", usage=USAGE),
    ]
    app.upstream.seen.clear()
    streamed = ask(app, streamed=True)
    app.upstream.replies = [
        calls_reply(tool_call(), text="Let me look. "),
        whole({"content": "It is cloudy."}, usage=USAGE),
    ]
    app.upstream.seen.clear()
    entire = ask(app, streamed=False)
    assert streamed[:2] == entire[:2] == ("Let me look. It is cloudy.", "stop")
    assert dumped(streamed[2]) == dumped(entire[2]) == USAGE_OF_TWO


@BOTH
def test_the_clients_own_tool_is_left_to_the_client(app: AppServer, streamed: bool):
    set_rounds(app, (tool_call("client_tool", '{"x":1}'),), streamed=streamed)
    with app.client() as client:
        if streamed:
            with client.chat.completions.stream(model="mock", messages=QUESTION, tools=[OWN_TOOL]) as stream:
                answer = stream.get_final_completion()
        else:
            answer = client.chat.completions.create(model="mock", messages=QUESTION, tools=[OWN_TOOL])
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls or []
    assert [(original_id(c.id), c.function.name, c.function.arguments) for c in calls] == [
        ("call_1", "client_tool", '{"x":1}')
    ]
    assert app.tools.calls == []


def test_the_stream_helper_puts_an_answer_with_our_tools_together(app: AppServer):
    set_rounds(app, (tool_call(),), "It is cloudy.", streamed=True)
    with app.client() as client, client.chat.completions.stream(model="mock", messages=QUESTION) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == "It is cloudy."
    assert answer.choices[0].message.tool_calls is None
    assert not any("tool_calls" in kind for kind in kinds)


def test_no_usage_is_sent_to_a_stream_that_did_not_ask(app: AppServer):
    set_rounds(app, (tool_call(),), "It is cloudy.", streamed=True)
    with (
        app.client() as client,
        client.chat.completions.create(model="mock", messages=QUESTION, stream=True) as stream,
    ):
        chunks = [chunk.model_dump(exclude_unset=True) for chunk in stream]
    assert not any(c.get("usage") for c in chunks)
    assert all(c["choices"] for c in chunks)


@BOTH
async def test_the_async_client_sees_the_same(app: AppServer, streamed: bool):
    set_rounds(app, (tool_call(),), "It is cloudy.", streamed=streamed)
    async with app.async_client() as client:
        if streamed:
            async with client.chat.completions.stream(model="mock", messages=QUESTION) as stream:
                answer = await stream.get_final_completion()
        else:
            answer = await client.chat.completions.create(model="mock", messages=QUESTION)
    assert answer.choices[0].message.content == "It is cloudy."
    assert answer.choices[0].finish_reason == "stop"


@BOTH
def test_a_refusal_of_the_model_server_is_the_clients_own_exception(app: AppServer, streamed: bool):
    refusal = {"error": {"message": "slow down", "type": "rate_limit", "param": None, "code": "busy"}}
    app.upstream.replies = [json_reply(refusal, 429, [(b"retry-after", b"7"), (b"x-request-id", b"r1")])]
    app.upstream.seen.clear()
    with app.client() as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="mock", messages=QUESTION, stream=streamed)
    assert caught.value.code == "busy"
    assert caught.value.request_id == "r1"
    assert caught.value.response.headers["retry-after"] == "7"


def test_a_stream_that_fails_raises_in_the_client(app: AppServer):
    app.upstream.replies = [
        call_stream(tool_call()),
        OUT_OF_MEMORY,
    ]
    app.upstream.seen.clear()
    with (
        app.client() as client,
        client.chat.completions.create(model="mock", messages=QUESTION, stream=True) as stream,
        pytest.raises(openai.APIError, match="out of memory"),
    ):
        list(stream)


def test_a_whole_answer_that_fails_after_a_tool_ran_is_not_tried_again(app: AppServer):
    app.upstream.replies = [
        calls_reply(tool_call()),
        OUT_OF_MEMORY,
    ]
    app.upstream.seen.clear()
    app.tools.calls.clear()
    client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="test", max_retries=2)
    with client, pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(model="mock", messages=QUESTION)
    assert len(app.tools.calls) == 1


@BOTH
def test_a_mixed_turn_hands_over_the_clients_calls_and_is_whole_again_later(app: AppServer, streamed: bool):
    theirs = tool_call("client_tool", '{"x":1}', id="call_2", index=1)
    set_rounds(app, (tool_call(), theirs), "Done.", streamed=streamed)
    with app.client() as client:
        ask_model = client.chat.completions
        if streamed:
            with ask_model.stream(model="mock", messages=QUESTION, tools=[OWN_TOOL]) as stream:
                first = stream.get_final_completion().choices[0]
        else:
            first = ask_model.create(model="mock", messages=QUESTION, tools=[OWN_TOOL]).choices[0]
        assert first.finish_reason == "tool_calls"
        (call,) = first.message.tool_calls or []
        assert original_id(call.id) == "call_2" != call.id
        result = {"role": "tool", "tool_call_id": call.id, "content": "one"}
        said: Any = first.message.model_dump(exclude_none=True)
        set_rounds(app, "Done.", streamed=False)
        ask_model.create(model="mock", messages=[*QUESTION, said, result], tools=[OWN_TOOL])
    sent = app.upstream.seen[0].json["messages"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_1", "call_2"]
    assert [(message["tool_call_id"], message["content"][:6]) for message in sent[2:]] == [
        ("call_1", '{"city'),
        ("call_2", "one"),
    ]


def test_a_call_that_a_server_says_twice_is_handed_over_once(app: AppServer):
    """llama-cpp-python repeats each call as the old `function_call`."""
    ours, theirs = tool_call(), tool_call("client_tool", '{"x":1}', id="call_2")
    said = {"content": None, "tool_calls": [ours, theirs], "function_call": ours["function"]}
    app.upstream.replies = [whole(said, finish="tool_calls")]
    app.upstream.seen.clear()
    answer = app.ask(tools=[OWN_TOOL])
    message = answer.json()["choices"][0]["message"]
    assert "function_call" not in message
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["client_tool"]
    assert "get_weather" not in answer.text


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_each_header_reaches_the_model_server_once(app: AppServer, streamed: bool):
    set_rounds(app, "Hello", streamed=streamed)
    answer = app.client().chat.completions.create(model="mock", messages=QUESTION, stream=streamed)
    list(answer)
    names = [name for name, _ in app.upstream.seen[0].headers]
    assert sorted(names) == sorted(set(names))
    assert app.upstream.seen[0].header(b"content-type") == b"application/json"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_the_queries_of_the_base_url_and_of_the_request_reach_the_model_server(app: AppServer, path: str):
    upstream = replace(app.settings.upstream, query=b"api-version=2024-10-21&tenant=a%20b")
    with serving(replace(app.settings, upstream=upstream)) as url:
        for asked, expected in (
            ("", b"api-version=2024-10-21&tenant=a%20b"),
            ("?api-version=9&x", b"tenant=a%20b&api-version=9&x"),
        ):
            app.set_replies(whole({"content": "Hello"}))
            question = {"model": "mock", "messages": QUESTION, "input": "Hello"}
            assert httpx2.post(f"{url}{path}{asked}", json=question).status_code == 200
            assert [request.query for request in app.upstream.seen] == [expected]
