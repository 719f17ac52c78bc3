"""The Responses API with the official client, Toolway and a real model: what a tiny model can be relied on for."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest

from tests.compat.model import test_openai_client as chat
from tests.compat.model.test_openai_client import QUESTION, RAIN, Way
from tests.support.model import needs_model
from tests.support.responses import check_events, check_response, read_events

pytestmark = needs_model

app_server, way, client = chat.app_server, chat.way, chat.client

WEATHER: Any = {"type": "mcp", "server_label": "weather", "require_approval": "never"}
OWN: Any = {
    "type": "function",
    "name": "send_email",
    "description": "Sends an email to somebody",
    "parameters": {
        "type": "object",
        "properties": {"to": {"type": "string"}, "text": {"type": "string"}},
        "required": ["to", "text"],
    },
}


def request_body(way: Way, question: Any, **more: Any) -> dict[str, Any]:
    return {"model": way.model, "input": question, "temperature": 0, "max_output_tokens": 120, **more}


def test_a_tool_of_toolway_runs_unseen(way: Way, client: openai.OpenAI):
    response = client.responses.create(**request_body(way, QUESTION))
    assert way.calls() == ["/weather?city=Paris"]
    assert RAIN in response.output_text
    assert [item.type for item in response.output] == ["message"]
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 50
    raw = client.responses.with_raw_response.retrieve(response.id)
    check_response(json.loads(raw.text))


def test_a_stream_comes_token_by_token(way: Way, client: openai.OpenAI):
    raw = client.responses.with_raw_response.create(**request_body(way, QUESTION), stream=True)
    events = read_events(raw.http_response.read())
    assert way.calls() == ["/weather?city=Paris"]
    pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(pieces) > 3
    text = check_events(events)["output"][-1]["content"][0]["text"]
    assert RAIN in text
    assert "".join(pieces) == text


def test_a_declared_server_shows_its_call(way: Way, client: openai.OpenAI):
    with client.responses.stream(**request_body(way, QUESTION, tools=[WEATHER])) as stream:
        response = stream.until_done().get_final_response()
    assert way.calls() == ["/weather?city=Paris"]
    assert [item.type for item in response.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert RAIN in response.output[1].output


def test_an_approval_is_asked_for_and_given(way: Way, client: openai.OpenAI):
    tools: Any = [{**WEATHER, "require_approval": "always"}]
    first = client.responses.create(**request_body(way, QUESTION, tools=tools))
    request = first.output[-1]
    assert request.type == "mcp_approval_request"
    assert way.calls() == []
    answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
    second = client.responses.create(
        **request_body(way, [answer], tools=tools, previous_response_id=first.id)
    )
    assert way.calls() == ["/weather?city=Paris"]
    assert [item.type for item in second.output] == ["mcp_call", "message"]
    assert RAIN in second.output_text


@pytest.mark.parametrize("stored", [True, False])
def test_a_function_of_the_clients_is_called_and_answered(way: Way, client: openai.OpenAI, stored: bool):
    question = "Send an email to bob@example.com with the text: hello"
    choice = {"type": "function", "name": "send_email"}
    first = client.responses.create(
        **request_body(way, question, tools=[OWN], tool_choice=choice, store=stored)
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "send_email"
    assert "bob" in call.arguments.lower()
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sent"}
    if stored:
        body = request_body(way, [output], tools=[OWN], previous_response_id=first.id)
    else:
        history = [{"role": "user", "content": question}, *first.output, output]
        body = request_body(way, history, tools=[OWN], store=False)
    second = client.responses.create(**body)
    assert second.status in ("completed", "incomplete")
    assert second.output
    way.calls()


def test_a_conversation_goes_on_with_what_its_tools_said(way: Way, client: openai.OpenAI):
    first = client.responses.create(**request_body(way, QUESTION))
    assert way.calls() == ["/weather?city=Paris"]
    second = client.responses.create(
        **request_body(way, "Say that again.", previous_response_id=first.id, tool_choice="none")
    )
    assert way.calls() == []
    assert RAIN in second.output_text


def test_a_response_in_the_background_is_polled(way: Way, client: openai.OpenAI):
    response = client.responses.create(**request_body(way, QUESTION, background=True))
    deadline = time.monotonic() + 300
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    assert response.status == "completed"
    assert RAIN in response.output_text
    assert way.calls() == ["/weather?city=Paris"]


def test_an_answer_that_is_too_long_is_incomplete(way: Way, client: openai.OpenAI):
    body = {**request_body(way, "Count from one to one hundred."), "max_output_tokens": 5}
    response = client.responses.create(**body, tool_choice="none")
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


def test_the_tokens_of_an_input_are_counted(way: Way, client: openai.OpenAI):
    short = client.responses.input_tokens.count(model=way.model, input="Hi").input_tokens
    long = client.responses.input_tokens.count(model=way.model, input=" ".join(["town"] * 50)).input_tokens
    assert 0 < short < long - 40
