"""Answers that broke off after tools ran: when the client goes on, the model reads what happened; all runs once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.answers import calls_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.upstream import OUT_OF_MEMORY, Reply, chunk, sse, text_stream, tool_call
from toolway.types import JSON

MORE = {"role": "user", "content": "And tomorrow?"}
LOOKS = sse(
    chunk(role="assistant", content="Let me look. "),
    chunk(tool_calls=[tool_call()]),
    chunk(finish="tool_calls"),
)
BEGINS = "It is cloudy in Paris, and in the evening there may be rain."


@pytest.fixture
def app() -> Iterator[AppServer]:
    with app_server() as server:
        yield server


def headers_of(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def broken(text: str = BEGINS) -> Reply:
    """A stream that ends in the middle."""
    return Reply(parts=sse(chunk(content=text), done=False).parts, cut=True)


def leaves_in_the_middle(app: AppServer, *, messages: Any = QUESTION, key: str | None = "mine") -> None:
    """The client reads the beginning of the second turn and hangs up."""
    gate = Gate()
    app.set_replies(LOOKS, Reply(parts=[*sse(chunk(content=BEGINS), done=False).parts, gate]))
    body = {"model": "mock", "messages": messages, "stream": True}
    url = f"{app.url}/v1/chat/completions"
    with httpx2.Client() as client, client.stream("POST", url, json=body, headers=headers_of(key)) as answer:
        for line in answer.iter_lines():
            if "evening" in line:
                break
    app.upstream.departures.wait()


def breaks_off(app: AppServer, *second: Reply, key: str | None = "mine", **more: Any) -> None:
    app.set_replies(LOOKS, *(second or (broken(),)))
    app.ask(stream=True, headers=headers_of(key), **more)


def goes_on(app: AppServer, *messages: JSON, key: str | None = "mine") -> list[JSON]:
    """What the model reads when the client comes back."""
    app.upstream.replies = [text_stream("Sunny.")]
    app.upstream.seen.clear()
    app.ask(stream=True, headers=headers_of(key), messages=[*QUESTION, *messages])
    read: list[JSON] = app.upstream.seen[0].json["messages"]
    return read


def assistant(text: str) -> JSON:
    return {"role": "assistant", "content": text}


def roles(messages: list[JSON]) -> list[str]:
    return [message["role"] for message in messages]


@pytest.mark.parametrize("how", [leaves_in_the_middle, breaks_off])
def test_the_rounds_are_put_back_behind_what_the_client_saw(app: AppServer, how: Any):
    how(app)
    read = goes_on(app, assistant("Let me look. It is cloudy in"), MORE)
    assert roles(read) == ["user", "assistant", "tool", "assistant", "user"]
    assert (read[1]["content"], read[1]["tool_calls"][0]["function"]["name"]) == (
        "Let me look. ",
        "get_weather",
    )
    assert read[3] == assistant("It is cloudy in")
    assert len(app.tools.calls) == 1
    later = goes_on(app, assistant("Let me look. It is cloudy in"), MORE, assistant("Sunny."), MORE)
    assert later[: len(read)] == read


@pytest.mark.parametrize(
    "seen",
    [[], [assistant("")], [assistant("Let me")], [assistant("Let me look.")]],
    ids=["none", "empty", "less", "turn"],
)
def test_a_client_that_saw_less_has_the_rounds_too(app: AppServer, seen: list[JSON]):
    breaks_off(app)
    read = goes_on(app, *seen, MORE)
    assert roles(read) == ["user", "assistant", "tool", "user"]


def test_a_client_may_write_that_the_answer_was_interrupted(app: AppServer):
    breaks_off(app)
    read = goes_on(app, assistant("Let me look. It is\n\n[Response interrupted by user]"), MORE)
    assert roles(read) == ["user", "assistant", "tool", "assistant", "user"]
    assert read[3]["content"].startswith("It is")


@pytest.mark.parametrize("note", ["No response requested.", "[Request interrupted by user]"])
def test_a_note_in_place_of_the_answer_stays_whole_behind_the_rounds(app: AppServer, note: str):
    breaks_off(app)
    read = goes_on(app, assistant(note), MORE)
    assert roles(read) == ["user", "assistant", "tool", "assistant", "user"]
    assert read[3] == assistant(note)


def test_an_error_in_place_of_an_answer_keeps_the_rounds_as_well(app: AppServer):
    breaks_off(app, OUT_OF_MEMORY)
    assert roles(goes_on(app, MORE)) == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize(
    "said", ["Let me look. It is sunny.", "Let me look. " + BEGINS + " So take a coat.", "I do not know."]
)
def test_another_answer_stays_as_the_client_sent_it(app: AppServer, said: str):
    breaks_off(app)
    assert goes_on(app, assistant(said), MORE) == [*QUESTION, assistant(said), MORE]


def test_another_key_gets_nothing(app: AppServer):
    breaks_off(app)
    assert roles(goes_on(app, assistant("Let me look."), MORE, key="theirs")) == ["user", "assistant", "user"]


def test_another_conversation_gets_nothing(app: AppServer):
    breaks_off(app, messages=[{"role": "user", "content": "What is the weather in Rome?"}])
    assert roles(goes_on(app, MORE)) == ["user", "user"]


def test_without_a_key_a_part_that_nobody_could_guess_tells_whose_it_is(app: AppServer):
    breaks_off(app, key=None)
    assert roles(goes_on(app, MORE, key=None)) == ["user", "user"]
    assert roles(goes_on(app, assistant("Let me look."), MORE, key=None)) == ["user", "assistant", "user"]
    shown = assistant("Let me look. " + BEGINS[:-5])
    assert roles(goes_on(app, shown, MORE, key=None)) == ["user", "assistant", "tool", "assistant", "user"]


def test_two_with_one_key_and_the_same_question_get_their_own_or_nothing(app: AppServer):
    """As the users of Open WebUI have it."""
    answers = iter(["Cloudy, says the first.", "Rain, says the second."])

    async def differs(_: Any) -> str:
        return next(answers)

    app.tools.behaviours["get_weather"] = differs
    breaks_off(app, broken("It is as the first server says."))
    breaks_off(app, broken("What the second one says."), temperature=0.5)
    assert roles(goes_on(app, MORE)) == ["user", "user"]
    assert "first" in json.dumps(goes_on(app, assistant("Let me look. It is as the first"), MORE)[2])
    assert "second" in json.dumps(goes_on(app, assistant("Let me look. What the"), MORE)[2])


def test_one_whose_attempt_ran_nothing_does_not_get_the_rounds_of_another(app: AppServer):
    breaks_off(app)
    app.set_replies(OUT_OF_MEMORY)
    app.ask(stream=True, headers=headers_of("mine"), temperature=0.5)
    assert roles(goes_on(app, MORE)) == ["user", "user"]


@pytest.fixture
def replaying() -> Iterator[AppServer]:
    with app_server(replay=True) as server:
        yield server


THEIRS: JSON = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}
PART = assistant("Let me look. It is cloudy in")


def comes_back(app: AppServer, *replies: Reply, **more: Any) -> httpx2.Response:
    """The client asks again by itself, with the part that it saw as its last message."""
    app.upstream.replies = [*replies]
    app.upstream.seen.clear()
    return app.ask(stream=True, headers=headers_of("mine"), messages=[*QUESTION, PART], **more)


def test_a_client_that_goes_on_by_itself_has_the_rounds_and_its_answer_is_one(replaying: AppServer):
    breaks_off(replaying)
    comes_back(replaying, text_stream(" Paris."))
    (asked,) = replaying.upstream.seen
    read = asked.json["messages"]
    assert roles(read) == ["user", "assistant", "tool", "assistant"]
    assert read[-1] == assistant("It is cloudy in")
    later = goes_on(replaying, assistant("Let me look. It is cloudy in\n\n Paris."), MORE)
    assert later == [*read[:-1], assistant("It is cloudy in Paris."), MORE]
    assert len(replaying.tools.calls) == 1


def test_what_ran_while_a_client_went_on_by_itself_comes_back_too(replaying: AppServer):
    breaks_off(replaying)
    comes_back(replaying, LOOKS, text_stream("It rains."))
    later = goes_on(replaying, assistant("Let me look. It is cloudy inLet me look. It rains."), MORE)
    assert roles(later) == ["user", *["assistant", "tool"] * 2, "assistant", "user"]
    assert [later[1]["content"], later[3]["content"]] == ["Let me look. ", "It is cloudy inLet me look. "]
    assert later[5] == assistant("It rains.")


def test_a_client_that_goes_on_by_itself_may_be_interrupted_again(app: AppServer):
    breaks_off(app)
    comes_back(app, LOOKS, broken("It rains in the"))
    later = goes_on(app, assistant("Let me look. It is cloudy inLet me look. It rains in"), MORE)
    assert roles(later) == ["user", *["assistant", "tool"] * 2, "assistant", "user"]
    assert later[5] == assistant("It rains in")
    assert len(app.tools.calls) == 2


@pytest.mark.parametrize("rounds", [(), (LOOKS,)], ids=["at once", "after a round"])
def test_a_call_of_the_clients_behind_what_it_went_on_with_brings_all_back(
    app: AppServer, rounds: tuple[Reply, ...]
):
    breaks_off(app, tools=[THEIRS])
    mixed = sse(
        chunk(content="Mine. "),
        chunk(tool_calls=[tool_call("theirs", "{}", "c")]),
        chunk(finish="tool_calls"),
    )
    answer = comes_back(app, *rounds, mixed, tools=[THEIRS])
    (call,) = calls_of(answer.text)
    said = {**assistant("Let me look. It is cloudy in Mine. "), "tool_calls": [call]}
    later = goes_on(app, said, {"role": "tool", "tool_call_id": call["id"], "content": "done"})
    assert roles(later) == ["user", *["assistant", "tool"] * (2 + len(rounds))]
    assert [message["content"] for message in later if message["role"] == "assistant"] == (
        ["Let me look. ", "It is cloudy inMine. "]
        if not rounds
        else ["Let me look. ", "It is cloudy inLet me look. ", "Mine. "]
    )


def test_rounds_before_a_new_question_are_told_once_in_all_that_follows(replaying: AppServer):
    breaks_off(replaying)
    mixed = sse(
        chunk(content="Mine. "),
        chunk(tool_calls=[tool_call("theirs", "{}", "c")]),
        chunk(finish="tool_calls"),
    )
    replaying.set_replies(mixed, text_stream("Sunny."))
    messages = [*QUESTION, MORE]
    answer = replaying.ask(stream=True, headers=headers_of("mine"), messages=messages, tools=[THEIRS])
    (call,) = calls_of(answer.text)
    messages += [{**assistant("Mine. "), "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "done"}]
    replaying.ask(stream=True, headers=headers_of("mine"), messages=messages, tools=[THEIRS])
    first, second = (seen.json["messages"] for seen in replaying.upstream.seen)
    assert roles(first) == ["user", "assistant", "tool", "user"]
    assert second[: len(first)] == first
    assert roles(second[len(first) :]) == ["assistant", "tool"]
    later = goes_on(replaying, *messages[1:], assistant("Sunny."), MORE)
    assert later[: len(second)] == second
    assert roles(later[len(second) :]) == ["assistant", "user"]


@pytest.fixture
def telling() -> Iterator[AppServer]:
    """Its client sees which calls have ended."""
    with app_server(progress="openwebui") as server:
        yield server


def leaves_while_a_tool_runs(app: AppServer, *calls: JSON, **more: Any) -> None:
    """The client hangs up when one call has ended, and the other one runs."""
    gate = Gate()

    async def waits(_: Any) -> str:
        await gate()
        return "never"

    app.tools.behaviours["list_cities"] = waits
    turn = [tool_call(id="one"), tool_call("list_cities", "{}", id="two", index=1), *calls]
    app.set_replies(sse(chunk(content="Both. "), chunk(tool_calls=turn), chunk(finish="tool_calls")))
    body = {"model": "mock", "messages": QUESTION, "stream": True, **more}
    url = f"{app.url}/v1/chat/completions"
    with (
        httpx2.Client() as client,
        client.stream("POST", url, json=body, headers=headers_of("mine")) as answer,
    ):
        for line in answer.iter_lines():
            if "get_weather: done" in line:
                gate.wait_for_arrival()
                break
    app.tools.departures.wait()


@pytest.mark.parametrize("seen", [[], [assistant("Both. ")]], ids=["nothing", "text"])
def test_a_call_that_was_cancelled_while_it_ran_is_told_as_such(telling: AppServer, seen: list[JSON]):
    leaves_while_a_tool_runs(telling, tool_call("theirs", "{}", id="three", index=2), tools=[THEIRS])
    read = goes_on(telling, *seen, MORE)
    assert roles(read) == ["user", "assistant", "tool", "tool", "tool", "user"]
    assert read[1]["content"] == "Both. "
    assert [message["tool_call_id"] for message in read[2:5]] == ["one", "two", "three"]
    assert "cloudy" in read[2]["content"]
    assert "cancelled, since the client left" in read[3]["content"]
    assert "not run" in read[4]["content"]


def test_a_cancelled_call_runs_when_the_same_request_comes_again(telling: AppServer):
    """A client whose patience was too short has no use for its cancelled call."""
    leaves_while_a_tool_runs(telling)
    telling.tools.behaviours["list_cities"] = cities
    both = [tool_call(id="one"), tool_call("list_cities", "{}", id="two", index=1)]
    telling.set_replies(sse(chunk(tool_calls=both), chunk(finish="tool_calls")), text_stream("Fine."))
    telling.ask(stream=True, headers=headers_of("mine"))
    assert sorted(name for name, _ in telling.tools.calls) == ["get_weather", "list_cities"]
    assert roles(telling.upstream.seen[-1].json["messages"]) == ["user", "assistant", "tool", "tool"]


async def cities(_: Any) -> list[str]:
    return ["Paris"]
