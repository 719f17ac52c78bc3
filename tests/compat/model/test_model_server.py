"""The embedded model itself: its server's routes, and a tool call that comes out the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from tests.support.model import needs_model
from toolway.demo.child import DemoError
from toolway.demo.model import running_model

pytestmark = needs_model

GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def client(model_server):
    with openai.OpenAI(
        base_url=model_server.base_url,
        api_key="none",
        timeout=300,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def test_the_server_names_its_model(client, model_server):
    assert [model.id for model in client.models.list()] == [model_server.model]


def test_the_model_calls_the_tool_and_answers_from_its_result(client, model_server):
    question = {"role": "user", "content": "What is the weather in Paris?"}
    called = client.chat.completions.create(
        model=model_server.model, messages=[question], tools=[GET_WEATHER], temperature=0
    )
    message = called.choices[0].message
    assert message.tool_calls
    call = message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"weather": "light rain at 14 degrees"}'}
    answered = client.chat.completions.create(
        model=model_server.model,
        messages=[question, message.model_dump(exclude_none=True), result],
        tools=[GET_WEATHER],
        temperature=0,
    )
    assert answered.choices[0].finish_reason == "stop"
    assert "light rain" in answered.choices[0].message.content


def test_a_greeting_is_answered_without_a_tool(client, model_server):
    answered = client.chat.completions.create(
        model=model_server.model,
        messages=[{"role": "user", "content": "Hello!"}],
        tools=[GET_WEATHER],
        temperature=0,
        max_tokens=60,
    )
    assert answered.choices[0].message.content
    assert not answered.choices[0].message.tool_calls


def test_weights_that_cannot_be_loaded_are_told_of(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    with (
        running_model(broken) as server,
        pytest.raises(DemoError, match=r"model server ended with exit status 1[\s\S]*broken\.gguf"),
    ):
        server.wait_ready()
