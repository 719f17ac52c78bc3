"""A tool that the model server refuses costs one search, and never a request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.support.answers import assert_one_clean_answer, calls_of, chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.tools import CITY, NOTHING, ToolService, document
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call, whole
from toolway.conversation.call_ids import original_id

GRAMMAR = "Failed to initialize samplers: failed to parse grammar"
CLIENTS = {
    "type": "function",
    "function": {"name": "theirs", "parameters": {"type": "object", "properties": {}}},
}

JSON = dict[str, Any]
Answer = Callable[[JSON], Reply]


def names_in(body: JSON) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools", ())]


def refusing(*bad: str, status: int = 400, message: str = GRAMMAR, in_stream: bool = False) -> Answer:
    """A model server that takes no request with one of these tools in it."""

    def answer(body: JSON) -> Reply:
        if set(bad) & set(names_in(body)):
            error = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
            if in_stream and body.get("stream"):
                return sse(chunk(role="assistant", content=None), error, done=False)
            return json_reply(error, 200 if in_stream else status)
        return text_stream("Hello.") if body.get("stream") else whole({"content": "Hello."})

    return answer


def shop(count: int = 16) -> ToolService:
    service = ToolService()
    service.document = document({f"tool_{n:02}": CITY for n in range(count)} | {"list_cities": NOTHING})
    return service


def start(answer: Answer, tools: ToolService | None = None) -> Any:
    opened = app_server(tools=tools or shop(), refresh_interval=0.1)
    inside: AppServer = opened.__enter__()
    inside.upstream.answer = answer
    return opened, inside


@pytest.fixture
def open_app():
    opened: list[Any] = []

    def enter(answer: Answer, tools: ToolService | None = None) -> AppServer:
        context, inside = start(answer, tools)
        opened.append(context)
        return inside

    yield enter
    for context in opened:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("in_stream", [False, True], ids=["as a status", "in the stream"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("bad", [["tool_00"], ["tool_15"], ["tool_03", "tool_09"]], ids=",".join)
def test_a_refused_tool_is_found_and_left_out(open_app, bad: list[str], stream: bool, in_stream: bool):
    inside = open_app(refusing(*bad, in_stream=in_stream))
    answer = inside.ask(stream=stream)
    assert answer.status_code == 200
    if stream:
        chunks = chunks_of(answer.text)
        assert_one_clean_answer(chunks)
        assert content_of(chunks) == "Hello."
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "Hello."
    asked = len(inside.upstream.seen)
    assert asked <= 2 + 2 * 5 + 6
    assert inside.ask().status_code == 200
    assert len(inside.upstream.seen) == asked + 1
    left = set(names_in(inside.upstream.seen[-1].json))
    assert left == {f"tool_{n:02}" for n in range(16)} - set(bad) | {"list_cities"}


def test_the_operator_sees_what_is_left_out(open_app):
    inside = open_app(refusing("tool_07"))
    inside.ask()
    state = httpx2.get(f"{inside.url}/readyz").json()
    assert list(state["refused_by_upstream"]) == ["tool_07"]
    assert "grammar" in state["refused_by_upstream"]["tool_07"]


def test_a_tool_that_the_server_names_is_tried_first(open_app):
    inside = open_app(refusing("tool_11", message="Invalid schema for function 'tool_11': no"))
    assert inside.ask().status_code == 200
    assert len(inside.upstream.seen) <= 5


def test_many_requests_at_once_share_one_search(open_app):
    inside = open_app(refusing("tool_05"))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: inside.ask(stream=True).status_code, range(8)))
    assert answers == [200] * 8
    probes = [seen for seen in inside.upstream.seen if seen.json.get("max_tokens") == 1]
    assert len(probes) <= 2 * 5 + 6


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "Rate limit reached for tools"),
        (404, "The model `x` does not exist; function"),
        (400, "x does not support tools"),
        (401, "no api key for function calling"),
        (400, "messages with role 'tool' must follow"),
        (503, "schema service overloaded"),
    ],
)
def test_other_errors_are_relayed_without_a_search(open_app, status: int, message: str):
    inside = open_app(refusing("tool_05", status=status, message=message))
    answer = inside.ask()
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == message
    assert len(inside.upstream.seen) == 1


def test_a_fault_of_the_clients_own_tools_is_relayed(open_app):
    inside = open_app(refusing("theirs"))
    answer = inside.ask(tools=[CLIENTS])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == GRAMMAR
    assert inside.ask().status_code == 200
    assert "refused_by_upstream" not in httpx2.get(f"{inside.url}/readyz").json()


def test_tools_that_are_refused_only_together_are_not_searched_twice(open_app):
    def answer(body: JSON) -> Reply:
        return (
            json_reply({"error": {"message": GRAMMAR}}, 400)
            if len(names_in(body)) > 9
            else whole({"content": "Hi"})
        )

    inside = open_app(answer)
    assert inside.ask().status_code == 400
    asked = len(inside.upstream.seen)
    assert inside.ask().status_code == 400
    assert len(inside.upstream.seen) == asked + 1


def test_a_changed_definition_gets_another_chance(open_app):
    tools = shop(3)
    inside = open_app(refusing("tool_01"), tools)
    inside.ask()
    assert "tool_01" not in names_in(inside.upstream.seen[-1].json)
    inside.upstream.answer = refusing()
    tools.document = document({"tool_01": NOTHING, "tool_02": CITY})
    for _ in range(200):
        inside.ask()
        if names_in(inside.upstream.seen[-1].json) == ["tool_01", "tool_02"]:
            return
    pytest.fail("the changed tool never came back")


def test_a_server_that_names_itself_gets_its_own_schemas(open_app):
    tools = ToolService()
    tools.document = document(
        {"dated": {"type": "object", "properties": {"day": {"type": "string", "pattern": "^(?!0)\\d+$"}}}}
    )

    def answer(body: JSON) -> Reply:
        pattern = "pattern" in body["tools"][0]["function"]["parameters"]["properties"]["day"]
        reply = json_reply({"error": {"message": GRAMMAR}}, 400) if pattern else whole({"content": "Hi"})
        return Reply(reply.parts, reply.status, [*reply.headers, (b"server", b"llama.cpp")])

    inside = open_app(answer, tools)
    assert inside.ask().status_code == 200
    assert len(inside.upstream.seen) == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_is_named_alike_when_the_last_tool_of_ours_was_left_out_meanwhile(open_app, stream: bool):
    refuses = refusing("tool_00")

    def answer(body: JSON) -> Reply:
        if "tool_00" in names_in(body) or "theirs" not in names_in(body):
            return refuses(body)
        calls = [tool_call("theirs", "{}", "call_0")]
        return call_stream(*calls) if body.get("stream") else whole({"tool_calls": calls}, "tool_calls")

    app = open_app(answer)
    reply = app.ask(stream=stream, tools=[CLIENTS], headers={"x-toolway-tools": "tool_00"})
    (call,) = calls_of(reply.text) if stream else reply.json()["choices"][0]["message"]["tool_calls"]
    assert original_id(call["id"]) == "call_0" != call["id"]
