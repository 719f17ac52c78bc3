"""Tools of Toolway, declared by the client or not; which may be called, how often; turns with calls of both sides."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    THEIRS,
    ask,
    error_of,
    events_of,
    items_of,
    kinds,
    label,
    respond,
    sent,
    server,
    text_of,
    turn,
    types,
)
from tests.support.app_server import AppServer, app_server
from tests.support.servers import free_port
from tests.support.tools import Raw, ToolService
from tests.support.upstream import json_reply, tool_call
from toolway.conversation.call_ids import original_id
from toolway.types import JSON

PROFILES = '{"towns": ["list_*"]}'
PARIS = {"city": "Paris", "sky": "cloudy"}
OURS = tool_call(id="ours")
ROME = tool_call(arguments='{"city":"Rome"}', id="rome", index=1)
MIXED = [OURS, tool_call("theirs", '{"a":1}', "c", 1)]
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}


async def broken(_: Any) -> Raw:
    return Raw(b'{"detail": "no such city"}', status=500)


@pytest.fixture(scope="module")
def app():
    with app_server(tools=ToolService(broken=broken), profiles=PROFILES) as server:
        server.upstream.models = json_reply({"data": []})
        yield server


def offered(app: AppServer, number: int = 0) -> list[str]:
    return [tool["function"]["name"] for tool in app.upstream.seen[number].json.get("tools", ())]


@BOTH
def test_tools_that_nobody_declared_run_unseen(app: AppServer, streamed: bool):
    app.set_replies(turn("", OURS, streamed=streamed), turn("It is cloudy.", streamed=streamed))
    answer = respond(app, input=QUESTION, stream=streamed)
    response = events_of(answer.text)[-1]["response"] if streamed else answer.json()
    assert kinds(response) == ["message"]
    assert (text_of(response), response["tools"]) == ("It is cloudy.", [])
    assert not any(word in answer.text for word in ("get_weather", "mcp", "function_call", "ours"))
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (10, 4)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool"]


@BOTH
def test_text_before_a_hidden_call_is_kept(app: AppServer, streamed: bool):
    app.set_replies(turn("Let me look.", OURS, streamed=streamed), turn("Cloudy.", streamed=streamed))
    response = ask(app, streamed=streamed)
    assert kinds(response) == ["message", "message"]
    assert text_of(response) == "Let me look.Cloudy."


@BOTH
def test_a_declared_server_shows_its_tools_and_its_calls(app: AppServer, streamed: bool):
    app.set_replies(turn("Wait.", OURS, streamed=streamed), turn("Cloudy.", streamed=streamed))
    response = ask(app, streamed=streamed, tools=[server(app, headers={"x": "secret"})])
    assert kinds(response) == ["mcp_list_tools", "message", "mcp_call", "message"]
    listed, _, call, _ = response["output"]
    assert listed["server_label"] == label(app)
    assert [tool["name"] for tool in listed["tools"]] == ["broken", "get_weather", "list_cities"]
    assert listed["tools"][1]["input_schema"]["required"] == ["city"]
    assert (call["name"], call["server_label"], call["arguments"]) == (
        "get_weather",
        label(app),
        '{"city":"Paris"}',
    )
    assert (call["status"], call["error"], call["approval_request_id"]) == ("completed", None, None)
    assert call["output"] == '{"city":"Paris","sky":"cloudy"}'
    assert "secret" not in str(response)
    assert "headers" not in response["tools"][0]


def test_the_events_of_a_declared_servers_call(app: AppServer):
    app.set_replies(turn("", OURS, streamed=True), turn("Cloudy.", streamed=True))
    answer = respond(app, input=QUESTION, stream=True, tools=[server(app)])
    told = types(events_of(answer.text))
    assert told[:14] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.completed",
        "response.output_item.done",
        "response.output_item.added",
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.completed",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
    ]


def test_the_official_client_reads_declared_calls(app: AppServer):
    app.set_replies(turn("", OURS, streamed=False), turn("Cloudy.", streamed=False))
    with app.client() as client:
        response = client.responses.create(model="mock", input="Hi", tools=[server(app)])  # type: ignore[list-item]
    assert [item.type for item in response.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert response.tools[0].type == "mcp"


@BOTH
def test_a_tool_that_fails_is_a_failed_call(app: AppServer, streamed: bool):
    app.set_replies(turn("", tool_call("broken"), streamed=streamed), turn("Sorry.", streamed=streamed))
    response = ask(app, streamed=streamed, tools=[server(app)])
    (call,) = items_of(response, "mcp_call")
    assert (call["status"], call["output"]) == ("failed", None)
    assert call["error"]["type"] == "mcp_tool_execution_error"
    assert "no such city" in call["error"]["content"][0]["text"]
    assert text_of(response) == "Sorry."
    assert sent(app)[-1]["content"].startswith("Error: ")


@BOTH
def test_calls_at_once_are_items_in_their_order(app: AppServer, streamed: bool):
    app.set_replies(turn("", OURS, ROME, streamed=streamed), turn("Both.", streamed=streamed))
    response = ask(app, streamed=streamed, tools=[server(app)])
    calls = items_of(response, "mcp_call")
    assert ["Paris" in call["output"] for call in calls] == [True, False]
    assert ["Rome" in call["output"] for call in calls] == [False, True]


def test_a_declaration_can_name_tools(app: AppServer):
    for wanted in (["list_cities"], {"tool_names": ["list_cities"]}):
        app.set_replies(turn("Hi", streamed=False))
        response = ask(app, tools=[server(app, allowed_tools=wanted)])
        assert offered(app) == ["list_cities"]
        assert [tool["name"] for tool in response["output"][0]["tools"]] == ["list_cities"]


def test_tools_are_listed_once_in_a_conversation(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    first = ask(app, tools=[server(app)])
    again = ask(app, tools=[server(app)], previous_response_id=first["id"])
    assert kinds(again) == ["message"]
    items = [{"role": "user", "content": "Hi"}, *first["output"], {"role": "user", "content": "And?"}]
    assert kinds(ask(app, tools=[server(app)], input=items)) == ["message"]


def test_a_list_shows_all_tools_whatever_the_choice_is(app: AppServer):
    """A list is told once in a conversation; the choice holds for one response."""
    for choice in ("none", {"type": "mcp", "server_label": label(app), "name": "list_cities"}):
        app.set_replies(turn("Hi", streamed=False))
        response = ask(app, tools=[server(app)], tool_choice=choice)
        listed = [tool["name"] for tool in response["output"][0]["tools"]]
        assert listed == ["broken", "get_weather", "list_cities"]


def test_a_server_that_is_down_says_why_it_has_no_tools():
    with app_server(turn("Hi", streamed=False), endpoints=f"gone=http://127.0.0.1:{free_port()}") as app:
        response = ask(app, tools=[server(app)])
        (listed,) = items_of(response, "mcp_list_tools")
        assert listed["tools"] == []
        assert listed["error"] == "The server is not there: failed."
        app.set_replies(turn("Hi", streamed=True))
        told = types(events_of(respond(app, input="Hi", stream=True, tools=[server(app)]).text))
        assert "response.mcp_list_tools.failed" in told
        # What failed is tried again.
        again = ask(app, tools=[server(app)], previous_response_id=response["id"], streamed=True)
        assert items_of(again, "mcp_list_tools")


def test_what_only_openai_runs_is_left_out(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    response = ask(app, tools=[{"type": "web_search"}, THEIRS], tool_choice="auto")
    assert "web_search" not in str(app.upstream.seen[0].json)
    assert [tool["type"] for tool in response["tools"]] == ["function"]


CHOICES: dict[str, tuple[Any, Any, list[str]]] = {
    "none": ("none", "none", ["theirs"]),
    "required": ("required", "required", ["theirs", "broken", "get_weather", "list_cities"]),
    "a function": (
        {"type": "function", "name": "theirs"},
        {"type": "function", "function": {"name": "theirs"}},
        ["theirs", "broken", "get_weather", "list_cities"],
    ),
    "a server": (
        {"type": "mcp", "server_label": "{label}"},
        "required",
        ["broken", "get_weather", "list_cities"],
    ),
    "a tool of a server": (
        {"type": "mcp", "server_label": "{label}", "name": "get_weather"},
        {"type": "function", "function": {"name": "get_weather"}},
        ["theirs", "broken", "get_weather", "list_cities"],
    ),
    "some": (
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [
                {"type": "function", "name": "theirs"},
                {"type": "mcp", "server_label": "{label}", "name": "list_cities"},
            ],
        },
        "required",
        ["theirs", "list_cities"],
    ),
    "some of ours": (
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "{label}"}]},
        "auto",
        ["broken", "get_weather", "list_cities"],
    ),
    "none at all": ({"type": "allowed_tools", "mode": "auto", "tools": []}, None, []),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_tools(app: AppServer, name: str):
    choice, asked, names = CHOICES[name]
    if isinstance(choice, dict):
        choice = (
            {**choice, "tools": [_labelled(tool, app) for tool in choice["tools"]]}
            if "tools" in choice
            else _labelled(choice, app)
        )
    app.set_replies(turn("Hi", streamed=False))
    response = ask(app, tools=[THEIRS, server(app)], tool_choice=choice)
    assert app.upstream.seen[0].json.get("tool_choice") == asked
    assert offered(app) == names
    assert response["tool_choice"] == choice


def _labelled(tool: dict[str, Any], app: AppServer) -> dict[str, Any]:
    return {**tool, "server_label": label(app)} if "server_label" in tool else tool


def test_a_forced_choice_holds_for_the_first_round(app: AppServer):
    app.set_replies(turn("", OURS, streamed=False), turn("Cloudy.", streamed=False))
    ask(app, tool_choice="required")
    assert [seen.json["tool_choice"] for seen in app.upstream.seen] == ["required", "auto"]


@BOTH
def test_no_more_calls_than_max_tool_calls(app: AppServer, streamed: bool):
    app.set_replies(turn("", OURS, ROME, streamed=streamed), turn("So far.", streamed=streamed))
    response = ask(app, streamed=streamed, tools=[server(app)], max_tool_calls=1)
    assert len(app.tools.calls) == 1
    assert text_of(response) == "So far."
    assert "limit of 1 tool calls" in sent(app)[-1]["content"]
    assert response["max_tool_calls"] == 1


def test_headers_and_profiles_choose_tools_here_too(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    ask(app, headers={"X-Toolway-Tools": "get_*"})
    assert offered(app) == ["get_weather"]
    app.set_replies(turn("Hi", streamed=False))
    response = ask(app, model="mock@towns", tools=[server(app)])
    assert (app.upstream.seen[0].json["model"], offered(app)) == ("mock", ["list_cities"])
    assert [tool["name"] for tool in response["output"][0]["tools"]] == ["list_cities"]
    answer = respond(app, input="Hi", headers={"X-Toolway-Max-Calls": "many"})
    assert "x-toolway-max-calls" in error_of(answer, 400)["message"]


def output_of(response: JSON) -> JSON:
    """The output of the only call that a response hands to the client."""
    (call,) = items_of(response, "function_call")
    return {**OUTPUT, "call_id": call["call_id"]}


@BOTH
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "unseen"])
def test_a_turn_of_both_sides_goes_on_by_its_id(app: AppServer, streamed: bool, declared: bool):
    tools = [THEIRS, server(app)] if declared else [THEIRS]
    app.set_replies(turn("Both.", *MIXED, streamed=streamed), turn("Fine.", streamed=streamed))
    first = ask(app, streamed=streamed, tools=tools)
    shown = (
        ["mcp_list_tools", "message", "function_call", "mcp_call"]
        if declared
        else ["message", "function_call"]
    )
    assert sorted(kinds(first)) == sorted(shown)
    assert original_id(items_of(first, "function_call")[0]["call_id"]) == "c"
    assert len(app.tools.calls) == 1

    second = ask(
        app, streamed=streamed, tools=tools, input=[output_of(first)], previous_response_id=first["id"]
    )
    assert text_of(second) == "Fine."
    assert kinds(second) == ["message"]
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["content"] == "Both."
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["ours", "c"]
    assert [message["tool_call_id"] for message in messages[2:]] == ["ours", "c"]
    assert "cloudy" in messages[2]["content"]


@BOTH
def test_a_turn_of_both_sides_goes_on_without_state(app: AppServer, streamed: bool):
    app.set_replies(turn("Both.", *MIXED, streamed=streamed), turn("Fine.", streamed=streamed))
    first = ask(app, streamed=streamed, tools=[THEIRS], store=False)
    back = [{"role": "user", "content": QUESTION}, *first["output"], output_of(first)]
    ask(app, streamed=streamed, tools=[THEIRS], store=False, input=back)
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["ours", "c"]
    assert "cloudy" in messages[2]["content"]


@BOTH
def test_a_declared_turn_of_both_sides_goes_on_without_state(app: AppServer, streamed: bool):
    """The client sends our call back too; the model must not read of it twice."""
    tools = [THEIRS, server(app)]
    app.set_replies(turn("Both.", *MIXED, streamed=streamed), turn("Fine.", streamed=streamed))
    first = ask(app, streamed=streamed, tools=tools, store=False)
    back = [{"role": "user", "content": QUESTION}, *first["output"], output_of(first)]
    ask(app, streamed=streamed, tools=tools, store=False, input=back)
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    names = [call["function"]["name"] for call in messages[1]["tool_calls"]]
    assert sorted(names) == ["get_weather", "theirs"]
    calls = [call["id"] for call in messages[1]["tool_calls"]]
    assert [message["tool_call_id"] for message in messages[2:]] == calls
    assert len(app.tools.calls) == 1


@BOTH
def test_rounds_without_a_word_between_them_stay_rounds_without_state(app: AppServer, streamed: bool):
    first_round, second_round = turn("", OURS, ROME, streamed=streamed), turn("", OURS, streamed=streamed)
    app.set_replies(first_round, second_round, turn("Cloudy.", streamed=streamed))
    options: JSON = {"streamed": streamed, "store": False, "tools": [server(app)]}
    first = ask(app, **options)
    assert kinds(first) == ["mcp_list_tools", *["mcp_call"] * 3, "message"]
    had = sent(app)
    back = [{"role": "user", "content": QUESTION}, *first["output"], {"role": "user", "content": "And?"}]
    ask(app, input=back, **options)
    assert [message["role"] for message in had] == [
        "user",
        *["assistant", "tool", "tool"],
        "assistant",
        "tool",
    ]
    assert shape(sent(app)[: len(had)]) == shape(had)


def shape(messages: list[JSON]) -> list[Any]:
    """Who said what, and how many calls were made at once."""
    return [(one["role"], one["content"], len(one.get("tool_calls", ()))) for one in messages]


@BOTH
def test_the_clients_call_after_rounds_of_ours_goes_on(app: AppServer, streamed: bool):
    theirs = tool_call("theirs", "{}", "c")
    app.set_replies(
        turn("", OURS, streamed=streamed),
        turn("", theirs, streamed=streamed),
        turn("Fine.", streamed=streamed),
    )
    first = ask(app, streamed=streamed, tools=[THEIRS])
    assert kinds(first) == ["function_call"]
    ask(app, streamed=streamed, tools=[THEIRS], input=[output_of(first)], previous_response_id=first["id"])
    stateful = sent(app)
    assert [message["role"] for message in stateful] == ["user", "assistant", "tool", "assistant", "tool"]

    app.set_replies(
        turn("", OURS, streamed=streamed),
        turn("", theirs, streamed=streamed),
        turn("Fine.", streamed=streamed),
    )
    first = ask(app, streamed=streamed, tools=[THEIRS], store=False)
    back = [{"role": "user", "content": QUESTION}, *first["output"], output_of(first)]
    ask(app, streamed=streamed, tools=[THEIRS], store=False, input=back)
    assert sent(app) == stateful


MAILS: JSON = {"type": "namespace", "name": "mail", "description": "Mails", "tools": [THEIRS]}
CALENDARS: JSON = {"type": "namespace", "name": "calendar", "tools": [THEIRS, {"type": "web_search"}]}


@BOTH
@pytest.mark.parametrize("by_id", [True, False], ids=["stored", "sent back"])
def test_tools_in_namespaces_stay_the_clients(app: AppServer, streamed: bool, by_id: bool):
    calls = [tool_call("calendar__theirs", "{}", "c"), tool_call("mail__theirs", "{}", "m", 1)]
    app.set_replies(
        turn("", *calls, OURS | {"index": 2}, streamed=streamed), turn("Both done.", streamed=streamed)
    )
    tools = [MAILS, CALENDARS]
    first = ask(app, streamed=streamed, tools=tools)
    assert {"mail__theirs", "calendar__theirs"} < set(offered(app))
    made = items_of(first, "function_call")
    assert [(item["namespace"], item["name"]) for item in made] == [
        ("calendar", "theirs"),
        ("mail", "theirs"),
    ]
    outputs = [{**OUTPUT, "call_id": item["call_id"]} for item in made]
    back: JSON = {"input": outputs, "previous_response_id": first["id"]}
    if not by_id:
        back = {"input": [{"role": "user", "content": QUESTION}, *first["output"], *outputs]}
    last = ask(app, streamed=streamed, tools=tools, **back)
    assert text_of(last) == "Both done."
    (message,) = [message for message in sent(app) if message["role"] == "assistant"]
    asked = [call["function"]["name"] for call in message["tool_calls"]]
    assert asked == ["calendar__theirs", "mail__theirs", "get_weather"]


def test_a_tool_that_an_item_of_the_input_adds_is_the_clients(app: AppServer):
    app.set_replies(turn("", tool_call("theirs", "{}", "c"), streamed=False))
    added = {"type": "additional_tools", "role": "developer", "tools": [THEIRS]}
    response = ask(app, input=[added, {"role": "user", "content": QUESTION}])
    assert kinds(response) == ["function_call"]
