"""Responses created with the official client and without it, streamed and whole: what comes back, what was asked."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    THEIRS,
    ask,
    items_of,
    kinds,
    respond,
    sent,
    text_of,
    turn,
)
from tests.support.app_server import AppServer
from tests.support.upstream import tool_call
from toolway.conversation.call_ids import original_id

PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()


class Weather(BaseModel):
    city: str
    degrees: int


@BOTH
def test_a_text_comes_back(app: AppServer, streamed: bool):
    app.set_replies(turn("Hello there", streamed=streamed))
    response = ask(app, streamed=streamed, instructions="Be brief.")
    assert kinds(response) == ["message"]
    assert text_of(response) == "Hello there"
    assert response["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }
    assert sent(app) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
    ]
    assert (response["instructions"], response["tools"], response["store"]) == ("Be brief.", [], True)


def test_both_ways_make_the_same_response(app: AppServer):
    made = []
    for streamed in (True, False):
        app.set_replies(turn("Hello there", tool_call("theirs", "{}"), reasoning="Hmm.", streamed=streamed))
        response = ask(app, streamed=streamed, tools=[THEIRS])
        text = json.dumps(response).replace(response["id"].removeprefix("resp_"), "")
        (called,) = items_of(response, "function_call")
        text = text.replace(called["call_id"], original_id(called["call_id"]))
        made.append({**json.loads(text), "created_at": 0, "completed_at": 0})
    assert made[0] == made[1]


def test_the_official_client_reads_text_as_it_comes(app: AppServer):
    app.set_replies(turn("Hello there", streamed=True))
    with app.client() as client, client.responses.create(model="mock", input="Hi", stream=True) as stream:
        events = list(stream)
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
        "Hello",
        " there",
    ]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "Hello there"
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_the_async_client_is_served_too(app: AppServer):
    app.set_replies(turn("Hello there", streamed=False))
    async with app.async_client() as client:
        response = await client.responses.create(model="mock", input="Hi")
    assert (response.output_text, response.usage.total_tokens) == ("Hello there", 12)


@BOTH
def test_reasoning_is_an_item_of_its_own(app: AppServer, streamed: bool):
    app.set_replies(turn("Cloudy.", reasoning="I think so.", streamed=streamed))
    response = ask(app, streamed=streamed, reasoning={"effort": "low"})
    assert kinds(response) == ["reasoning", "message"]
    assert response["output"][0]["content"] == [{"type": "reasoning_text", "text": "I think so."}]
    assert "encrypted_content" not in response["output"][0]
    assert app.upstream.seen[0].json["reasoning_effort"] == "low"
    assert response["reasoning"]["effort"] == "low"


def test_reasoning_that_is_sent_back_unread_reaches_the_model_again(app: AppServer):
    app.set_replies(turn("Cloudy.", reasoning="I think so.", streamed=False))
    options: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"]}
    first = ask(app, **options)
    reasoning = first["output"][0]
    assert reasoning["encrypted_content"]
    del reasoning["content"]
    back = [{"role": "user", "content": QUESTION}, *first["output"], {"role": "user", "content": "Sure?"}]
    ask(app, input=back, **options)
    assert sent(app)[1:] == [
        {"role": "assistant", "content": "Cloudy.", "reasoning_content": "I think so."},
        {"role": "user", "content": "Sure?"},
    ]


@BOTH
def test_an_answer_of_a_wanted_form(app: AppServer, streamed: bool):
    app.set_replies(turn('{"city":"Paris","degrees":20}', streamed=streamed))
    with app.client() as client:
        if streamed:
            with client.responses.stream(model="mock", input="Hi", text_format=Weather) as stream:
                parsed = stream.get_final_response().output_parsed
        else:
            parsed = client.responses.parse(model="mock", input="Hi", text_format=Weather).output_parsed
    assert parsed == Weather(city="Paris", degrees=20)
    form = app.upstream.seen[0].json["response_format"]
    assert form["type"] == "json_schema"
    assert (form["json_schema"]["name"], form["json_schema"]["strict"]) == ("Weather", True)
    assert set(form["json_schema"]["schema"]["properties"]) == {"city", "degrees"}
    assert "text" not in app.upstream.seen[0].json


def test_json_of_any_form(app: AppServer):
    app.set_replies(turn("{}", streamed=False))
    response = ask(app, text={"format": {"type": "json_object"}, "verbosity": "low"})
    assert app.upstream.seen[0].json["response_format"] == {"type": "json_object"}
    assert app.upstream.seen[0].json["verbosity"] == "low"
    assert response["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}


def test_parts_as_chat_completions_have_them_are_taken(app: AppServer):
    app.set_replies(turn("A pixel.", streamed=False))
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="}},
    ]
    odd = {"type": "input_image", "image_url": {"url": PIXEL}}
    ask(app, input=[{"role": "user", "content": [*parts, odd]}])
    shown = {"type": "image_url", "image_url": {"url": PIXEL}}
    assert sent(app)[0]["content"] == [*parts, shown]


def test_images_and_files_go_to_the_model(app: AppServer):
    app.set_replies(turn("A pixel.", streamed=False))
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "low"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="},
    ]
    with app.client() as client:
        client.responses.create(model="mock", input=[{"role": "user", "content": content}])  # type: ignore[list-item]
    assert sent(app)[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="}},
    ]


def test_the_stream_helper_sees_the_calls_of_the_clients_functions(app: AppServer):
    call = tool_call("theirs", '{"a":', id="call_9")
    rest = {"index": 0, "function": {"arguments": "1}"}}
    app.set_replies(turn("Wait.", call, rest, streamed=True))
    with app.client() as client, client.responses.stream(model="mock", input="Hi", tools=[THEIRS]) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        response = stream.get_final_response()
    assert deltas == ['{"a":', "1}"]
    assert [item.type for item in response.output] == ["message", "function_call"]
    called = response.output[1]
    assert (original_id(called.call_id), called.name, called.arguments) == ("call_9", "theirs", '{"a":1}')
    function = app.upstream.seen[0].json["tools"][0]["function"]
    assert function == {"name": "theirs", "parameters": THEIRS["parameters"]}


@BOTH
def test_a_custom_tool_is_called_with_plain_text(app: AppServer, streamed: bool):
    tool = {"type": "custom", "name": "shell", "description": "Runs a command"}
    app.set_replies(
        turn("", tool_call("shell", '{"input":"ls -l"}', id="c1"), streamed=streamed),
        turn("Done.", streamed=streamed),
    )
    response = ask(app, streamed=streamed, tools=[tool])
    (call,) = response["output"]
    assert (call["type"], original_id(call["call_id"]), call["name"], call["input"]) == (
        "custom_tool_call",
        "c1",
        "shell",
        "ls -l",
    )
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "total 0"}
    ask(app, streamed=streamed, tools=[tool], input=[output], previous_response_id=response["id"])
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool"]
    assert json.loads(sent(app)[1]["tool_calls"][0]["function"]["arguments"]) == {"input": "ls -l"}


@BOTH
def test_an_answer_that_was_cut_is_incomplete(app: AppServer, streamed: bool):
    app.set_replies(turn("It is", finish="length", streamed=streamed))
    response = ask(app, streamed=streamed, status="incomplete", max_output_tokens=16)
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["max_output_tokens"] == 16
    assert text_of(response) == "It is"
    assert response["output"][0]["status"] == "incomplete"
    assert app.upstream.seen[0].json["max_tokens"] == 16


@BOTH
@pytest.mark.parametrize(
    "reason", ["error", "network_error", "insufficient_system_resource", "ran_out_of_luck"]
)
def test_an_answer_that_the_model_server_gave_up_is_failed(app: AppServer, streamed: bool, reason: str):
    app.set_replies(turn("It is", finish=reason, streamed=streamed))
    response = ask(app, streamed=streamed, status="failed")
    assert response["error"]["message"] == (
        f"The model server did not finish its answer: its finish_reason is '{reason}'."
    )
    assert text_of(response) == "It is"
    assert response["completed_at"] is None


@BOTH
@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("model_context_window_exceeded", "max_output_tokens"),
        ("SAFETY", "content_filter"),
    ],
)
def test_an_answer_that_did_not_end_as_answers_do_is_incomplete(
    app: AppServer, streamed: bool, reason: str, told: str
):
    app.set_replies(turn("It is", finish=reason, streamed=streamed))
    response = ask(app, streamed=streamed, status="incomplete")
    assert response["incomplete_details"] == {"reason": told}


def test_log_probabilities_come_along(app: AppServer):
    found = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}
    reply = turn("Hi", streamed=False)
    body = json.loads(reply.parts[0])  # type: ignore[arg-type]
    body["choices"][0]["logprobs"] = {"content": [found]}
    reply.parts = [json.dumps(body).encode()]
    app.set_replies(reply)
    response = ask(app, include=["message.output_text.logprobs"], top_logprobs=2)
    assert response["output"][0]["content"][0]["logprobs"] == [found]
    asked = app.upstream.seen[0].json
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 2)


def test_fields_that_nobody_here_knows_go_along(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    response = ask(
        app, temperature=0.5, chat_template_kwargs={"thinking": False}, metadata={"a": "b"}, user="u"
    )
    asked = app.upstream.seen[0].json
    assert asked["chat_template_kwargs"] == {"thinking": False}
    assert (asked["temperature"], response["temperature"], response["metadata"]) == (0.5, 0.5, {"a": "b"})
    own = {"input", "metadata", "store", "instructions", "include"}
    assert not own & set(asked)


def test_headers_of_the_model_server_come_along(app: AppServer):
    for streamed in (True, False):
        reply = turn("Hi", streamed=streamed)
        reply.headers = [*reply.headers, (b"x-request-id", b"req-1")]
        app.set_replies(reply)
        answer = respond(app, input="Hi", stream=streamed)
        assert answer.headers["x-request-id"] == "req-1"
        assert answer.headers["content-type"].split(";")[0] == (
            "text/event-stream" if streamed else "application/json"
        )


def test_a_head_or_get_of_the_root_says_what_to_do(app: AppServer):
    assert httpx2.get(f"{app.url}/v1/responses").status_code == 405
    assert "POST" in httpx2.get(f"{app.url}/v1/responses").json()["error"]["message"]
