"""Functions of a chat client with `defer_loading`: the model finds them by a search, and the client runs them."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.support.app_server import AppServer, app_server
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole

JSON = dict[str, Any]


def function(name: str, description: str, **more: Any) -> JSON:
    parameters = {"type": "object", "properties": {"id": {"type": "string"}}}
    inner = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": inner, **more}


PLAIN = function("answer_phone", "Answers the phone.")
ORDERS = function("list_open_orders", "Lists the orders of a customer that are open.", defer_loading=True)
CANCEL = function("cancel_order", "Cancels an order.", defer_loading=True)
ROUTE = function("plan_route", "Plans the way of a van.", defer_loading=True)
TOOLS = [ORDERS, PLAIN, ROUTE, {"type": "tool_search"}]
SERVED = ["get_weather", "list_cities"]


def names(body: JSON) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools", ())]


def offers(app: AppServer) -> list[list[str]]:
    return [names(seen.json) for seen in app.upstream.seen]


def search(query: str) -> JSON:
    return tool_call("tool_search", json.dumps({"query": query}), id="call_s")


def ask(app: AppServer, messages: list[JSON], key: str = "k", **more: Any) -> httpx2.Response:
    body = {"model": "mock", "messages": messages, "tools": TOOLS, **more}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{app.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


def said(text: str) -> JSON:
    return {"role": "user", "content": text}


QUESTION = said("What is open?")
FOUND = ["answer_phone", "list_open_orders"]


def turn(*calls: JSON, text: str = "") -> Reply:
    return whole({"content": text, "tool_calls": list(calls)}, finish="tool_calls" if calls else "stop")


def test_a_function_is_seen_when_it_was_found_and_its_call_goes_to_the_client():
    call = tool_call("list_open_orders", '{"id": "7"}', id="call_f")
    with app_server(turn(search("open orders")), turn(call), turn(text="Two."), turn(text="Bye.")) as app:
        answer = ask(app, [QUESTION]).json()["choices"][0]
        assert answer["finish_reason"] == "tool_calls"
        (given,) = answer["message"]["tool_calls"]
        assert given["function"] == {"name": "list_open_orders", "arguments": '{"id": "7"}'}
        result = {"role": "tool", "tool_call_id": given["id"], "content": "17, 18"}
        told = [QUESTION, answer["message"], result]
        last = ask(app, told).json()["choices"][0]["message"]
        ask(app, [*told, last, said("Thanks")])
        first, *later = offers(app)
        shown, _, sent, _ = (seen.json for seen in app.upstream.seen)
    assert first == ["answer_phone", *SERVED, "tool_search"]
    assert later == [[*FOUND, *SERVED, "tool_search"]] * 3
    assert "defer_loading" not in json.dumps(shown)
    contents = [message["content"] for message in sent["messages"] if message["role"] == "tool"]
    assert '"name":"list_open_orders"' in contents[0], "what was found stands before the call"
    assert contents[1] == "17, 18"


def test_the_search_is_hidden_from_a_client_that_streams():
    call = tool_call("cancel_order", '{"id": "7"}', id="call_f")
    with app_server(call_stream(search("cancel")), call_stream(call)) as app:
        answer = ask(app, [QUESTION], stream=True, tools=[CANCEL])
        assert "tool_search" not in answer.text
        assert "cancel_order" in answer.text


def test_a_function_that_was_not_looked_up_is_the_client_s_all_the_same():
    with app_server(turn(tool_call("plan_route", "{}"))) as app:
        message = ask(app, [QUESTION]).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "plan_route"


def test_a_deferred_function_has_its_name_before_a_tool_of_ours():
    theirs = function("get_weather", "Looks out of the window.", defer_loading=True)
    with app_server(turn(tool_call("get_weather", '{"city": "Rome"}'))) as app:
        message = ask(app, [QUESTION], tools=[theirs]).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "get_weather"
        assert app.tools.calls == []
        assert offers(app) == [["list_cities", "tool_search"]]


def test_what_one_caller_found_is_hidden_from_another():
    with app_server(turn(search("open orders")), turn(text="A."), turn(text="B."), turn(text="C.")) as app:
        first = ask(app, [QUESTION], key="one").json()["choices"][0]["message"]
        for key in ("one", "two"):
            ask(app, [QUESTION, first, said("And now?")], key=key)
        assert offers(app)[2:] == [[*FOUND, *SERVED, "tool_search"], ["answer_phone", *SERVED, "tool_search"]]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ("none", ["answer_phone"]),
        ("auto", ["answer_phone", *SERVED, "tool_search"]),
        (
            {"type": "function", "function": {"name": "plan_route"}},
            ["answer_phone", "plan_route", *SERVED, "tool_search"],
        ),
    ],
)
def test_a_choice_of_tools_holds_for_what_is_deferred(choice: Any, offered: list[str]):
    with app_server(turn(text="Yes.")) as app:
        ask(app, [QUESTION], tool_choice=choice)
        assert offers(app) == [offered]


def test_the_mark_may_stand_in_the_function():
    marked = {"type": "function", "function": {**ROUTE["function"], "defer_loading": True}}
    with app_server(text_stream("Yes.")) as app:
        ask(app, [QUESTION], tools=[marked], stream=True)
        assert offers(app) == [[*SERVED, "tool_search"]]


def test_without_a_deferred_function_tools_go_to_the_model_server_as_they_came():
    tools = [{**PLAIN, "defer_loading": False}, {"type": "web_search"}]
    with app_server(turn(text="Yes.")) as app:
        ask(app, [QUESTION], tools=tools)
        assert app.upstream.seen[0].json["tools"][:2] == tools


def through(name: str) -> JSON:
    return tool_call("call_tool", json.dumps({"name": name, "arguments": {}}), id="call_t")


def results(app: AppServer) -> list[str]:
    return [m["content"] for m in app.upstream.seen[-1].json["messages"] if m["role"] == "tool"]


META = ["search_tools", "call_tool"]


@pytest.mark.parametrize("way", ["append", "call"])
def test_one_search_finds_deferred_functions_and_tools_of_ours_that_are_searched(way: str):
    find = tool_call("search_tools", '{"query": "open orders"}', id="call_s")
    call = tool_call("list_open_orders", '{"id": "7"}', id="call_f")
    with app_server(turn(find), turn(call), tool_search="on", tool_search_way=way) as app:
        message = ask(app, [QUESTION]).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "list_open_orders"
        assert offers(app) == [["answer_phone", *META], [*FOUND, *META]]
        (found,) = results(app)
        assert found.startswith("Found, and called by name, not with call_tool:")
        assert '"name":"list_open_orders"' in found


def test_one_search_shows_what_it_finds_on_both_sides():
    sky = function("describe_weather", "Describes the weather of a city.", defer_loading=True)
    find = tool_call("search_tools", '{"query": "weather of a city"}', id="call_s")
    with app_server(turn(find), turn(text="Yes."), tool_search="on") as app:
        ask(app, [QUESTION], tools=[sky])
        (found,) = results(app)
        ours, _, theirs = found.partition("Found, and called by name, not with call_tool:")
        assert '"name":"get_weather"' in ours
        assert '"name":"describe_weather"' in theirs
        assert offers(app)[1][0] == "describe_weather"


def test_a_deferred_function_that_is_called_through_call_tool_is_shown_to_be_called_by_name():
    call = tool_call("plan_route", "{}", id="call_f")
    with app_server(turn(through("plan_route")), turn(call), tool_search="on") as app:
        message = ask(app, [QUESTION]).json()["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["name"] == "plan_route"
        (told,) = results(app)
        assert "call it directly" in told
        assert '"name":"plan_route"' in told
        assert "plan_route" in offers(app)[1]


def test_a_search_of_neither_side_says_so():
    find = tool_call("search_tools", '{"query": "quantum"}', id="call_s")
    with app_server(turn(find), turn(text="No."), tool_search="on") as app:
        ask(app, [QUESTION])
        assert results(app) == [
            "No tool fits 'quantum'. Try other words for what it does, or go on without it."
        ]


def test_deferred_functions_are_found_when_the_search_of_ours_begins_after_a_refusal():
    refusal = json_reply({"error": {"message": "Invalid 'tools': array too long. Maximum length 3."}}, 400)
    find = tool_call("search_tools", '{"query": "open orders"}', id="call_s")
    with app_server(refusal, turn(find), turn(text="Yes.")) as app:
        ask(app, [QUESTION])
        first, second, third = offers(app)
        assert first == ["answer_phone", *SERVED, "tool_search"]
        assert second == ["answer_phone", *META]
        assert "list_open_orders" in third
