"""A request that failed after tools ran and is repeated, by a client or by a person: no tool runs twice."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.upstream import OUT_OF_MEMORY, Reply, tool_call, whole
from toolway.engine.history import failed_requests

CALLS = whole({"content": "Let me look. ", "tool_calls": [tool_call()]}, finish="tool_calls")
ANSWERS = whole({"content": "It is cloudy."})
OWN_TOOL = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}


@pytest.fixture
def app():
    with app_server() as server:
        yield server


def ask(app: AppServer, *, headers: dict[str, str] | None = None, **more: Any) -> Any:
    """Ask with a key, as every SDK does."""
    return app.ask(headers={"authorization": "Bearer one"} if headers is None else headers, **more)


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_repeated_request_goes_on_from_the_results(app: AppServer):
    app.set_replies(CALLS, OUT_OF_MEMORY, ANSWERS)
    assert ask(app).status_code == 502
    assert text_of(ask(app)) == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 1
    assert app.upstream.seen[2].json == app.upstream.seen[1].json


def test_each_attempt_adds_its_rounds(app: AppServer):
    more = whole({"tool_calls": [tool_call("list_cities", "{}", id="call_2")]}, finish="tool_calls")
    app.set_replies(CALLS, OUT_OF_MEMORY, OUT_OF_MEMORY, more, OUT_OF_MEMORY, ANSWERS)
    failed = [ask(app) for _ in range(3)]
    assert [answer.status_code for answer in failed] == [502, 500, 502]
    assert text_of(ask(app)) == "Let me look. It is cloudy."
    assert [name for name, _ in app.tools.calls] == ["get_weather", "list_cities"]
    roles = [message["role"] for message in app.upstream.seen[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


def test_the_results_are_used_once(app: AppServer):
    app.set_replies(CALLS, OUT_OF_MEMORY, ANSWERS, CALLS, ANSWERS)
    ask(app)
    ask(app)
    assert text_of(ask(app)) == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 2


async def test_a_client_that_leaves_and_asks_again_has_its_results(app: AppServer):
    """As the OpenAI SDKs do when they waited for too long."""
    gate = Gate()
    app.set_replies(CALLS, Reply([gate]), ANSWERS)
    async with app.async_client() as client:
        ask = partial(client.chat.completions.create, model="mock", messages=QUESTION)
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.to_thread.run_sync(gate.wait_for_arrival)
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(app.upstream.departures.wait)
        answer = await ask()
    assert answer.choices[0].message.content == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 1


@pytest.mark.parametrize(
    "other",
    [{"temperature": 0.5}, {"headers": {"authorization": "Bearer another"}}],
    ids=["another question", "another client"],
)
def test_nobody_else_gets_them(app: AppServer, other: dict[str, Any]):
    app.set_replies(CALLS, OUT_OF_MEMORY, CALLS, ANSWERS)
    ask(app)
    ask(app, **other)
    assert len(app.tools.calls) == 2


def test_without_a_key_another_connection_may_be_anybodys(app: AppServer):
    app.set_replies(CALLS, OUT_OF_MEMORY, CALLS, ANSWERS)
    ask(app, headers={})
    assert text_of(ask(app, headers={})) == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 2


@pytest.mark.parametrize(
    "headers", [{}, {"idempotency-key": "mine"}], ids=["one connection", "a key made up"]
)
def test_without_a_key_a_connection_or_a_made_up_key_is_enough(app: AppServer, headers: dict[str, str]):
    app.set_replies(CALLS, OUT_OF_MEMORY, ANSWERS)
    body = {"model": "mock", "messages": QUESTION}
    url = f"{app.url}/v1/chat/completions"
    with httpx2.Client(timeout=60) as client:
        assert client.post(url, json=body, headers=headers).status_code == 502
        answer = (
            client.post(url, json=body, headers=headers) if not headers else app.post(body, headers=headers)
        )
    assert text_of(answer) == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 1


def test_they_are_old_after_a_while(app: AppServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failed_requests, "REPEATED_WITHIN", 0.0)
    app.set_replies(CALLS, OUT_OF_MEMORY, CALLS, ANSWERS)
    ask(app)
    ask(app)
    assert len(app.tools.calls) == 2


def test_failing_again_does_not_change_how_long_they_are_kept(
    app: AppServer, monkeypatch: pytest.MonkeyPatch
):
    app.set_replies(CALLS, OUT_OF_MEMORY, OUT_OF_MEMORY, ANSWERS)
    ask(app)
    monkeypatch.setattr(failed_requests, "REPEATED_WITHIN", 0.0)
    ask(app)
    assert text_of(ask(app)) == "Let me look. It is cloudy."
    assert len(app.tools.calls) == 1


def test_a_call_that_was_forced_is_not_forced_again(app: AppServer):
    app.set_replies(CALLS, OUT_OF_MEMORY, ANSWERS)
    ask(app, tool_choice="required")
    ask(app, tool_choice="required")
    assert [request.json["tool_choice"] for request in app.upstream.seen] == ["required", "auto", "auto"]


def test_a_client_whose_tool_is_called_next_gets_all_rounds_back(app: AppServer):
    theirs = whole({"tool_calls": [tool_call("theirs", "{}", id="call_2")]}, finish="tool_calls")
    app.set_replies(CALLS, OUT_OF_MEMORY, theirs, ANSWERS)
    ask(app, tools=[OWN_TOOL])
    said = ask(app, tools=[OWN_TOOL]).json()["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": said["tool_calls"][0]["id"], "content": "done"}
    question = app.upstream.seen[0].json["messages"]
    ask(app, messages=[*question, said, result], tools=[OWN_TOOL])
    roles = [message["role"] for message in app.upstream.seen[-1].json["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    assert len(app.tools.calls) == 1


def test_a_failure_before_any_result_is_simply_asked_again(app: AppServer):
    app.set_replies(OUT_OF_MEMORY, CALLS, ANSWERS)
    assert ask(app).status_code == 500
    assert text_of(ask(app)) == "Let me look. It is cloudy."
