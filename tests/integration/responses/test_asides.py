"""What else is below /v1/responses: counting, compacting, and all of it handed to a model server that has it."""

from __future__ import annotations

import httpx2
import pytest

from tests.integration.responses.requests import (
    JSON,
    THEIRS,
    approval_tool,
    ask,
    create,
    decision,
    error_of,
    events_of,
    get,
    kinds,
    post,
    respond,
    sent,
    turn,
    websocket,
)
from tests.support.app_server import AppServer, app_server
from tests.support.gate import Gate
from tests.support.responses import check_events
from tests.support.upstream import Reply, json_reply, tool_call, whole
from toolway.api.responses import creation
from toolway.api.responses.creation import SUMMARY_TOKENS


def test_the_model_server_counts_the_tokens_of_an_input(app: AppServer):
    app.set_replies(turn("H", streamed=False))
    with app.client() as client:
        counted = client.responses.input_tokens.count(
            model="mock",
            input="Hi",
            instructions="Be brief.",
            tools=[THEIRS],  # type: ignore[list-item]
        )
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 10)
    asked = app.upstream.seen[0].json
    assert asked["max_tokens"] == 1
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    names = [tool["function"]["name"] for tool in asked["tools"]]
    assert names == ["theirs", "get_weather", "list_cities"]
    assert "stream" not in asked


def test_a_conversation_that_is_kept_is_counted_with_its_hidden_rounds(app: AppServer):
    app.set_replies(turn("", tool_call(), streamed=False), turn("Cloudy.", streamed=False))
    first = ask(app)
    post(app, "input_tokens", {"model": "mock", "input": "And?", "previous_response_id": first["id"]})
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool", "assistant", "user"]


def test_counting_runs_nothing_that_waits_for_an_approval(app: AppServer):
    entry = approval_tool(app)
    app.set_replies(turn("", tool_call(), streamed=False), turn("Fine.", streamed=False))
    first = ask(app, tools=[entry])
    approval = decision(first["output"][-1])
    body = {"model": "mock", "tools": [entry], "input": [approval], "previous_response_id": first["id"]}
    assert post(app, "input_tokens", body).status_code == 200
    assert app.tools.calls == []
    ask(app, **body)
    assert len(app.tools.calls) == 1


def test_a_model_server_that_does_not_count_is_named(app: AppServer):
    app.set_replies(whole({"content": "H"}))
    error = error_of(post(app, "input_tokens", {"model": "mock", "input": "Hi"}), 502)
    assert "how many tokens" in error["message"]


@pytest.mark.parametrize("path", ["input_tokens", "compact"])
def test_a_refusal_of_the_model_server_is_relayed(app: AppServer, path: str):
    app.set_replies(json_reply({"error": {"message": "no"}}, 401))
    answer = post(app, path, {"model": "mock", "input": "Hi"})
    assert (answer.status_code, answer.json()) == (401, {"error": {"message": "no"}})


def test_a_compacted_conversation_goes_on_from_its_summary(app: AppServer):
    app.set_replies(turn("It was cloudy.", streamed=False))
    told = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Cloudy, I say."},
        {"role": "user", "content": "And Rome?"},
    ]
    with app.client() as client:
        compacted = client.responses.compact(model="mock", input=told)  # type: ignore[arg-type]
        assert compacted.object == "response.compaction"
        assert [item.type for item in compacted.output] == ["message", "message", "compaction"]
        assert compacted.usage.total_tokens == 12
        asked = app.upstream.seen[0].json
        assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "user", "user"]
        assert "tools" not in asked

        app.set_replies(turn("Fine.", streamed=False))
        back = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
        answer = client.responses.create(model="mock", input=[*back, {"role": "user", "content": "Go on."}])
    assert answer.output_text == "Fine."
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user"] * 4
    assert [message["content"] for message in messages[:2]] == ["Weather?", "And Rome?"]
    assert "It was cloudy." in messages[2]["content"]
    assert "Cloudy, I say." not in str(messages)


def test_a_stored_conversation_is_compacted_too(app: AppServer):
    app.set_replies(turn("", tool_call(), streamed=False), turn("Cloudy.", streamed=False))
    first = ask(app, instructions="Be brief.")
    app.upstream.replies = [turn("A summary.", streamed=False)]
    body = {"model": "mock", "input": "And?", "previous_response_id": first["id"]}
    compacted = post(app, "compact", body).json()
    roles = ["user", "assistant", "tool", "assistant", "user", "user"]
    assert [message["role"] for message in sent(app)] == roles
    again = ask(app, input=[*compacted["output"], {"role": "user", "content": "Go on."}])
    assert again["status"] == "completed"
    assert "A summary." in str(sent(app))


@pytest.mark.parametrize("how", ["whole", "streamed", "in the background", "over a WebSocket"])
def test_a_trigger_in_the_input_asks_for_one_compaction_and_nothing_else(app: AppServer, how: str):
    app.set_replies(turn("It was cloudy.", streamed=False))
    told: list[JSON] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Cloudy, I say."},
        {"type": "compaction_trigger"},
    ]
    body: JSON = {"input": told, "instructions": "Be brief.", "tools": [THEIRS]}
    if how == "over a WebSocket":
        with websocket(app) as connection:
            response = check_events(create(connection, **body))
    elif how == "in the background":
        begun = respond(app, body, background=True).json()
        response = check_events(events_of(get(app, begun["id"], stream="true").text))
    else:
        response = ask(app, streamed=how == "streamed", **body)
    assert (kinds(response), response["usage"]["total_tokens"]) == (["compaction"], 12)
    assert [message["role"] for message in sent(app)] == ["system", "user", "assistant", "user"]
    assert "tools" not in app.upstream.seen[-1].json
    more = {"role": "user", "content": "Go on."}
    for back in (
        {"input": [*response["output"], more]},
        {"input": [more], "previous_response_id": response["id"]},
    ):
        app.set_replies(turn("Fine.", streamed=False))
        ask(app, **back)
        assert [message["role"] for message in sent(app)] == ["user", "user"]
        assert "It was cloudy." in sent(app)[0]["content"]
        assert "Cloudy, I say." not in str(sent(app))


def test_a_summary_is_bounded(app: AppServer):
    told: JSON = {"model": "mock", "input": "Hi"}
    for more, most in (
        ({}, SUMMARY_TOKENS),
        ({"max_output_tokens": 100}, 100),
        ({"max_tokens": "x"}, SUMMARY_TOKENS),
    ):
        app.set_replies(turn("A summary.", streamed=False))
        assert post(app, "compact", {**told, **more}).status_code == 200
        assert app.upstream.seen[-1].json["max_tokens"] == most


def test_a_summary_without_an_end_is_given_up(app: AppServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(creation, "SUMMARY_SECONDS", 0.1)
    gate = Gate()
    app.set_replies(Reply([gate, *turn("A summary.", streamed=False).parts]))
    answer = post(app, "compact", {"model": "mock", "input": "Hi"})
    gate.open()
    assert "summary" in error_of(answer, 504)["message"]


def test_what_developers_said_is_kept_word_for_word(app: AppServer):
    app.set_replies(turn("A summary.", streamed=False))
    told = [{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    compacted = post(app, "compact", {"model": "mock", "input": told}).json()
    ask(app, input=[*compacted["output"], {"role": "user", "content": "Go on."}])
    assert sent(app)[0] == {"role": "system", "content": "Rhyme."}


def test_a_model_that_writes_no_summary_is_a_502(app: AppServer):
    app.set_replies(turn("", streamed=False))
    error = error_of(post(app, "compact", {"model": "mock", "input": "Hi"}), 502)
    assert "no summary" in error["message"]


@pytest.mark.parametrize("path", ["input_tokens", "compact"])
def test_asides_are_not_stored_and_cannot_be_had_later(app: AppServer, path: str):
    app.set_replies(turn("A summary.", streamed=False))
    answer = post(app, path, {"model": "mock", "input": "Hi", "background": True, "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    if path == "compact":
        error_of(get(app, answer.json()["id"]), 404)


RAW = b'{ "id":"resp_1",   "object":"response", "vendor": "\\u00e9" }\n'


@pytest.fixture(scope="module")
def passing():
    with app_server(responses="passthrough") as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/resp_1?include[]=a&stream=false"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items?limit=5"),
        ("POST", "/v1/responses/compact"),
        ("POST", "/v1/responses/input_tokens"),
    ],
)
def test_a_model_server_that_has_responses_gets_them_byte_for_byte(
    passing: AppServer, method: str, path: str
):
    headers = [(b"content-type", b"application/json; vendor=1"), (b"x-request-id", b"req-1")]
    passing.set_replies(Reply([RAW], 201, headers))
    body = b'{"model" : "mock", "input":"Hi", "tools":[{"type":"web_search"}]}' if method == "POST" else b""
    answer = httpx2.request(
        method,
        passing.url + path,
        content=body,
        headers={"authorization": "Bearer key", "x-own": "1"},
        timeout=60,
        verify=False,
    )
    assert (answer.status_code, answer.content) == (201, RAW)
    assert answer.headers["content-type"] == "application/json; vendor=1"
    assert answer.headers["x-request-id"] == "req-1"
    (seen,) = passing.upstream.seen
    assert (seen.method, seen.path, seen.body) == (method, path.partition("?")[0].encode(), body)
    assert seen.query == path.partition("?")[2].encode()
    assert (seen.header(b"authorization"), seen.header(b"x-own")) == (b"Bearer key", b"1")


def test_events_of_a_model_server_that_has_responses_pass(passing: AppServer):
    events = b'event: response.created\ndata: {"type":"response.created"}\n\n: note\n\ndata: [DONE]\n\n'
    passing.set_replies(Reply([events[:20], events[20:]]))
    answer = respond(passing, input="Hi", stream=True)
    assert answer.content == events
    assert passing.tools.calls == []
