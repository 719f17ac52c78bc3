"""Calls written as text, through the whole server."""

from __future__ import annotations

import json

import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import chunk, sse, text_stream, whole

OURS = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
THEIRS = '<tool_call>{"name": "theirs", "arguments": {"x": 1}}</tool_call>'
CLIENTS = {
    "type": "function",
    "function": {"name": "theirs", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def app():
    with app_server(text_tool_calls=True) as server:
        yield server


def test_a_call_in_a_whole_answer_is_run(app: AppServer):
    app.set_replies(whole({"content": OURS}), whole({"content": "Cloudy."}))
    answer = app.ask().json()
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert answer["choices"][0]["message"]["content"] == "Cloudy."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_of_the_clients_tool_reaches_the_client_as_a_call(app: AppServer, stream: bool):
    app.set_replies(text_stream(*OURS[:0], *THEIRS) if stream else whole({"content": THEIRS}))
    answer = app.ask(stream=stream, tools=[CLIENTS])
    if stream:
        chunks = chunks_of(answer.text)
        assert_one_clean_answer(chunks)
        assert content_of(chunks) == ""
        calls = [
            c for part in chunks if part["choices"] for c in part["choices"][0]["delta"].get("tool_calls", ())
        ]
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        assert not choice["message"]["content"]
        calls, finish = choice["message"]["tool_calls"], choice["finish_reason"]
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [
        ("theirs", {"x": 1})
    ]
    assert finish == "tool_calls"


def test_a_mixed_turn_is_split(app: AppServer):
    app.set_replies(text_stream(OURS, "\n", THEIRS))
    chunks = chunks_of(app.ask(stream=True, tools=[CLIENTS]).text)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    calls = [
        c for part in chunks if part["choices"] for c in part["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert [c["function"]["name"] for c in calls] == ["theirs"]


@pytest.mark.parametrize(
    "texts",
    [
        ["<tool_", 'call>{"name": "unknown"', ', "arguments": {}}</tool_call>'],
        ["<", "b>bold</b>"],
        ['{"name": "Ada"', "}"],
        ["<tool_call>", "never closed"],
    ],
)
def test_what_turns_out_to_be_text_arrives_whole(app: AppServer, texts: list[str]):
    app.set_replies(text_stream(*texts))
    chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "".join(texts)


def test_what_was_held_when_the_stream_broke_reaches_the_client(app: AppServer):
    app.set_replies(sse(chunk(role="assistant", content="<tool_call>{"), done=False))
    chunks = chunks_of(app.ask(stream=True).text)
    assert "error" in chunks[-1]
    assert content_of(chunks[:-1]) == "<tool_call>{"


def test_reasoning_flows_while_nothing_is_held(app: AppServer):
    app.set_replies(
        sse(chunk(reasoning_content="hm"), chunk(content=OURS), chunk(finish="stop")),
        text_stream("Cloudy."),
    )
    chunks = chunks_of(app.ask(stream=True).text)
    assert content_of(chunks, "reasoning_content") == "hm"
    assert content_of(chunks) == "Cloudy."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_whose_end_mark_was_cut_is_run(app: AppServer, stream: bool):
    text = '[TOOL_REQUEST]{"name": "get_weather", "arguments": {"city": "Paris"}}[END_TOOL_R'
    app.tools.calls.clear()
    if stream:
        app.set_replies(text_stream(*text), text_stream("Cloudy."))
        assert content_of(chunks_of(app.ask(stream=True).text)) == "Cloudy."
    else:
        app.set_replies(whole({"content": text}), whole({"content": "Cloudy."}))
        assert app.ask().json()["choices"][0]["message"]["content"] == "Cloudy."
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "text", ['<tool_call>{"name": "get_weather", "argu', '{"name": "get_weather", "arguments": {"ci']
)
def test_a_call_that_was_cut_within_is_neither_run_nor_shown(app: AppServer, stream: bool, text: str):
    app.tools.calls.clear()
    if stream:
        app.set_replies(sse(*(chunk(content=part) for part in text), chunk("length")))
        chunks = chunks_of(app.ask(stream=True).text)
        assert content_of(chunks) == ""
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    else:
        app.set_replies(whole({"content": text}, finish="length"))
        choice = app.ask().json()["choices"][0]
        assert not choice["message"]["content"]
        assert choice["finish_reason"] == "length"
    assert app.tools.calls == []
