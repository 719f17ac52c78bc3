"""What is kept of a response: to go on from, to be read again, deleted, and for whom."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import openai
import pytest

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    THEIRS,
    ask,
    delete,
    error_of,
    get,
    items_of,
    respond,
    sent,
    text_of,
    turn,
)
from tests.support.app_server import AppServer, app_server, serving
from tests.support.balancer import balancing
from tests.support.gate import DEADLINE
from tests.support.tools import ToolService
from tests.support.upstream import json_reply, tool_call

OURS = tool_call(id="ours")
CALL = tool_call("theirs", "{}", "c", 1)
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}


@BOTH
def test_the_model_sees_exactly_what_it_saw_before(app: AppServer, streamed: bool):
    app.set_replies(
        turn("Let me look.", OURS, reasoning="Hmm.", streamed=streamed),
        turn("", OURS, CALL, streamed=streamed),
        turn("Cloudy.", reasoning="So.", streamed=streamed),
        turn("Bye.", streamed=streamed),
    )
    first = ask(app, streamed=streamed, tools=[THEIRS], instructions="Be brief.")
    second = ask(app, streamed=streamed, tools=[THEIRS], input=[OUTPUT], previous_response_id=first["id"])
    ask(app, streamed=streamed, tools=[THEIRS], input="And?", previous_response_id=second["id"])
    seen = [sent(app, number) for number in range(4)]
    assert seen[1][: len(seen[0])] == seen[0]
    # Instructions hold for one response alone.
    assert seen[0][0] == {"role": "system", "content": "Be brief."}
    assert seen[2][: len(seen[1]) - 1] == seen[1][1:]
    assert seen[3][: len(seen[2])] == seen[2]
    assert [message["role"] for message in seen[2]] == [
        *["user", "assistant", "tool", "assistant", "tool", "tool"],
    ]
    assert seen[2][1]["reasoning_content"] == "Hmm."
    assert [message["role"] for message in seen[3][-2:]] == ["assistant", "user"]
    assert seen[3][-2]["reasoning_content"] == "So."


def test_new_instructions_take_the_place_of_the_old_ones(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    first = ask(
        app,
        instructions="Be brief.",
        input=[{"role": "developer", "content": "Rhyme."}, {"role": "user", "content": "Hi"}],
    )
    ask(app, instructions="Be long.", previous_response_id=first["id"])
    assert [message["content"] for message in sent(app)] == ["Be long.\n\nRhyme.", "Hi", "Hi", QUESTION]


def test_one_response_can_be_gone_on_from_twice(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    first = ask(app)
    for words in ("one", "two"):
        ask(app, input=words, previous_response_id=first["id"])
        assert [message["content"] for message in sent(app)] == [QUESTION, "Hi", words]


def test_a_response_goes_on_from_one_that_is_deleted_meanwhile(store_url: str):
    with app_server(store=store_url) as app:
        app.set_replies(turn("Hi", streamed=False))
        first = ask(app, input="one", instructions="Be brief.")
        second = ask(app, input="two", previous_response_id=first["id"])
        other = ask(app, input="or", previous_response_id=first["id"])
        assert delete(app, first["id"]).status_code == 200
        error_of(get(app, first["id"]), 404)
        for before, words in ((second, "two"), (other, "or")):
            assert get(app, before["id"]).json() == before
            ask(app, input="three", previous_response_id=before["id"])
            assert [message["content"] for message in sent(app)] == ["one", "Hi", words, "Hi", "three"]


@BOTH
def test_what_is_not_to_be_stored_is_not(app: AppServer, streamed: bool):
    app.set_replies(turn("Hi", streamed=streamed))
    response = ask(app, streamed=streamed, store=False)
    assert response["store"] is False
    assert "not found" in error_of(get(app, response["id"]), 404)["message"]
    answer = respond(app, input="And?", previous_response_id=response["id"])
    assert error_of(answer, 400)["code"] == "previous_response_not_found"


@BOTH
def test_a_stored_response_is_read_with_the_client_and_deleted(app: AppServer, streamed: bool):
    app.set_replies(turn("Hi", streamed=streamed))
    response = ask(app, streamed=streamed, headers={"authorization": "Bearer test"})
    assert get(app, response["id"], key="test").json() == response
    with app.client() as client:
        assert client.responses.retrieve(response["id"]).output_text == "Hi"
        client.responses.delete(response["id"])
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response["id"])
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list(response["id"])
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response["id"])


def test_deleting_says_so(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    identity = ask(app)["id"]
    assert delete(app, identity).json() == {"id": identity, "object": "response", "deleted": True}


def test_input_items_come_in_pages(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    words = [{"role": "user", "content": str(number)} for number in range(5)]
    with app.client() as client:
        response = client.responses.create(model="mock", input=words)  # type: ignore[arg-type]
        listed = [item.content[0].text for item in client.responses.input_items.list(response.id, limit=2)]
        assert listed == ["4", "3", "2", "1", "0"]
        page = client.responses.input_items.list(response.id, limit=2, order="asc")
        assert [item.content[0].text for item in page.data] == ["0", "1"]
        assert page.has_more
        rest = client.responses.input_items.list(response.id, order="asc", after=page.data[-1].id)
        assert [item.content[0].text for item in rest.data] == ["2", "3", "4"]
        assert not rest.has_more


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_1"}, "after"),
    ],
)
def test_a_page_that_cannot_be_cut_is_refused(app: AppServer, query: dict[str, str], param: str):
    app.set_replies(turn("Hi", streamed=False))
    assert error_of(get(app, f"{ask(app)['id']}/input_items", **query), 400)["param"] == param


def test_an_item_can_be_named_in_place_of_sent(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    first = ask(app, input=[{"role": "user", "content": "one"}])
    (given,) = get(app, f"{first['id']}/input_items").json()["data"]
    references = [{"type": "item_reference", "id": given["id"]}, {"id": first["output"][0]["id"]}]
    ask(app, input=[*references, {"role": "user", "content": "two"}])
    assert [message["content"] for message in sent(app)] == ["one", "Hi", "two"]
    answer = respond(app, input=[{"type": "item_reference", "id": "msg_gone"}])
    assert error_of(answer, 404)["message"] == "Item with id 'msg_gone' not found."


def test_a_turn_can_be_put_together_from_named_items(app: AppServer):
    call = tool_call("theirs", "{}", "named")
    app.set_replies(turn("Wait.", call, reasoning="Hmm.", streamed=False), turn("Fine.", streamed=False))
    first = ask(app, tools=[THEIRS])
    named = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    output = {**OUTPUT, "call_id": first["output"][-1]["call_id"]}
    ask(app, tools=[THEIRS], input=[{"role": "user", "content": QUESTION}, *named, output])
    messages = sent(app)
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1]["content"], messages[1]["reasoning_content"]) == ("Wait.", "Hmm.")


def test_what_belongs_to_somebody_else_is_not_there(app: AppServer):
    app.set_replies(turn("Hi", streamed=False))
    with app.client() as client:
        mine = client.responses.create(model="mock", input="Hi")
    other = {"authorization": "Bearer other"}
    item = mine.output[0].id
    for answer in (
        get(app, mine.id, key="other"),
        get(app, f"{mine.id}/input_items", key="other"),
        get(app, mine.id),
        delete(app, mine.id),
        respond(app, input=[{"type": "item_reference", "id": item}], headers=other),
    ):
        assert "not found" in error_of(answer, 404)["message"]
    answer = respond(app, input="Hi", previous_response_id=mine.id, headers=other)
    assert error_of(answer, 400)["code"] == "previous_response_not_found"
    assert get(app, mine.id, key="test").status_code == 200


def test_a_stored_response_ends_with_its_time():
    with app_server(turn("Hi", streamed=False), responses_ttl=0.5) as app:
        identity = ask(app)["id"]
        deadline = time.monotonic() + DEADLINE
        while get(app, identity).status_code == 200:
            assert time.monotonic() < deadline
        assert error_of(get(app, identity), 404)


def test_what_was_cut_can_be_read_in_the_next_response():
    async def long(_: Any) -> dict[str, str]:
        return {"text": "".join(f"line {n}, " for n in range(2000))}

    with app_server(tools=ToolService(get_weather=long)) as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "max_model_len": 2000}]})
        app.set_replies(turn("", OURS, streamed=False), turn("Cloudy.", streamed=False))
        first = ask(app)
        found = re.search(r'\{"id": "\w+", "search"', sent(app)[-1]["content"])
        assert found
        arguments = found[0].replace('"search"', '"search": "line 1234"}')
        more = tool_call("toolway_read_more", arguments, "more")
        app.upstream.replies += [turn("", more, streamed=False), turn("Read.", streamed=False)]
        ask(app, previous_response_id=first["id"])
        assert "line 1234, line 1235" in sent(app)[-1]["content"]


def test_rounds_of_earlier_responses_that_are_too_long_are_shortened():
    async def long(_: Any) -> dict[str, str]:
        return {"text": "x" * 5000}

    with app_server(tools=ToolService(get_weather=long)) as app:
        app.upstream.models = json_reply({"data": []})
        app.set_replies(turn("", OURS, streamed=False), turn("Cloudy.", streamed=False))
        first = ask(app)
        refusal = json_reply({"error": {"code": "context_length_exceeded", "message": "too long"}}, 400)
        app.set_replies(refusal, turn("Fine.", streamed=False))
        app.upstream.models = json_reply({"data": []})
        assert text_of(ask(app, previous_response_id=first["id"])) == "Fine."
        long_before, short_after = (len(seen.body) for seen in app.upstream.seen)
        assert short_after < long_before * 0.7


@contextmanager
def replica(app: AppServer, store: str) -> Iterator[str]:
    """One more Toolway with the same settings and this store."""
    with serving(app.settings_with_store(store)) as url:
        yield url


lasting = pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)


@lasting
@BOTH
def test_a_conversation_outlives_the_server(app: AppServer, store_url: str, streamed: bool):
    app.set_replies(turn("Both.", OURS, CALL, streamed=streamed), turn("Fine.", streamed=streamed))
    with replica(app, store_url) as url:
        first = ask(url, streamed=streamed, tools=[THEIRS])
    with replica(app, store_url) as url:
        assert get(url, first["id"]).json() == first
        ask(url, streamed=streamed, tools=[THEIRS], input=[OUTPUT], previous_response_id=first["id"])
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool", "tool"]


@lasting
@BOTH
def test_two_replicas_behind_one_address_are_one_server(app: AppServer, store_url: str, streamed: bool):
    with ExitStack() as stack:
        urls = [stack.enter_context(replica(app, store_url)) for _ in range(2)]
        address = stack.enter_context(balancing(urls))
        app.set_replies(turn("Both.", OURS, CALL, streamed=streamed), turn("Fine.", streamed=streamed))
        first = ask(address, streamed=streamed, tools=[THEIRS])
        second = ask(
            address, streamed=streamed, tools=[THEIRS], input=[OUTPUT], previous_response_id=first["id"]
        )
        assert text_of(second) == "Fine."
        assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool", "tool"]
        assert get(address, second["id"]).json() == get(address, second["id"]).json() == second
        assert len(get(address, f"{first['id']}/input_items").json()["data"]) == 1
        reference = {"type": "item_reference", "id": items_of(first, "message")[0]["id"]}
        ask(address, streamed=streamed, input=[reference, {"role": "user", "content": "And?"}])
        assert delete(address, first["id"]).status_code == 200
        assert delete(address, first["id"]).status_code == 404
