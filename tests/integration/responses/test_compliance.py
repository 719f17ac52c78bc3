"""What a public compliance suite for Open Responses servers asks for, in our words: all published fields, each time.

Each case is played with tools of Toolway's in every request, of which the model calls one before it says anything, and
without any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from websockets.sync.client import ClientConnection

from tests.integration.responses.requests import (
    ask,
    create,
    events_of,
    items_of,
    refused,
    respond,
    sent,
    text_of,
    turn,
    types,
    websocket,
)
from tests.support.app_server import AppServer, app_server
from tests.support.published import (
    assert_published,
    assert_published_compaction,
    assert_published_event,
)
from tests.support.responses import check_events
from tests.support.upstream import Reply, tool_call

JSON = dict[str, Any]

WEATHER: JSON = {
    "type": "function",
    "name": "get_weather",  # one of Toolway's has this name, too
    "description": "Tells the weather of a place",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
ASK_WEATHER = "How is the weather in San Francisco?"
SCHEMA: JSON = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5Er"
    "kJggg=="
)


def model(body: JSON) -> Reply:
    """Calls a tool of Toolway's first, if there is one; then the client's, if there is one; then speaks."""
    streamed = bool(body.get("stream"))
    last = max(n for n, message in enumerate(body["messages"]) if message["role"] == "user")
    tools = {tool["function"]["name"]: tool["function"] for tool in body.get("tools", ())}
    results = [message for message in body["messages"][last:] if message["role"] == "tool"]
    if "list_cities" in tools and not results:
        return turn("", tool_call("list_cities", "{}", id="hidden"), streamed=streamed)
    theirs = "location" in tools.get("get_weather", {}).get("parameters", {}).get("properties", {})
    if theirs and not any(message["tool_call_id"] == "theirs" for message in results):
        return turn("", tool_call(arguments='{"location":"SF"}', id="theirs"), streamed=streamed)
    if "response_format" in body:
        return turn('{"ok":true}', streamed=streamed)
    reasoning = "Let me think." if body.get("reasoning_effort") else ""
    return turn("Here I am.", reasoning=reasoning, streamed=streamed)


@pytest.fixture(scope="module", params=["with-tools", "without"])
def server(request: pytest.FixtureRequest) -> Iterator[AppServer]:
    endpoints = None if request.param == "with-tools" else ""
    with app_server(endpoints=endpoints) as server:
        yield server


@pytest.fixture
def app(server: AppServer) -> AppServer:
    server.set_replies()
    server.upstream.answer = model
    return server


def made(app: AppServer, **body: Any) -> JSON:
    """A whole response that is complete."""
    response = ask(app, **body)
    assert_published(response)
    assert_hidden_tool_ran(app)
    return response


def streamed(app: AppServer, **body: Any) -> list[JSON]:
    """The events of a response that is complete."""
    events = events_of(respond(app, body, stream=True).text)
    assert_events(events)
    assert_hidden_tool_ran(app)
    return events


def assert_events(events: list[JSON]) -> None:
    for event in events:
        assert_published_event(event)
    assert check_events(events)["status"] == "completed"


def assert_hidden_tool_ran(app: AppServer) -> None:
    assert bool(app.tools.calls) == bool(app.settings.tools.endpoints)


def said(connection: ClientConnection, **body: Any) -> list[JSON]:
    """The events of one response that need not be kept, or the error in its place."""
    return create(connection, **{"store": False, **body})


def heard(connection: ClientConnection, **body: Any) -> JSON:
    """A response over the connection that is complete."""
    events = said(connection, **body)
    assert_events(events)
    response: JSON = events[-1]["response"]
    return response


def refusal(connection: ClientConnection, **body: Any) -> str:
    """The code of the error that is told in place of a response."""
    error = refused(said(connection, **body))
    assert error["status"] == 400
    return str(error["code"])


def test_a_text(app: AppServer):
    response = made(app, input=[{"type": "message", "role": "user", "content": "Say hello."}])
    assert text_of(response) == "Here I am."


def test_a_streamed_text(app: AppServer):
    kinds = types(streamed(app, input=[{"type": "message", "role": "user", "content": "Count to 5."}]))
    assert "response.output_text.delta" in kinds


def test_a_system_message(app: AppServer):
    pirate = {"type": "message", "role": "system", "content": "You are a pirate."}
    made(app, input=[pirate, {"type": "message", "role": "user", "content": "Say hello."}])
    assert sent(app)[0] == {"role": "system", "content": "You are a pirate."}


def test_a_call_of_the_clients(app: AppServer):
    response = made(app, input=ASK_WEATHER, tools=[WEATHER])
    [call] = items_of(response, "function_call")
    assert (call["name"], call["arguments"]) == ("get_weather", '{"location":"SF"}')


def test_a_streamed_call_of_the_clients(app: AppServer):
    events = streamed(app, input=ASK_WEATHER, tools=[WEATHER])
    added = [event["item"]["type"] for event in events if event["type"] == "response.output_item.added"]
    assert added == ["function_call"]
    assert "response.function_call_arguments.delta" in types(events)
    assert "response.function_call_arguments.done" in types(events)


def test_the_result_of_a_call_of_the_clients(app: AppServer):
    choice = {"type": "function", "name": "get_weather"}
    first = made(app, input=ASK_WEATHER, tools=[WEATHER], tool_choice=choice)
    [call] = items_of(first, "function_call")
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees, clear"}
    assert text_of(made(app, input=[output], previous_response_id=first["id"])) == "Here I am."


def test_an_image(app: AppServer):
    parts = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": DOT}]
    made(app, input=[{"type": "message", "role": "user", "content": parts}])
    assert sent(app)[0]["content"][1] == {"type": "image_url", "image_url": {"url": DOT}}


def test_a_file(app: AppServer):
    file = {
        "type": "input_file",
        "filename": "a.pdf",
        "file_data": "data:application/pdf;base64,JVBERi0xLjQ=",
    }
    parts = [{"type": "input_text", "text": "Its title?"}, file]
    made(app, input=[{"type": "message", "role": "user", "content": parts}])
    assert sent(app)[0]["content"][1]["file"]["filename"] == "a.pdf"


def test_turns_in_the_input(app: AppServer):
    said_before = {"type": "message", "role": "assistant", "content": "Hello Alice!"}
    question = {"type": "message", "role": "user", "content": "Who am I?"}
    made(
        app,
        input=[{"type": "message", "role": "user", "content": "My name is Alice."}, said_before, question],
    )
    assert [message["role"] for message in sent(app, 0)] == ["user", "assistant", "user"]


def test_phases_of_an_answer(app: AppServer):
    before: list[JSON] = [
        {"type": "message", "role": "assistant", "phase": "commentary", "content": "I know it."},
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": "Four."},
    ]
    made(app, input=[*before, {"type": "message", "role": "user", "content": "Say it again."}])
    assert [message["content"] for message in sent(app, 0)] == ["I know it.\n\nFour.", "Say it again."]


def test_a_previous_response(app: AppServer):
    first = made(app, input="The word is papaya.")
    second = made(app, input="What is the word?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert sent(app)[0]["content"] == "The word is papaya."


def test_a_structured_answer(app: AppServer):
    form = {"type": "json_schema", "name": "answer", "schema": SCHEMA}
    assert json.loads(text_of(made(app, input="Well?", text={"format": form}))) == {"ok": True}


def test_reasoning(app: AppServer):
    assert items_of(made(app, input="Why?", reasoning={"effort": "low"}), "reasoning")
    events = streamed(app, input="Why?", reasoning={"effort": "low"})
    assert "response.reasoning_text.delta" in types(events)


def test_a_compaction(app: AppServer):
    asked = {"model": "mock", "prompt_cache_key": "k", "input": "We start on Tuesday. Remember it."}
    response = httpx2.post(f"{app.url}/v1/responses/compact", json=asked).json()
    assert_published_compaction(response)
    assert [item["type"] for item in response["output"]] == ["message", "compaction"]


def test_a_compaction_without_a_model(app: AppServer):
    answer = httpx2.post(f"{app.url}/v1/responses/compact", json={"input": "Hello"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_a_websocket(app: AppServer):
    with websocket(app) as connection:
        response = heard(connection, store=True, input="Count to 3.")
    assert text_of(response) == "Here I am."
    assert_hidden_tool_ran(app)


def test_a_websocket_for_several_responses(app: AppServer):
    with websocket(app) as connection:
        first, second = heard(connection, input="First."), heard(connection, input="Second.")
    assert first["id"] != second["id"]
    assert sent(app)[0]["content"] == "Second."


def test_a_websocket_goes_on_from_what_is_not_stored(app: AppServer):
    with websocket(app) as connection:
        first = heard(connection, input="The word is cobalt.")
        heard(connection, input="What is the word?", previous_response_id=first["id"])
    assert sent(app)[0]["content"] == "The word is cobalt."


def test_another_websocket_does_not_know_what_is_not_stored(app: AppServer):
    with websocket(app) as connection:
        first = heard(connection, input="The word is copper.")
    with websocket(app) as connection:
        code = refusal(connection, input="The word?", previous_response_id=first["id"])
        assert code == "previous_response_not_found"
        heard(connection, input="Then begin anew.")


def test_a_websocket_with_an_unknown_previous_response(app: AppServer):
    with websocket(app) as connection:
        code = refusal(connection, input="Hello", previous_response_id="resp_nobody_knows")
    assert code == "previous_response_not_found"


def test_a_websocket_forgets_what_could_not_be_gone_on_from(app: AppServer):
    stray = {"type": "function_call_output", "call_id": "call_of_nobody", "output": "Nothing."}
    with websocket(app) as connection:
        first = heard(connection, input="The word is ember.")
        refusal(connection, input=[stray], previous_response_id=first["id"])
        code = refusal(connection, input="The word?", previous_response_id=first["id"])
    assert code == "previous_response_not_found"


def test_a_websocket_is_warmed_up(app: AppServer):
    with websocket(app) as connection:
        events = said(connection, input="Be ready.", generate=False)
        for event in events:
            assert_published_event(event)
        warm = events[-1]["response"]
        assert (warm["status"], warm["output"]) == ("completed", [])
        heard(connection, input="Now.", previous_response_id=warm["id"])
    assert sent(app)[0]["content"] == "Be ready."


def test_a_websocket_goes_on_from_a_compaction(app: AppServer):
    asked = {"model": "mock", "input": "The word is slate."}
    compacted = httpx2.post(f"{app.url}/v1/responses/compact", json=asked).json()
    with websocket(app) as connection:
        message = {"type": "message", "role": "user", "content": "Go on."}
        response = heard(connection, input=[*compacted["output"], message], tools=[])
    assert text_of(response) == "Here I am."
