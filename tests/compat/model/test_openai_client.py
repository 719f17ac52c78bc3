"""The official openai client, in each of its manners, against Toolway, a real model, an OpenAPI service and
a real MCP server on stdio.

The model is tiny: what is asserted is the call, the result in the answer, and the shape of the stream.
"""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.app_server import serving
from tests.support.model import ModelServer, needs_model
from tests.support.servers import running
from toolway.demo.programs import write_config
from toolway.demo.weather import WEATHER
from toolway.settings.load import load_settings

pytestmark = needs_model

OPTIONS = {"timeout": 300, "max_retries": 0, "api_key": "none"}


class Counting:
    """An app that notes the target of each call that comes to it."""

    def __init__(self, app: ASGIApp, calls: deque[str]) -> None:
        self.app = app
        self.calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/openapi.json":
            query = scope["query_string"].decode()
            self.calls.append(scope["path"] + (f"?{query}" if query else ""))
        await self.app(scope, receive, send)


class Listening(logging.Handler):
    """Notes what an MCP server says of each call on its standard error; it is long there when the model answers."""

    def __init__(self, calls: deque[str]) -> None:
        super().__init__()
        self.calls = calls

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("tools/call"):
            self.calls.append(record.getMessage())


@dataclass(frozen=True, kw_only=True)
class Way:
    """Toolway in front of the model, and what its tool servers were asked."""

    base_url: str
    model: str
    seen: deque[str]

    def calls(self) -> list[str]:
        """The calls since the last time."""
        found = list(self.seen)
        self.seen.clear()
        return found

    def request_body(self, question: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 120, **more}


@pytest.fixture(scope="module")
def app_server(model_server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    seen: deque[str] = deque()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TOOLWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = write_config(0, stack.enter_context(running(Counting(WEATHER, seen))))
        settings = load_settings(
            env={}, dotenv=None, openai_base_url=model_server.base_url, config=str(config)
        )
        logger = logging.getLogger("toolway.server.calculator")
        listening = Listening(seen)
        logger.addHandler(listening)
        stack.callback(logger.removeHandler, listening)
        url = stack.enter_context(serving(settings))
        wait_until_ready(url)
        logger.setLevel(logging.INFO)
        stack.callback(logger.setLevel, logging.NOTSET)
        yield Way(base_url=f"{url}/v1", model=model_server.model, seen=seen)


@pytest.fixture
def way(app_server: Way) -> Way:
    app_server.calls()
    return app_server


def wait_until_ready(url: str) -> None:
    """Each look takes its time: the model server and the services are asked."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
                if json.load(answer)["status"] == "ready":
                    return
        except urllib.error.HTTPError as error:
            error.close()
    pytest.fail("Toolway did not become ready")


@pytest.fixture
def client(way: Way) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=way.base_url, **OPTIONS) as client:
        yield client


QUESTION = "What is the weather in Paris?"
RAIN = "light rain"


def test_a_whole_answer_uses_the_result(way: Way, client: openai.OpenAI):
    answer = client.chat.completions.create(**way.request_body(QUESTION))
    assert way.calls() == ["/weather?city=Paris"]
    assert answer.object == "chat.completion"
    assert answer.model == way.model
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert RAIN in choice.message.content
    assert not choice.message.tool_calls


def test_a_streamed_answer_uses_the_result_and_comes_token_by_token(way: Way, client: openai.OpenAI):
    chunks = list(client.chat.completions.create(**way.request_body(QUESTION), stream=True))
    assert way.calls() == ["/weather?city=Paris"]
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    pieces = [delta.content for delta in deltas if delta.content]
    assert RAIN in "".join(pieces)
    assert len(pieces) > 3
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert not any(delta.tool_calls for delta in deltas)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["stop"]


def test_streamed_and_whole_say_the_same(way: Way, client: openai.OpenAI):
    whole = client.chat.completions.create(**way.request_body("Add 1234 and 4321")).choices[0].message.content
    with client.chat.completions.stream(**way.request_body("Add 1234 and 4321")) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert way.calls() == ["tools/call add a=1234 b=4321 -> The sum of 1234 and 4321 is 5555"] * 2
    assert "5555" in whole
    assert final.choices[0].message.content == whole
    assert kinds[-1] == "content.done"
    assert "content.delta" in kinds


def test_usage_counts_both_rounds_once(way: Way, client: openai.OpenAI):
    asked = way.request_body(QUESTION)
    whole = client.chat.completions.create(**asked).usage
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert len(usages) == 1
    assert usages[0].total_tokens == whole.total_tokens
    assert usages[0].toolway["rounds"] == whole.toolway["rounds"] == 2
    assert usages[0].toolway["total_tokens"] == whole.toolway["total_tokens"] > 400


@pytest.mark.anyio
async def test_the_async_client_gets_the_same(way: Way):
    async with openai.AsyncOpenAI(base_url=way.base_url, **OPTIONS) as client:
        whole = await client.chat.completions.create(**way.request_body(QUESTION))
        stream = await client.chat.completions.create(**way.request_body(QUESTION), stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        async with client.chat.completions.stream(**way.request_body(QUESTION)) as events:
            final = await events.get_final_completion()
    assert way.calls() == ["/weather?city=Paris"] * 3
    assert RAIN in whole.choices[0].message.content
    assert "".join(pieces) == final.choices[0].message.content == whole.choices[0].message.content


def test_a_question_of_no_tool_calls_none(way: Way, client: openai.OpenAI):
    answer = client.chat.completions.create(**way.request_body("Hello!"))
    assert way.calls() == []
    assert answer.choices[0].message.content


def test_a_tool_that_fails_is_told_to_the_model_not_to_the_client(way: Way, client: openai.OpenAI):
    answer = client.chat.completions.create(**way.request_body("What is the weather in Boston?"))
    assert way.calls() == ["/weather?city=Boston"]
    assert answer.choices[0].message.content


def test_the_clients_own_tool_goes_back_to_the_client(way: Way, client: openai.OpenAI):
    own = {
        "type": "function",
        "function": {
            "name": "set_volume",
            "description": "Set the volume of the radio",
            "parameters": {"type": "object", "properties": {"percent": {"type": "number"}}},
        },
    }
    answer = client.chat.completions.create(
        **way.request_body("Set the volume of the radio to 40", tools=[own])
    )
    assert way.calls() == []
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["set_volume"]


def test_other_routes_reach_the_model_server(way: Way, client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [way.model]
    assert client.completions.create(model=way.model, prompt="One, two,", max_tokens=4).choices[0].text
