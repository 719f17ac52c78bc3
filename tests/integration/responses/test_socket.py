"""GET /v1/responses as a WebSocket: what is said over it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseCompletedEvent
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection

from tests.integration.responses.requests import (
    JSON,
    QUESTION,
    approval_tool,
    create,
    decision,
    get,
    items_of,
    kinds,
    refused,
    sent,
    server,
    text_of,
    turn,
    types,
    websocket,
)
from tests.support.app_server import AppServer, app_server
from tests.support.gate import Gate
from tests.support.responses import check_events
from tests.support.upstream import Reply, chunk, json_reply, sse, text_stream, tool_call

OURS = tool_call(id="ours")


def made(connection: ClientConnection, **body: Any) -> JSON:
    """A response that is complete."""
    response = check_events(create(connection, **body))
    assert response["status"] == "completed", response
    return response


def test_one_connection_makes_one_response_after_the_other(app: AppServer):
    app.set_replies(text_stream("One."), text_stream("Two."))
    with websocket(app) as connection:
        first = made(connection, input=QUESTION)
        second = made(connection, input="And then?", previous_response_id=first["id"])
    assert (text_of(first), text_of(second)) == ("One.", "Two.")
    assert [message["content"] for message in sent(app)] == [QUESTION, "One.", "And then?"]
    assert get(app, second["id"]).json()["status"] == "completed"


def test_the_last_response_of_a_connection_goes_on_without_being_stored(app: AppServer):
    app.set_replies(text_stream("One."), text_stream("Two."), text_stream("Three."))
    with websocket(app) as connection:
        first = made(connection, input=QUESTION, store=False)
        second = made(connection, input="More.", store=False, previous_response_id=first["id"])
        gone = refused(create(connection, input="Back.", previous_response_id=first["id"]))
        third = made(connection, input="On.", store=False, previous_response_id=second["id"])
    assert get(app, first["id"]).status_code == 404
    assert (gone["status"], gone["code"]) == (400, "previous_response_not_found")
    assert text_of(third) == "Three."
    assert len(sent(app)) == 5


def test_a_warm_up_is_kept_and_gone_on_from(app: AppServer):
    app.set_replies(text_stream("Cloudy."))
    with websocket(app) as connection:
        events = create(connection, input="I live in Paris.", generate=False)
        assert types(events) == ["response.created", "response.in_progress", "response.completed"]
        warm = events[-1]["response"]
        assert (warm["output"], app.upstream.seen) == ([], [])
        response = made(connection, input=QUESTION, previous_response_id=warm["id"])
    assert text_of(response) == "Cloudy."
    assert [message["content"] for message in sent(app)] == ["I live in Paris.", QUESTION]


def test_a_warm_up_with_a_history_of_the_clients_own_holds_what_the_client_never_saw(app: AppServer):
    """As Codex takes a session up again."""
    own = {"type": "function", "name": "mine", "parameters": {"type": "object"}}
    theirs = tool_call("mine", "{}", id="call_1", index=1)
    app.set_replies(turn("Both. ", OURS, theirs, streamed=True), text_stream("Done."))
    user = {"role": "user", "content": QUESTION}
    with websocket(app) as connection:
        first = made(connection, input=[user], tools=[own], store=False)
        [call] = items_of(first, "function_call")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "x"}
    with websocket(app) as connection:
        history = [user, *first["output"], result]
        warm = create(connection, input=history, tools=[own], store=False, generate=False)[-1]["response"]
        app.set_replies(text_stream("Done."))
        made(connection, input="More.", tools=[own], store=False, previous_response_id=warm["id"])
    told = sent(app)
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool", "user"]
    assert [call["id"] for call in told[1]["tool_calls"]] == ["ours", "call_1"]


def test_tools_run_unseen_or_seen(app: AppServer):
    app.set_replies(turn("", OURS, streamed=True), text_stream("Cloudy."))
    with websocket(app) as connection:
        assert kinds(made(connection, input=QUESTION)) == ["message"]
        app.set_replies(turn("", OURS, streamed=True), text_stream("Cloudy."))
        seen = made(connection, input=QUESTION, tools=[server(app)])
    assert kinds(seen) == ["mcp_list_tools", "mcp_call", "message"]


def test_a_call_is_approved_over_the_same_connection(app: AppServer):
    app.set_replies(turn("", OURS, streamed=True), text_stream("Cloudy."))
    declared = approval_tool(app)
    with websocket(app) as connection:
        asked = made(connection, input=QUESTION, tools=[declared], store=False)
        [request] = items_of(asked, "mcp_approval_request")
        assert not app.tools.calls
        more = {"previous_response_id": asked["id"], "tools": [declared], "store": False}
        assert kinds(made(connection, input=[decision(request)], **more)) == ["mcp_call", "message"]
    assert len(app.tools.calls) == 1


def test_an_approval_is_not_spent_on_a_warm_up(app: AppServer):
    app.set_replies(turn("", OURS, streamed=True), text_stream("Cloudy."))
    declared = approval_tool(app)
    with websocket(app) as connection:
        asked = made(connection, input=QUESTION, tools=[declared])
        [request] = items_of(asked, "mcp_approval_request")
        more = {"previous_response_id": asked["id"], "tools": [declared]}
        error = refused(create(connection, input=[decision(request)], generate=False, **more))
        assert (error["status"], error["param"]) == (400, "generate")
        assert kinds(made(connection, input=[decision(request)], **more)) == ["mcp_call", "message"]


def test_a_stream_id_comes_back_with_each_event(app: AppServer):
    app.set_replies(text_stream("One."))
    with websocket(app) as connection:
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
def test_a_bad_message_is_an_error_and_the_connection_goes_on(
    app: AppServer, message: str, param: str | None
):
    app.set_replies(text_stream("Still here."))
    with websocket(app) as connection:
        connection.send(message)
        error = refused([json.loads(connection.recv(timeout=60))])
        assert (error["status"], error["type"], error["param"]) == (400, "invalid_request_error", param)
        assert text_of(made(connection, input=QUESTION)) == "Still here."


def test_a_model_server_that_refuses_is_an_error_with_its_status(app: AppServer):
    app.set_replies(json_reply({"error": {"message": "no such model"}}, 404), text_stream("Here."))
    with websocket(app) as connection:
        assert refused(create(connection, input=QUESTION))["status"] == 404
        made(connection, input=QUESTION)


def test_a_model_server_that_breaks_off_fails_the_response_and_not_the_connection(app: AppServer):
    broken = Reply(parts=[b'data: {"choices":[{"delta":{"content":"Hal"}}]}\n\n'], cut=True)
    app.set_replies(broken, text_stream("Whole."))
    with websocket(app) as connection:
        events = create(connection, input=QUESTION)
        assert types(events)[-2:] == ["error", "response.failed"]
        assert text_of(made(connection, input=QUESTION)) == "Whole."


def test_a_client_that_leaves_ends_the_work_for_it(app: AppServer):
    first = sse(chunk(role="assistant", content="Hal"), done=False)
    app.set_replies(Reply(parts=[*first.parts, Gate()]))
    with websocket(app) as connection:
        connection.send(json.dumps({"type": "response.create", "model": "mock", "input": QUESTION}))
        while json.loads(connection.recv(timeout=60))["type"] != "response.output_text.delta":
            pass
    app.upstream.departures.wait()


def test_a_key_is_asked_for_before_the_connection_is_a_websocket():
    with app_server(text_stream("Hello."), api_keys=("sesame",)) as closed:
        with pytest.raises(InvalidStatus) as caught, websocket(closed):
            pass
        assert caught.value.response.status_code == 401
        with websocket(closed, authorization="Bearer sesame") as connection:
            assert text_of(made(connection, input=QUESTION)) == "Hello."


@pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")  # the client's own affair
def test_the_openai_client_connects(app: AppServer):
    app.set_replies(text_stream("Hel", "lo."))
    with app.client().responses.connect() as connection:
        connection.response.create(model="mock", input=QUESTION)
        last = next(event for event in connection if isinstance(event, ResponseCompletedEvent))
    assert last.response.output_text == "Hello."
