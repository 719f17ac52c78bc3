"""GET /v1/responses as a WebSocket: what is said over it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseCompletedEvent
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.integration.responses.asking import (
    JSON,
    QUESTION,
    asking,
    create,
    decision,
    get,
    items_of,
    kinds,
    line,
    refused,
    sent,
    server,
    text_of,
    turn,
    types,
)
from tests.support.gate import Gate
from tests.support.house import House, house
from tests.support.responses import check_events
from tests.support.upstream import Reply, chunk, json_reply, sse, text_stream, tool_call

OURS = tool_call(id="ours")


@pytest.fixture(scope="module")
def room():
    with house() as opened:
        yield opened


def made(connection: ClientConnection, **body: Any) -> JSON:
    """A response that is complete."""
    response = check_events(create(connection, **body))
    assert response["status"] == "completed", response
    return response


def test_one_connection_makes_one_response_after_the_other(room: House):
    room.script(text_stream("One."), text_stream("Two."))
    with line(room) as connection:
        first = made(connection, input=QUESTION)
        second = made(connection, input="And then?", previous_response_id=first["id"])
    assert (text_of(first), text_of(second)) == ("One.", "Two.")
    assert [message["content"] for message in sent(room)] == [QUESTION, "One.", "And then?"]
    assert get(room, second["id"]).json()["status"] == "completed"


def test_the_last_response_of_a_connection_goes_on_without_being_stored(room: House):
    room.script(text_stream("One."), text_stream("Two."), text_stream("Three."))
    with line(room) as connection:
        first = made(connection, input=QUESTION, store=False)
        second = made(connection, input="More.", store=False, previous_response_id=first["id"])
        gone = refused(create(connection, input="Back.", previous_response_id=first["id"]))
        third = made(connection, input="On.", store=False, previous_response_id=second["id"])
    assert get(room, first["id"]).status_code == 404
    assert (gone["status"], gone["code"]) == (400, "previous_response_not_found")
    assert text_of(third) == "Three."
    assert len(sent(room)) == 5


def test_a_warm_up_is_kept_and_gone_on_from(room: House):
    room.script(text_stream("Cloudy."))
    with line(room) as connection:
        events = create(connection, input="I live in Paris.", generate=False)
        assert types(events) == ["response.created", "response.in_progress", "response.completed"]
        warm = events[-1]["response"]
        assert (warm["output"], room.upstream.seen) == ([], [])
        response = made(connection, input=QUESTION, previous_response_id=warm["id"])
    assert text_of(response) == "Cloudy."
    assert [message["content"] for message in sent(room)] == ["I live in Paris.", QUESTION]


def test_tools_run_unseen_or_seen(room: House):
    room.script(turn("", OURS, streamed=True), text_stream("Cloudy."))
    with line(room) as connection:
        assert kinds(made(connection, input=QUESTION)) == ["message"]
        room.script(turn("", OURS, streamed=True), text_stream("Cloudy."))
        seen = made(connection, input=QUESTION, tools=[server(room)])
    assert kinds(seen) == ["mcp_list_tools", "mcp_call", "message"]


def test_a_call_is_approved_over_the_same_connection(room: House):
    room.script(turn("", OURS, streamed=True), text_stream("Cloudy."))
    declared = asking(room)
    with line(room) as connection:
        asked = made(connection, input=QUESTION, tools=[declared], store=False)
        [request] = items_of(asked, "mcp_approval_request")
        assert not room.tools.calls
        more = {"previous_response_id": asked["id"], "tools": [declared], "store": False}
        assert kinds(made(connection, input=[decision(request)], **more)) == ["mcp_call", "message"]
    assert len(room.tools.calls) == 1


def test_an_approval_is_not_spent_on_a_warm_up(room: House):
    room.script(turn("", OURS, streamed=True), text_stream("Cloudy."))
    declared = asking(room)
    with line(room) as connection:
        asked = made(connection, input=QUESTION, tools=[declared])
        [request] = items_of(asked, "mcp_approval_request")
        more = {"previous_response_id": asked["id"], "tools": [declared]}
        error = refused(create(connection, input=[decision(request)], generate=False, **more))
        assert (error["status"], error["param"]) == (400, "generate")
        assert kinds(made(connection, input=[decision(request)], **more)) == ["mcp_call", "message"]


def test_a_stream_id_comes_back_with_each_event(room: House):
    room.script(text_stream("One."))
    with line(room) as connection:
        events = create(connection, input=QUESTION, stream_id="s1")
        error = create(connection, input=QUESTION, stream_id="s2", previous_response_id="resp_none")
    assert {event["stream_id"] for event in events} == {"s1"}
    assert error[0]["stream_id"] == "s2"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("no JSON", None),
        ("[]", None),
        ("{}", "type"),
        ('{"type": "response.cancel"}', "type"),
        ('{"type": "response.create", "background": true, "input": "x"}', "background"),
        ('{"type": "response.create"}', "input"),
        ('{"type": "response.create", "input": [{"type": "nonsense"}]}', "input[0]"),
    ],
)
def test_a_bad_message_is_an_error_and_the_connection_goes_on(room: House, message: str, param: str | None):
    room.script(text_stream("Still here."))
    with line(room) as connection:
        connection.send(message)
        error = refused([json.loads(connection.recv(timeout=20))])
        assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert text_of(made(connection, input=QUESTION)) == "Still here."


def test_a_model_server_that_refuses_is_an_error_with_its_status(room: House):
    room.script(json_reply({"error": {"message": "no such model"}}, 404), text_stream("Here."))
    with line(room) as connection:
        assert refused(create(connection, input=QUESTION))["status"] == 404
        made(connection, input=QUESTION)


def test_a_model_server_that_breaks_off_fails_the_response_and_not_the_connection(room: House):
    broken = Reply(parts=[b'data: {"choices":[{"delta":{"content":"Hal"}}]}\n\n'], cut=True)
    room.script(broken, text_stream("Whole."))
    with line(room) as connection:
        events = create(connection, input=QUESTION)
        assert types(events)[-2:] == ["error", "response.failed"]
        assert text_of(made(connection, input=QUESTION)) == "Whole."


def test_a_client_that_leaves_ends_the_work_for_it(room: House):
    first = sse(chunk(role="assistant", content="Hal"), done=False)
    room.script(Reply(parts=[*first.parts, Gate()]))
    with line(room) as connection:
        connection.send(json.dumps({"type": "response.create", "model": "mock", "input": QUESTION}))
        while json.loads(connection.recv(timeout=20))["type"] != "response.output_text.delta":
            pass
    room.upstream.departures.wait()


def test_a_key_is_asked_for_before_the_connection_is_a_websocket():
    with house(text_stream("Hello."), api_keys=("sesame",)) as closed:
        with pytest.raises(InvalidStatus) as caught, line(closed):
            pass
        assert caught.value.response.status_code == 401
        with line(closed, authorization="Bearer sesame") as connection:
            assert text_of(made(connection, input=QUESTION)) == "Hello."


@pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")  # the client's own affair
def test_the_openai_client_connects(room: House):
    room.script(text_stream("Hel", "lo."))
    with room.client().responses.connect() as connection:
        connection.response.create(model="mock", input=QUESTION)
        last = next(event for event in connection if isinstance(event, ResponseCompletedEvent))
    assert last.response.output_text == "Hello."
