"""Conversations that the client keeps itself and sends back as items: the model reads each round once, as it was."""

from __future__ import annotations

import random
from collections.abc import Callable

import httpx2
import pytest

from tests.integration.responses.requests import (
    BOTH,
    THEIRS,
    ask,
    events_of,
    get,
    items_of,
    kinds,
    respond,
    sent,
    turn,
)
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import Reply, chunk, sse, tool_call
from toolway.types import JSON

USER: JSON = {"role": "user", "content": "What is the weather in Paris?"}
MORE: JSON = {"role": "user", "content": "And tomorrow?"}


@pytest.fixture(scope="module")
def app():
    with app_server(replay=True) as server:
        yield server


def told(response: JSON) -> list[JSON]:
    """The output as Codex and the Agents SDK send it back: without ids and what is null."""
    return [{k: v for k, v in item.items() if k != "id" and v is not None} for item in response["output"]]


def outputs(response: JSON) -> list[JSON]:
    calls = items_of(response, "function_call")
    return [{"type": "function_call_output", "call_id": call["call_id"], "output": "done"} for call in calls]


def the_rounds(app: AppServer, streamed: bool, *last: JSON) -> JSON:
    """A response of three rounds, of which two are ours: each thinks, speaks and calls."""
    app.set_replies(
        turn("I look.", tool_call(id="one"), reasoning="First.", streamed=streamed),
        turn("Once more.", tool_call(id="two"), reasoning="Second.", streamed=streamed),
        turn("Now.", *last, reasoning="Third.", streamed=streamed),
    )
    return ask(app, streamed=streamed, input=[USER], tools=[THEIRS], store=False)


def shown(answer: httpx2.Response) -> list[JSON]:
    """The items that Codex keeps of a stream that broke."""
    done = [e["item"] for e in events_of(answer.text) if e["type"] == "response.output_item.done"]
    return [{k: v for k, v in item.items() if k != "id" and v is not None} for item in done]


def test_a_client_that_asks_again_behind_what_it_saw_has_the_rounds_and_the_turn_is_made_anew(app: AppServer):
    """As Codex does when a stream breaks."""
    broken = Reply(parts=sse(chunk(content="It is"), done=False).parts, cut=True)
    request: JSON = {"instructions": "Be kind.", "stream": True, "store": False}
    request["headers"] = {"authorization": "Bearer mine"}
    app.set_replies(turn("I look.", tool_call(id="one"), reasoning="Hm.", streamed=True), broken)
    items = [USER, *shown(respond(app, input=[USER], **request))]
    before = sent(app)
    app.set_replies(turn("It rains.", streamed=True))
    items += shown(respond(app, input=items, **request))
    assert sent(app) == before
    app.set_replies(turn("Sunny.", streamed=True))
    respond(app, input=[*items, MORE], **request)
    assert sent(app) == [*before, {"role": "assistant", "content": "It rains."}, MORE]
    assert len(app.tools.calls) == 0


@BOTH
def test_hidden_rounds_before_a_call_of_the_clients_come_back_once(app: AppServer, streamed: bool):
    response = the_rounds(app, streamed, tool_call("theirs", "{}", "c"))
    assert kinds(response) == ["reasoning", "message"] * 3 + ["function_call"]
    before = sent(app)
    app.set_replies(turn("Cloudy.", streamed=streamed))
    ask(
        app, streamed=streamed, input=[USER, *told(response), *outputs(response)], tools=[THEIRS], store=False
    )
    messages = sent(app)
    assert messages[: len(before)] == before
    assert [message["role"] for message in before] == ["user", *["assistant", "tool"] * 2]
    assert messages[len(before)]["content"] == "Now."
    assert messages[len(before)]["reasoning_content"] == "Third."
    assert [message["role"] for message in messages[len(before) :]] == ["assistant", "tool"]


@pytest.mark.parametrize("calls", [(), (tool_call("theirs", "{}", "c"),)], ids=["an answer", "a call"])
@pytest.mark.parametrize("path", ["", "/compact", "/input_tokens"])
def test_what_is_summarised_or_counted_has_its_hidden_rounds(
    app: AppServer, path: str, calls: tuple[JSON, ...]
):
    response = the_rounds(app, False, *calls)
    before = sent(app)
    app.set_replies(turn("A summary.", streamed=False))
    items = [USER, *told(response), *outputs(response), *([] if path else [{"type": "compaction_trigger"}])]
    body = {"model": "mock", "input": items, "store": False, "tools": [THEIRS]}
    assert httpx2.post(f"{app.url}/v1/responses{path}", json=body, timeout=60).status_code == 200
    assert sent(app)[: len(before)] == before
    assert sent(app)[len(before)]["content"] == "Now."


@BOTH
@pytest.mark.parametrize("joined", ["\n\n", " ", ""])
def test_an_answer_of_several_texts_is_known_however_the_client_joins_them(
    app: AppServer, streamed: bool, joined: str
):
    response = the_rounds(app, streamed)
    before = sent(app)
    texts = [item["content"][0]["text"] for item in items_of(response, "message")]
    for answer in (told(response), [{"role": "assistant", "content": joined.join(texts)}]):
        app.set_replies(turn("Rain.", streamed=streamed))
        ask(app, streamed=streamed, input=[USER, *answer, MORE], tools=[THEIRS], store=False)
        messages = sent(app)
        assert messages[: len(before)] == before
        assert [message["role"] for message in messages[len(before) :]] == ["assistant", "user"]
        assert messages[len(before)]["content"] == "Now."


def test_an_answer_that_is_not_known_is_one_message(app: AppServer):
    app.set_replies(turn("Rain.", streamed=False))
    answer = [{"role": "assistant", "content": "It was"}, {"role": "assistant", "content": "long ago."}]
    ask(app, input=[USER, *answer, MORE])
    assert sent(app) == [USER, {"role": "assistant", "content": "It was\n\nlong ago."}, MORE]


LATE: JSON = {
    "type": "message",
    "role": "developer",
    "content": [{"type": "input_text", "text": "Rhyme."}, {"type": "input_text", "text": "Be brief."}],
}


def test_what_a_developer_says_later_reaches_the_model_where_templates_take_it(app: AppServer):
    app.set_replies(turn("Rain.", streamed=False))
    answer = {"role": "assistant", "content": "Cloudy."}
    ask(app, input=[LATE, USER, answer, LATE, MORE], instructions="Be kind.")
    first = {"role": "system", "content": "Be kind.\n\nRhyme.\n\nBe brief."}
    assert sent(app) == [first, USER, answer, {"role": "user", "content": "Rhyme.\n\nBe brief."}, MORE]


FOREIGN = [
    *[
        "web_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
    ],
    *[
        "computer_call",
        "context_compaction",
        "ghost_snapshot",
        "tool_search_call",
        "agent_message",
        "moon_call",
    ],
]


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_item_that_only_another_server_knows_is_left_out(app: AppServer, kind: str):
    app.set_replies(turn("Rain.", streamed=False))
    foreign = {"type": kind, "id": "x", "call_id": "y", "status": "completed", "action": {"type": "search"}}
    ask(app, input=[USER, foreign, {"role": "assistant", "content": "Cloudy."}, foreign, MORE])
    assert sent(app) == [USER, {"role": "assistant", "content": "Cloudy."}, MORE]


def test_an_output_is_paired_with_its_call_wherever_it_stands(app: AppServer):
    app.set_replies(turn("Rain.", streamed=False))
    call: JSON = {"type": "function_call", "call_id": "c", "name": "theirs", "arguments": "{}"}
    output: JSON = {"type": "function_call_output", "call_id": "c", "output": "done"}
    ask(
        app,
        input=[USER, call, {**call, "call_id": "d"}, {**output, "call_id": "d"}, MORE, output],
        tools=[THEIRS],
    )
    assert [message.get("tool_call_id", message["role"]) for message in sent(app)] == [
        "user",
        "assistant",
        "c",
        "d",
        "user",
    ]


def test_a_history_in_the_shapes_of_chat_completions_is_read_and_gone_on_with(app: AppServer):
    app.set_replies(turn("It runs.", streamed=False), turn("Bye.", streamed=False))
    calls = [
        {"id": name, "type": "function", "function": {"name": "theirs", "arguments": "{}"}} for name in "cd"
    ]
    history: list[JSON] = [
        USER,
        {"role": "assistant", "content": "Look.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "d", "content": "two"},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "one"}]},
    ]
    first = ask(app, input=history, tools=[{"type": "function", "function": {"name": "theirs"}}])
    assert sent(app) == [
        *history[:2],
        {"role": "tool", "tool_call_id": "c", "content": "one"},
        {"role": "tool", "tool_call_id": "d", "content": "two"},
    ]
    assert app.upstream.seen[0].json["tools"][0] == {"type": "function", "function": {"name": "theirs"}}
    ask(app, input=[MORE], previous_response_id=first["id"])
    assert sent(app)[-2:] == [{"role": "assistant", "content": "It runs."}, MORE]
    listed = get(app, f"{first['id']}/input_items").json()["data"]
    kinds = [entry["type"] for entry in reversed(listed)]
    assert kinds == ["message", "reasoning", "message", *["function_call"] * 2, *["function_call_output"] * 2]


IDS: dict[str, Callable[[random.Random, int], str]] = {
    "of their own": lambda any_, _: f"call_{any_.getrandbits(64):x}",
    "that begin anew in each turn": lambda _, number: f"call_{number}",
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("thinks", [True, False], ids=["thinking", "silent"])
@pytest.mark.parametrize("seed", range(4))
def test_a_session_is_read_as_it_happened(app: AppServer, seed: int, ids: str, thinks: bool):
    """In each request the model reads all rounds so far, in order, each once and as it wrote them."""
    any_, items, told_rounds, before = random.Random(seed), [], 0, []
    for question in range(3):
        items.append({"role": "user", "content": f"Question {question} of {seed}, ids {ids}, {thinks}?"})
        ends = False
        while not ends:
            ends = any_.random() < 0.4
            rounds = _rounds(any_, IDS[ids], thinks, told_rounds, ends)
            told_rounds += len(rounds)
            streamed = any_.random() < 0.5
            app.set_replies(
                *(
                    turn(text, *calls, reasoning=reasoning, streamed=streamed)
                    for text, reasoning, calls in rounds
                )
            )
            response = ask(app, streamed=streamed, input=items, tools=[THEIRS], store=False)
            for number, (text, reasoning, calls) in enumerate(rounds):
                read = sent(app, number)
                assert read[: len(before)] == before, "what was read before changed"
                wrote: JSON = {"role": "assistant", "content": text}
                wrote |= {"reasoning_content": reasoning} if reasoning else {}
                before = [
                    *read,
                    wrote | ({"tool_calls": [_written(call) for call in calls]} if calls else {}),
                ]
            items += [*told(response), *outputs(response)]


def _rounds(
    any_: random.Random, new_id: Callable[[random.Random, int], str], thinks: bool, begin: int, ends: bool
) -> list[tuple[str, str, list[JSON]]]:
    """Rounds of which only the last one is seen by the client: it answers, or calls the client's tool."""
    rounds = []
    for number in range(any_.randint(1, 3)):
        text = any_.choice(["", f"Text {begin + number}.", f"Text {begin + number} "])
        reasoning = f"Thought {begin + number}." if thinks and any_.random() < 0.7 else ""
        names = ["get_weather"] * any_.randint(1, 2)
        rounds.append(
            (text, reasoning, [_call(any_, new_id, name, place) for place, name in enumerate(names)])
        )
    text, reasoning, _ = rounds.pop()
    names = [] if ends else any_.sample(["theirs", "theirs", "get_weather"], any_.randint(1, 3))
    if not ends and "theirs" not in names:
        names.append("theirs")
    calls = [_call(any_, new_id, name, place) for place, name in enumerate(names)]
    return [*rounds, (text or f"Answer {begin}.", reasoning, calls)]


def _call(any_: random.Random, new_id: Callable[[random.Random, int], str], name: str, place: int) -> JSON:
    arguments = '{"city":"Paris"}' if name == "get_weather" else f'{{"n":{any_.randint(0, 99)}}}'
    return tool_call(name, arguments, new_id(any_, place), place)


def _written(call: JSON) -> JSON:
    return {name: value for name, value in call.items() if name != "index"}
