"""OpenAI's tool search over the client's own functions: searched here, or by the client."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.integration.responses.requests import BOTH, QUESTION, ask, respond, turn
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import tool_call
from toolway.types import JSON


def function(name: str, description: str, **more: Any) -> JSON:
    parameters = {"type": "object", "properties": {"id": {"type": "string"}}}
    return {"type": "function", "name": name, "description": description, "parameters": parameters, **more}


PLAIN = function("answer_phone", "Answers the phone.")
ORDERS = function("list_open_orders", "Lists the orders of a customer that are open.", defer_loading=True)
CANCEL = function("cancel_order", "Cancels an order.", defer_loading=True)
ROUTE = function("plan_route", "Plans the way of a van.", defer_loading=True)
HOSTED = {"type": "tool_search"}
TOOLS = [ORDERS, PLAIN, ROUTE, HOSTED]


def names(body: JSON) -> list[str]:
    """The tools that the model sees, without those of the service that always stands behind Toolway."""
    found = [tool["function"]["name"] for tool in body.get("tools", ())]
    return [name for name in found if name not in ("get_weather", "list_cities")]


def search(query: str, id: str = "call_s") -> JSON:
    return tool_call("tool_search", json.dumps({"query": query}), id=id)


def kinds(response: JSON) -> list[str]:
    return [item["type"] for item in response["output"]]


def sent(app: AppServer) -> list[JSON]:
    return [seen.json for seen in app.upstream.seen]


def starts_with(later: JSON, earlier: JSON) -> bool:
    messages = earlier["messages"]
    return [m["content"] for m in later["messages"][: len(messages)]] == [m["content"] for m in messages]


@BOTH
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "sent back"])
def test_a_deferred_function_is_seen_when_it_was_found_and_stays(streamed: bool, stored: bool):
    call = tool_call("list_open_orders", '{"id": "7"}', id="call_f")
    replies = [
        turn("", search("open orders"), streamed=streamed),
        turn("", call, streamed=streamed),
        turn("Two.", streamed=streamed),
        turn("You are welcome.", streamed=streamed),
    ]
    with app_server(*replies) as app:
        first = ask(app, streamed=streamed, tools=TOOLS)
        assert kinds(first) == ["tool_search_call", "tool_search_output", "function_call"]
        began, found, called = first["output"]
        assert (began["execution"], began["call_id"], began["arguments"]) == (
            "server",
            None,
            {"query": "open orders"},
        )
        assert [tool["name"] for tool in found["tools"]] == ["list_open_orders"]
        assert found["tools"][0]["defer_loading"] is True
        output = {"type": "function_call_output", "call_id": called["call_id"], "output": "2 orders"}
        given: list[JSON] = [{"role": "user", "content": QUESTION}, *first["output"], output]
        body: JSON = {"previous_response_id": first["id"]} if stored else {}
        second = ask(app, streamed=streamed, tools=TOOLS, input=[output] if stored else given, **body)
        assert second["output"][-1]["content"][0]["text"] == "Two."
        thanks = {"role": "user", "content": "Thanks"}
        body = {"previous_response_id": second["id"]} if stored else {}
        given = [thanks] if stored else [*given, *second["output"], thanks]
        ask(app, streamed=streamed, tools=TOOLS, input=given, **body)
        bodies = sent(app)
    assert names(bodies[0]) == ["answer_phone", "tool_search"]
    assert [set(names(body)) for body in bodies[1:]] == 3 * [
        {"answer_phone", "list_open_orders", "tool_search"}
    ]
    assert all(starts_with(later, earlier) for earlier, later in pairwise(bodies))
    assert len({json.dumps(body["tools"]) for body in bodies[1:]}) == 1, "the list stays as it is"


@BOTH
def test_a_client_that_searches_itself_gets_the_call_and_tells_what_it_found(streamed: bool):
    own = {
        "type": "tool_search",
        "execution": "client",
        "description": "Finds tools of the shop.",
        "parameters": {"type": "object", "properties": {"goal": {"type": "string"}}, "required": ["goal"]},
    }
    replies = [
        turn("", tool_call("tool_search", '{"goal": "orders"}', id="call_s"), streamed=streamed),
        turn("", tool_call("list_open_orders", '{"id": "7"}', id="call_f"), streamed=streamed),
        turn("Two.", streamed=streamed),
    ]
    with app_server(*replies) as app:
        first = ask(app, streamed=streamed, tools=[PLAIN, own])
        (call,) = first["output"]
        assert (call["type"], call["execution"], call["arguments"]) == (
            "tool_search_call",
            "client",
            {"goal": "orders"},
        )
        output = {
            "type": "tool_search_output",
            "call_id": call["call_id"],
            "execution": "client",
            "tools": [ORDERS],
        }
        second = ask(
            app, streamed=streamed, tools=[PLAIN, own], input=[output], previous_response_id=first["id"]
        )
        (found,) = second["output"]
        assert (found["type"], found["name"]) == ("function_call", "list_open_orders")
        result = {"type": "function_call_output", "call_id": found["call_id"], "output": "2 orders"}
        third = ask(
            app, streamed=streamed, tools=[PLAIN, own], input=[result], previous_response_id=second["id"]
        )
        assert third["output"][-1]["content"][0]["text"] == "Two."
        bodies = sent(app)
    assert names(bodies[0]) == ["answer_phone", "tool_search"]
    assert bodies[0]["tools"][1]["function"]["description"] == "Finds tools of the shop."
    assert all("list_open_orders" in names(body) for body in bodies[1:]), "what was found stays"
    assert '"name":"list_open_orders"' in bodies[1]["messages"][-1]["content"]


def test_functions_of_a_namespace_are_found_under_it():
    space = {
        "type": "namespace",
        "name": "crm",
        "description": "Customers.",
        "tools": [ORDERS, CANCEL, PLAIN],
    }
    replies = [
        turn("", search("cancel an order"), streamed=False),
        turn("", tool_call("crm__cancel_order", "{}", id="call_f"), streamed=False),
    ]
    with app_server(*replies) as app:
        response = ask(app, tools=[space, HOSTED])
        assert names(sent(app)[0]) == ["crm__answer_phone", "tool_search"]
    found, called = response["output"][1:]
    assert found["tools"][0]["type"] == "namespace"
    assert "cancel_order" in [tool["name"] for tool in found["tools"][0]["tools"]]
    assert (called["namespace"], called["name"]) == ("crm", "cancel_order")


def test_without_a_search_nothing_is_deferred():
    with app_server(turn("Yes.", streamed=False)) as app:
        ask(app, tools=[ORDERS, PLAIN])
        assert names(sent(app)[0]) == ["list_open_orders", "answer_phone"]


def test_a_function_that_was_not_looked_up_is_the_client_s_all_the_same():
    with app_server(turn("", tool_call("plan_route", '{"id": "1"}', id="call_r"), streamed=False)) as app:
        (call,) = ask(app, tools=TOOLS)["output"]
    assert (call["type"], call["name"]) == ("function_call", "plan_route")


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "plan_route"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "answer_phone"}]},
        "none",
    ],
    ids=["named", "allowed", "none"],
)
def test_a_choice_of_tools_holds_for_what_is_searched(choice: Any):
    replies = [turn("", search("route"), streamed=False), turn("No.", streamed=False)]
    with app_server(*(replies if isinstance(choice, dict) and "tools" in choice else replies[1:])) as app:
        ask(app, tools=TOOLS, tool_choice=choice)
        bodies = sent(app)
    shown = [set(names(body)) - {"tool_search"} for body in bodies]
    if choice == "none":
        assert shown == [{"answer_phone"}]
    elif "tools" in choice:
        assert shown == 2 * [{"answer_phone"}], "what may not be called is not found"
    else:
        assert shown == [{"answer_phone", "plan_route"}]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "tool_search_output", "call_id": "nobody", "tools": []},
        {"type": "tool_search_output", "tools": "all"},
        {"type": "tool_search_call", "arguments": 7},
        {"type": "tool_search_call", "call_id": "twice", "arguments": {}},
    ],
)
def test_items_of_a_search_that_make_no_sense_are_told_or_passed_over(item: JSON):
    with app_server(turn("Yes.", streamed=False)) as app:
        answer = respond(app, {"tools": TOOLS, "input": [{"role": "user", "content": "Hello"}, item]})
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_each_of_two_searches_that_finds_nothing_names_the_other():
    ours = tool_call("search_tools", '{"query": "quantum"}', id="call_o")
    turns = [
        turn(text, *calls, streamed=False) for text, *calls in (("", ours), ("", search("quantum")), ("No.",))
    ]
    with app_server(*turns, tool_search="on") as app:
        ask(app, streamed=False, tools=TOOLS)
        told = [m["content"] for m in sent(app)[-1]["messages"] if m["role"] == "tool"]
        assert told[0].endswith(" Some are found by tool_search alone.")
        assert told[1].endswith(" Some are found by search_tools alone.")
