"""Calls that wait for somebody's approval: asked for by default, run once when approved, told to the model when not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    THEIRS,
    approval_tool,
    ask,
    decision,
    error_of,
    events_of,
    items_of,
    kinds,
    label,
    respond,
    sent,
    text_of,
    turn,
    types,
)
from tests.support.app_server import AppServer, app_server, serving
from tests.support.gate import Gate
from tests.support.tools import Raw, ToolService
from tests.support.upstream import OUT_OF_MEMORY, Reply, tool_call
from toolway.api.responses import StoredResponses
from toolway.stores.memory import MemoryEntries
from toolway.stores.store import Store
from toolway.types import Image, ToolResult

OURS = tool_call(id="ours")
ROME = tool_call(arguments='{"city":"Rome"}', id="rome", index=1)
JSON = dict[str, Any]


@pytest.fixture
def app():
    with app_server() as server:
        yield server


def begun(app: AppServer, *calls: JSON, streamed: bool = False, **more: Any) -> tuple[JSON, list[JSON]]:
    """A response that ends with calls that wait, and the requests in it; then the model says Fine."""
    app.set_replies(turn("Wait.", *(calls or [OURS]), streamed=streamed), turn("Fine.", streamed=streamed))
    response = ask(app, streamed=streamed, **{"tools": [approval_tool(app)], **more})
    return response, items_of(response, "mcp_approval_request")


@BOTH
def test_calls_of_a_declared_server_wait_unless_the_client_says_otherwise(app: AppServer, streamed: bool):
    first, (request,) = begun(app, streamed=streamed)
    assert kinds(first) == ["mcp_list_tools", "message", "mcp_approval_request"]
    assert app.tools.calls == []
    assert (request["name"], request["server_label"], request["arguments"]) == (
        "get_weather",
        label(app),
        '{"city":"Paris"}',
    )
    assert first["tools"][0]["require_approval"] == "always"

    second = ask(
        app,
        streamed=streamed,
        tools=[approval_tool(app)],
        input=[decision(request)],
        previous_response_id=first["id"],
    )
    assert kinds(second) == ["mcp_call", "message"]
    call = second["output"][0]
    assert (call["approval_request_id"], call["status"]) == (request["id"], "completed")
    assert "cloudy" in call["output"]
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["content"] == "Wait."
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"] == "ours"
    assert "cloudy" in messages[2]["content"]


def test_the_official_client_approves(app: AppServer):
    app.set_replies(turn("", OURS, streamed=False), turn("Fine.", streamed=False))
    tools: Any = [approval_tool(app)]
    with app.client() as client:
        first = client.responses.create(model="mock", input="Hi", tools=tools)
        request = first.output[-1]
        assert request.type == "mcp_approval_request"
        second = client.responses.create(
            model="mock",
            tools=tools,
            previous_response_id=first.id,
            input=[{"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}],
        )
    assert [item.type for item in second.output] == ["mcp_call", "message"]


@pytest.mark.parametrize(
    ("wanted", "waits"),
    [
        ("always", True),
        ("never", False),
        (None, True),
        ({"never": {"tool_names": ["get_weather"]}}, False),
        ({"never": {"tool_names": ["list_cities"]}}, True),
        ({"always": {"tool_names": ["get_weather"]}}, True),
        ({"always": {"tool_names": ["list_cities"]}}, False),
        ({"always": {"tool_names": ["list_cities"]}, "never": {"tool_names": ["get_weather"]}}, False),
        ({"never": {"read_only": True}}, True),
    ],
)
def test_a_declaration_says_which_calls_wait(app: AppServer, wanted: Any, waits: bool):
    _, requests = begun(app, tools=[approval_tool(app, require_approval=wanted)])
    assert bool(requests) is waits
    assert bool(app.tools.calls) is not waits


@BOTH
def test_a_refusal_is_told_to_the_model_with_its_reason(app: AppServer, streamed: bool):
    first, (request,) = begun(app, streamed=streamed)
    second = ask(
        app,
        streamed=streamed,
        tools=[approval_tool(app)],
        input=[decision(request, False, reason="too dear")],
        previous_response_id=first["id"],
    )
    assert kinds(second) == ["message"]
    assert app.tools.calls == []
    assert "refused it, and said: too dear" in sent(app)[-1]["content"]


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"headers": {"X-Toolway-Tools": "list_*"}}])
def test_an_approved_call_runs_whatever_may_be_called_after_it(app: AppServer, more: JSON):
    first, (request,) = begun(app)
    body = {"tools": [approval_tool(app)], "input": [decision(request)], "previous_response_id": first["id"]}
    second = ask(app, **body, **more)
    assert kinds(second) == ["mcp_call", "message"]
    assert second["output"][0]["status"] == "completed"
    assert len(app.tools.calls) == 1


def test_one_of_two_calls_is_approved(app: AppServer):
    first, (paris, rome) = begun(app, OURS, ROME)
    second = ask(
        app,
        tools=[approval_tool(app)],
        input=[decision(paris, False), decision(rome)],
        previous_response_id=first["id"],
    )
    assert app.tools.calls == [("get_weather", {"city": "Rome"})]
    (call,) = items_of(second, "mcp_call")
    assert call["approval_request_id"] == rome["id"]
    refused, done = sent(app)[-2:]
    assert (refused["tool_call_id"], done["tool_call_id"]) == ("ours", "rome")
    assert "refused" in refused["content"]
    assert "Rome" in done["content"]


def test_a_call_that_nobody_spoke_of_is_not_run(app: AppServer):
    first, (_, rome) = begun(app, OURS, ROME)
    ask(app, tools=[approval_tool(app)], input=[decision(rome)], previous_response_id=first["id"])
    assert app.tools.calls == [("get_weather", {"city": "Rome"})]
    ask(app, tools=[approval_tool(app)], input="Never mind.", previous_response_id=first["id"])
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool", "tool", "user"]
    assert all("did not approve" in message["content"] for message in sent(app)[2:4])


def test_a_call_that_needs_no_approval_runs_beside_one_that_does(app: AppServer):
    cities = tool_call("list_cities", "{}", "cities", 1)
    wanted = {"never": {"tool_names": ["list_cities"]}}
    entry = approval_tool(app, require_approval=wanted)
    first, (request,) = begun(app, OURS, cities, tools=[entry])
    assert app.tools.calls == [("list_cities", {})]
    second = ask(app, tools=[entry], input=[decision(request)], previous_response_id=first["id"])
    assert kinds(second) == ["mcp_call", "message"]
    weather, listed = sent(app)[-2:]
    assert (weather["tool_call_id"], listed["tool_call_id"]) == ("ours", "cities")
    assert ("cloudy" in weather["content"], "Rome" in listed["content"]) == (True, True)
    assert len(app.tools.calls) == 2


def test_a_turn_with_a_call_of_the_clients_and_one_that_waits(app: AppServer):
    tools = [THEIRS, approval_tool(app)]
    first, (request,) = begun(app, OURS, tool_call("theirs", "{}", "c", 1), tools=tools)
    output = {"type": "function_call_output", "call_id": "c", "output": "done"}
    back = [output, decision(request)]
    ask(app, tools=tools, input=back, previous_response_id=first["id"])
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert ("cloudy" in messages[2]["content"], messages[3]["content"]) == (True, "done")


def test_calls_of_later_rounds_wait_too(app: AppServer):
    first, (request,) = begun(app)
    app.upstream.replies = [turn("", ROME, streamed=False)]
    second = ask(app, tools=[approval_tool(app)], input=[decision(request)], previous_response_id=first["id"])
    assert kinds(second) == ["mcp_call", "mcp_approval_request"]
    app.upstream.replies = [turn("Both.", streamed=False)]
    request = second["output"][1]
    third = ask(app, tools=[approval_tool(app)], input=[decision(request)], previous_response_id=second["id"])
    assert text_of(third) == "Both."
    assert [message["role"] for message in sent(app)] == ["user", *["assistant", "tool"] * 2]
    assert len(app.tools.calls) == 2


@pytest.mark.parametrize("again", [True, False], ids=["approved again", "refused later"])
def test_an_answer_that_comes_again_is_a_400_and_runs_nothing(app: AppServer, again: bool):
    first, (request,) = begun(app)
    body = {"tools": [approval_tool(app)], "previous_response_id": first["id"]}
    ask(app, input=[decision(request)], **body)
    refused = respond(app, input=[decision(request, again)], **body)
    assert "was answered before" in error_of(refused, 400)["message"]
    refused = respond(app, input=[decision(request, again)], stream=True, **body)
    assert "was answered before" in error_of(refused, 400)["message"]
    assert len(app.tools.calls) == 1


def test_what_was_refused_cannot_be_approved_later(app: AppServer):
    first, (request,) = begun(app)
    body = {"tools": [approval_tool(app)], "previous_response_id": first["id"]}
    ask(app, input=[decision(request, False)], **body)
    refused = respond(app, input=[decision(request)], **body)
    assert "was answered before" in error_of(refused, 400)["message"]
    assert app.tools.calls == []


def test_an_answer_twice_in_one_request_is_a_400(app: AppServer):
    first, (request,) = begun(app)
    refused = respond(
        app,
        tools=[approval_tool(app)],
        input=[decision(request), decision(request)],
        previous_response_id=first["id"],
    )
    assert "was answered before" in error_of(refused, 400)["message"]
    assert app.tools.calls == []


def test_of_two_answers_where_one_came_before_the_other_can_still_be_given(app: AppServer):
    first, (paris, rome) = begun(app, OURS, ROME)
    body = {"tools": [approval_tool(app)], "previous_response_id": first["id"]}
    ask(app, input=[decision(paris)], **body)
    error_of(respond(app, input=[decision(rome), decision(paris)], **body), 400)
    assert len(app.tools.calls) == 1
    ask(app, input=[decision(rome)], **body)
    assert [arguments["city"] for _, arguments in app.tools.calls] == ["Paris", "Rome"]


@pytest.mark.parametrize("identity", ["mcpr_gone", "ours"])
def test_an_answer_to_nothing_is_a_400(app: AppServer, identity: str):
    first, _ = begun(app)
    refused = respond(
        app, tools=[approval_tool(app)], input=[decision({"id": identity})], previous_response_id=first["id"]
    )
    error = error_of(refused, 400)
    assert error["message"] == f"Approval request with id '{identity}' not found."
    assert error["param"] == "input[0].approval_request_id"
    assert app.tools.calls == []


def both_at_once(app: AppServer, urls: list[str], body: JSON) -> list[httpx2.Response]:
    """The answers to the same request, sent to each of these at the same time."""
    answers: list[httpx2.Response] = []
    threads = [threading.Thread(target=lambda url=url: answers.append(respond(url, body))) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.fixture(params=["one server", "sqlite", "redis"])
def doors(request: pytest.FixtureRequest, tmp_path: Any, app: AppServer) -> Iterator[list[str]]:
    """Where to send two requests to: one server, or two that share a store."""
    if request.param == "one server":
        yield [app.url, app.url]
        return
    store = f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "redis":
        store = request.getfixturevalue("redis").url
    with ExitStack() as stack:
        settings = app.settings_with_store(store)
        yield [stack.enter_context(serving(settings)) for _ in range(2)]


@BOTH
def test_two_approvals_at_the_same_time_run_the_tool_once(app: AppServer, doors: list[str], streamed: bool):
    for _ in range(5):
        app.set_replies(turn("", OURS, streamed=streamed))
        first = ask(doors[0], streamed=streamed, tools=[approval_tool(app)])
        request = first["output"][-1]
        app.set_replies(turn("Fine.", streamed=streamed))
        body = {
            "tools": [approval_tool(app)],
            "input": [decision(request)],
            "previous_response_id": first["id"],
            "stream": streamed,
        }
        answers = both_at_once(app, doors, body)
        assert sorted(answer.status_code for answer in answers) == [200, 400]
        refused = next(answer for answer in answers if answer.status_code == 400)
        assert "was answered before" in error_of(refused, 400)["message"]
        assert len(app.tools.calls) == 1


@BOTH
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "without state"])
def test_an_approval_may_come_again_when_its_response_failed(app: AppServer, streamed: bool, stored: bool):
    options: JSON = {"tools": [approval_tool(app)], "store": stored}
    first, (request,) = begun(app, streamed=streamed, **options)
    history = [{"role": "user", "content": QUESTION}, *first["output"], decision(request)]
    options |= (
        {"input": [decision(request)], "previous_response_id": first["id"]} if stored else {"input": history}
    )
    app.set_replies(OUT_OF_MEMORY, OUT_OF_MEMORY, turn("Fine.", streamed=streamed))
    for _ in range(2):
        answered = respond(app, stream=streamed, **options)
        assert "out of memory" in answered.text
        assert answered.status_code == (200 if streamed else 502)
    response = ask(app, streamed=streamed, **options)
    assert kinds(response) == ["mcp_call", "message"]
    (call,) = items_of(response, "mcp_call")
    assert (call["status"], call["approval_request_id"]) == ("completed", request["id"])
    assert "cloudy" in call["output"]
    assert "cloudy" in sent(app)[-1]["content"]
    assert "was answered before" in error_of(respond(app, **options), 400)["message"]
    assert len(app.tools.calls) == 1


async def test_an_approval_may_come_again_when_its_client_left(app: AppServer):
    first, (request,) = begun(app)
    gate = Gate()
    app.set_replies(Reply([gate]), turn("Fine.", streamed=False))
    body: JSON = {
        "model": "mock",
        "tools": [approval_tool(app)],
        "input": [decision(request)],
        "previous_response_id": first["id"],
    }
    async with httpx2.AsyncClient() as client, anyio.create_task_group() as group:
        group.start_soon(partial(client.post, f"{app.url}/v1/responses", json=body, timeout=60))
        await anyio.to_thread.run_sync(gate.wait_for_arrival)
        group.cancel_scope.cancel()
    await anyio.to_thread.run_sync(app.upstream.departures.wait)
    response = await anyio.to_thread.run_sync(partial(ask, app, **body))
    assert kinds(response) == ["mcp_call", "message"]
    assert len(app.tools.calls) == 1


def test_images_of_an_approved_call_are_there_when_the_approval_comes_again(app: AppServer):
    result = ToolResult(text="A map.", is_error=True, images=(Image(media_type="image/png", data="aGk="),))
    records = StoredResponses(Store(MemoryEntries()), ttl=60)

    async def keep() -> ToolResult | None:
        await records.keep_result("me", "mcpr_1", result)
        assert await records.result("you", "mcpr_1") is None
        return await records.result("me", "mcpr_1")

    assert anyio.run(keep) == result


def test_what_an_approved_call_gave_is_not_what_a_later_call_of_the_same_id_gives(app: AppServer):
    """Some model servers number the calls anew in each round."""
    first, (request,) = begun(app)
    body: JSON = {"input": [decision(request)], "previous_response_id": first["id"]}
    app.set_replies(OUT_OF_MEMORY)
    assert respond(app, tools=[approval_tool(app)], **body).status_code == 502
    assert [arguments["city"] for _, arguments in app.tools.calls] == ["Paris"]
    again = tool_call(arguments='{"city":"Rome"}', id="ours")
    app.set_replies(turn("", again, streamed=False), turn("Both.", streamed=False))
    response = ask(app, tools=[approval_tool(app, require_approval="never")], **body)
    paris, rome = items_of(response, "mcp_call")
    assert ("Paris" in paris["arguments"], "Rome" in rome["arguments"]) == (True, True)
    assert ("Paris" in paris["output"], "Rome" in rome["output"]) == (True, True)
    assert (paris["approval_request_id"], rome["approval_request_id"]) == (request["id"], None)
    assert [arguments["city"] for _, arguments in app.tools.calls] == ["Rome"]


@BOTH
def test_approvals_without_state(app: AppServer, streamed: bool):
    options: JSON = {"streamed": streamed, "store": False, "tools": [approval_tool(app)]}
    first, (request,) = begun(app, **options)
    history = [{"role": "user", "content": QUESTION}, *first["output"], decision(request)]
    second = ask(app, input=history, **options)
    assert kinds(second) == ["mcp_call", "message"]
    assert len(app.tools.calls) == 1
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool"]
    assert "cloudy" in sent(app)[-1]["content"]

    # The whole history comes again, with the answer and the call in it.
    history += [*second["output"], {"role": "user", "content": "And?"}]
    third = ask(app, input=history, **options)
    assert kinds(third) == ["message"]
    assert len(app.tools.calls) == 1
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert "cloudy" in messages[2]["content"]
    assert messages[3]["content"] == "Fine."


def test_refusals_without_state(app: AppServer):
    options: JSON = {"store": False, "tools": [approval_tool(app)]}
    first, (paris, rome) = begun(app, OURS, ROME, **options)
    history = [
        {"role": "user", "content": QUESTION},
        *first["output"],
        decision(paris, False),
        decision(rome),
    ]
    second = ask(app, input=history, **options)
    history += [*second["output"], {"role": "user", "content": "And?"}]
    ask(app, input=history, **options)
    assert len(app.tools.calls) == 1
    messages = sent(app)
    assert [message["role"] for message in messages] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
    ]
    assert ("refused" in messages[2]["content"], "Rome" in messages[3]["content"]) == (True, True)


def test_an_approval_without_state_comes_again_as_it_was(app: AppServer):
    options: JSON = {"store": False, "tools": [approval_tool(app)]}
    first, (request,) = begun(app, **options)
    history = [{"role": "user", "content": QUESTION}, *first["output"], decision(request)]
    ask(app, input=history, **options)
    refused = respond(app, input=history, **options)
    assert "was answered before" in error_of(refused, 400)["message"]
    assert len(app.tools.calls) == 1


@BOTH
def test_an_approved_tool_that_fails_is_a_failed_call(streamed: bool):
    async def broken(_: Any) -> Raw:
        return Raw(b'{"detail": "no such city"}', 500)

    with app_server(tools=ToolService(get_weather=broken)) as app:
        first, (request,) = begun(app, streamed=streamed)
        body = {
            "tools": [approval_tool(app)],
            "input": [decision(request)],
            "previous_response_id": first["id"],
        }
        (call,) = items_of(ask(app, streamed=streamed, **body), "mcp_call")
        assert (call["status"], call["approval_request_id"]) == ("failed", request["id"])
        assert "no such city" in call["error"]["content"][0]["text"]


@BOTH
def test_arguments_that_cannot_be_read_are_told_to_the_model_not_asked_about(app: AppServer, streamed: bool):
    first, requests = begun(app, tool_call(arguments='{"city":', id="ours"), streamed=streamed)
    assert requests == []
    assert text_of(first) == "Wait.Fine."
    assert "not a JSON object" in sent(app)[-1]["content"]
    assert app.tools.calls == []


def test_the_stream_of_an_approved_call_begins_before_the_model_is_asked():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "done"

    with app_server(tools=ToolService(get_weather=slow)) as app:
        first, (request,) = begun(app, streamed=True)
        body: JSON = {
            "model": "mock",
            "stream": True,
            "tools": [approval_tool(app)],
            "input": [decision(request)],
            "previous_response_id": first["id"],
        }
        asked = len(app.upstream.seen)
        with httpx2.stream("POST", f"{app.url}/v1/responses", json=body, timeout=60) as stream:
            assert stream.status_code == 200
            gate.wait_for_arrival()
            assert len(app.upstream.seen) == asked
            gate.open()
            told = types(events_of(stream.read().decode()))
        assert told.index("response.mcp_call.in_progress") < told.index("response.output_text.delta")
