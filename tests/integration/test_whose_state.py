"""What is kept for a client's return is for that conversation alone: no other one sees it, whatever ids it shows.

The model server numbers its calls anew in each conversation (Kimi: `functions.NAME:0`), as many others do, and nobody
has a key, or all have the same one (Open WebUI).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.answers import calls_of
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import call_stream, text_stream, tool_call, whole
from toolway.conversation.call_ids import original_id
from toolway.types import JSON

MINE: JSON = {
    "type": "function",
    "function": {"name": "mine", "parameters": {"type": "object", "properties": {}}},
}
ANSWER = {"role": "tool", "content": "x"}


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server() as server:
        yield server


def ask(app: AppServer, messages: list[JSON], stream: bool, **more: Any) -> Any:
    app.upstream.seen.clear()
    return app.post({"model": "mock", "messages": messages, "tools": [MINE], "stream": stream, **more})


def handed_out(app: AppServer, city: str, stream: bool, first: str = "Hi") -> list[JSON]:
    """Play a turn that calls a tool of each, with the same ids as every other one; the client's messages after it."""
    ours = tool_call("get_weather", json.dumps({"city": city}), "functions.get_weather:1", 1)
    calls = [tool_call("mine", "{}", "functions.mine:0", 0), ours]
    app.upstream.replies = [
        call_stream(*calls) if stream else whole({"content": None, "tool_calls": calls}, "tool_calls")
    ]
    answer = ask(app, [{"role": "user", "content": first}], stream)
    (call,) = calls_of(answer.text) if stream else answer.json()["choices"][0]["message"]["tool_calls"]
    assert original_id(call["id"]) == "functions.mine:0" != call["id"]
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [{"role": "user", "content": first}, said, {**ANSWER, "tool_call_id": call["id"]}]


def read_by_the_model(app: AppServer, messages: list[JSON], stream: bool, **more: Any) -> list[JSON]:
    app.upstream.replies = [text_stream("Done.") if stream else whole({"content": "Done."})]
    ask(app, messages, stream, **more)
    seen: list[JSON] = app.upstream.seen[-1].json["messages"]
    return seen


def cities_in(messages: list[JSON]) -> list[str]:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return [
        json.loads(call["function"]["arguments"])["city"]
        for call in calls
        if call["function"]["name"] != "mine"
    ]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer shared"}], ids=["no key", "one key"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_interleaved_conversations_with_equal_ids_and_texts(
    app: AppServer, headers: dict[str, str], stream: bool
):
    users = ["Paris", "Rome", "Oslo", "Cairo"]
    kept = {city: handed_out(app, city, stream) for city in users}
    for city in reversed(users):
        messages = read_by_the_model(app, kept[city], stream)
        assert cities_in(messages) == [city]
        ids = ["functions.mine:0", "functions.get_weather:1"]
        assert [call["id"] for call in messages[1]["tool_calls"]] == ids
        assert [message["tool_call_id"] for message in messages[2:]] == ids


def forged(identity: str) -> list[JSON]:
    call = {"id": identity, "type": "function", "function": {"name": "mine", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [{"role": "user", "content": "Hi"}, said, {**ANSWER, "tool_call_id": identity}]


@pytest.mark.parametrize("identity", ["functions.mine:0", "functions.mine:0-tw-" + "a" * 20, "-tw-", ""])
def test_a_forged_message_reads_nobodys_state(app: AppServer, identity: str):
    handed_out(app, "Paris", stream=False)
    assert cities_in(read_by_the_model(app, forged(identity), stream=False)) == []


@pytest.mark.parametrize("change", [{"name": "other"}, {"arguments": '{"more":1}'}])
def test_other_calls_under_the_same_id_get_nothing(app: AppServer, change: JSON):
    user, said, result = handed_out(app, "Paris", stream=False)
    (call,) = said["tool_calls"]
    said = {**said, "tool_calls": [{**call, "function": {**call["function"], **change}}]}
    messages = read_by_the_model(app, [user, said, result], stream=False)
    assert cities_in([messages[0], *messages[2:]]) == []
    assert len(messages) == 3


def test_later_turns_of_one_conversation_with_equal_ids_stay_apart(app: AppServer):
    messages = handed_out(app, "Paris", stream=False)
    for city in ("Rome", "Oslo"):
        messages = [*messages, *handed_out(app, city, stream=False, first=f"And {city}?")]
    read = read_by_the_model(app, messages, stream=False)
    assert cities_in(read) == ["Paris", "Rome", "Oslo"]
    assert [message["role"] for message in read] == ["user", "assistant", "tool", "tool"] * 3


def test_a_conversation_with_no_tools_of_ours_keeps_the_model_servers_ids(app: AppServer):
    app.upstream.replies = [
        whole({"content": None, "tool_calls": [tool_call("mine", "{}", "call_0")]}, "tool_calls")
    ]
    answer = ask(app, [{"role": "user", "content": "Hi"}], stream=False)
    with_none = app.post(
        {"model": "mock", "messages": [{"role": "user", "content": "Hi"}], "tools": [MINE]},
        headers={"x-toolway-tools": "none"},
    )
    (renamed,) = answer.json()["choices"][0]["message"]["tool_calls"]
    (kept,) = with_none.json()["choices"][0]["message"]["tool_calls"]
    assert original_id(renamed["id"]) == kept["id"] == "call_0"


@pytest.fixture(scope="module")
def replaying() -> Iterator[AppServer]:
    with app_server(replay=True) as server:
        yield server


KEY = {"authorization": "Bearer shared"}


def answered(app: AppServer, city: str | None, history: list[JSON], headers: dict[str, str]) -> list[JSON]:
    """The conversation after an answer that says no more than OK, with a call behind it if a city is given."""
    calls = [tool_call("get_weather", json.dumps({"city": city}), "call_0")] if city else []
    rounds = [whole({"content": None, "tool_calls": calls}, "tool_calls")] if calls else []
    app.set_replies(*rounds, whole({"content": "OK"}))
    answer = app.post({"model": "mock", "messages": history}, headers=headers)
    return [*history, {"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]}]


def read_on(app: AppServer, history: list[JSON], headers: dict[str, str]) -> list[str]:
    app.set_replies(whole({"content": "Done."}))
    app.post({"model": "mock", "messages": [*history, {"role": "user", "content": "?"}]}, headers=headers)
    return cities_in(app.upstream.seen[-1].json["messages"])


@pytest.mark.parametrize("headers", [{}, KEY], ids=["no key", "one key"])
@pytest.mark.parametrize("other", ["Rome", None], ids=["two with calls", "one without"])
def test_equal_answers_to_equal_questions_get_nobodys_rounds(
    replaying: AppServer, headers: dict[str, str], other: str | None
):
    history = [{"role": "user", "content": f"Tell me. {other} {len(headers)}"}]
    first, second = (answered(replaying, city, history, headers) for city in ("Paris", other))
    assert first == second
    assert read_on(replaying, first, headers) == []


def test_the_same_rounds_again_are_no_other_ones(replaying: AppServer):
    history = [{"role": "user", "content": "The same, please."}]
    for _ in range(2):
        after = answered(replaying, "Paris", history, KEY)
    assert read_on(replaying, after, KEY) == ["Paris"]


@pytest.mark.parametrize(("headers", "found"), [(KEY, ["Oslo"]), ({}, [])], ids=["with a key", "without"])
def test_an_earlier_message_may_change_for_those_with_a_key(
    replaying: AppServer, headers: dict[str, str], found: list[str]
):
    def history(listing: str) -> list[JSON]:
        question = {"role": "user", "content": f"And Oslo? {len(headers)}"}
        return [{"role": "user", "content": listing}, {"role": "assistant", "content": "Fine."}, question]

    after = answered(replaying, "Oslo", history("one file"), headers)
    assert read_on(replaying, [*history("two files"), after[-1]], headers) == found
