"""The same conversation in every dialect: the model server is asked the same, and the client can know the same.

No client sends a key, and the model numbers its calls alike in all conversations: what is kept for one of them must not
show in another.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.dialects.dialects import (
    DIALECTS,
    Answer,
    Client,
)
from tests.support.app_server import AppServer, app_server
from tests.support.fuzz import slow
from tests.support.model_turns import USAGE, ModelTurn, set_turns
from tests.support.tools import JSON, Raw, ToolService
from tests.support.upstream import OUT_OF_MEMORY, Reply, json_reply, tool_call

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
IMAGE = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
PARIS = tool_call("get_weather", '{"city":"Paris"}', id="call_a")
ROME = tool_call("get_weather", '{"city":"Rome"}', id="call_b", index=1)
THEIRS = tool_call("theirs", "{}", id="call_c", index=1)
ANSWERS = {"Paris": '{"city":"Paris","sky":"cloudy"}', "Rome": '{"city":"Rome","sky":"cloudy"}'}
MAX_ROUNDS = 3

EACH = [(dialect, mode) for dialect in DIALECTS for mode in dialect.modes]
each_dialect = pytest.mark.parametrize(
    ("dialect", "mode"), EACH, ids=[f"{dialect.name}, {mode}" for dialect, mode in EACH]
)


async def broken(_: JSON) -> Raw:
    return Raw(b'{"detail": "no such city"}', status=500)


async def picture(_: JSON) -> Raw:
    return Raw(PNG, kind=b"image/png")


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    tools = ToolService(broken=broken, picture=picture)
    with app_server(tools=tools, max_rounds=MAX_ROUNDS, vision="on") as server:
        yield server


def asked(app: AppServer, number: int = -1) -> list[JSON]:
    """The messages of a request to the model server, calls named by their order: each call has an id of its own."""
    names: dict[str, str] = {}

    def named(id: str) -> str:
        return names.setdefault(id, f"call {len(names) + 1}")

    messages = []
    for message in app.upstream.seen[number].json["messages"]:
        calls = [{**call, "id": named(call["id"])} for call in message.get("tool_calls") or ()]
        own = {"tool_call_id": named(message["tool_call_id"])} if message["role"] == "tool" else {}
        messages.append({**message, **({"tool_calls": calls} if calls else {}), **own})
    return messages


def offered(app: AppServer, number: int = -1) -> list[str]:
    """The names of the tools in a request to the model server."""
    return [tool["function"]["name"] for tool in app.upstream.seen[number].json.get("tools") or ()]


def said(text: str | None, *calls: JSON, begin: int = 1) -> JSON:
    """The model's own message, as it is sent back to it."""
    message: JSON = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call {number}", "type": "function", "function": call["function"]}
            for number, call in enumerate(calls, begin)
        ]
    return message


def result(number: int, content: str) -> JSON:
    return {"role": "tool", "tool_call_id": f"call {number}", "content": content}


def same(messages: list[JSON], expected: list[JSON]) -> bool:
    """No text and an empty text are the same text."""
    return [{**message, "content": message.get("content") or ""} for message in messages] == [
        {**message, "content": message["content"] or ""} for message in expected
    ]


QUESTION: JSON = {"role": "user", "content": "What is the weather?"}


@each_dialect
def test_a_plain_answer(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="Hello there"))
    answer = dialect(app, mode).ask("What is the weather?")
    assert answer == Answer(outcome="completed", text="Hello there", usage=USAGE)
    assert asked(app) == [QUESTION]
    assert offered(app) == ["broken", "get_weather", "list_cities", "picture"]


@each_dialect
def test_a_tool_of_ours_is_run(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="Let me look. ", calls=(PARIS,)), ModelTurn(text="It is cloudy."))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.text, answer.calls) == ("completed", "Let me look. It is cloudy.", ())
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert same(asked(app), [QUESTION, said("Let me look. ", PARIS), result(1, ANSWERS["Paris"])])
    assert offered(app) == offered(app, 0)


@each_dialect
def test_several_rounds(app: AppServer, dialect: type[Client], mode: str):
    cities = tool_call("list_cities", "{}", id="call_0")
    set_turns(app, ModelTurn(calls=(cities,)), ModelTurn(calls=(PARIS,)), ModelTurn(text="Done."))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.text) == ("completed", "Done.")
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == 3 * USAGE["completion_tokens"]
    rounds = [said(None, cities), result(1, '["Paris","Rome"]'), said(None, PARIS, begin=2)]
    assert same(asked(app), [QUESTION, *rounds, result(2, ANSWERS["Paris"])])


@each_dialect
def test_calls_side_by_side(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(calls=(PARIS, ROME)), ModelTurn(text="Both cloudy."))
    assert dialect(app, mode).ask("What is the weather?").text == "Both cloudy."
    results = [result(1, ANSWERS["Paris"]), result(2, ANSWERS["Rome"])]
    assert same(asked(app), [QUESTION, said(None, PARIS, ROME), *results])


@each_dialect
def test_a_turn_that_calls_a_tool_of_each(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="Wait. ", calls=(PARIS, THEIRS)), ModelTurn(text="Both done."))
    client = dialect(app, mode, own_tools=["theirs"])
    answer = client.ask("What is the weather?")
    (call,) = answer.calls
    assert (answer.outcome, answer.text, call.name, call.arguments) == ("calls", "Wait. ", "theirs", "{}")
    assert len(app.upstream.seen) == 1
    last = client.give_results({call.id: "42"})
    assert (last.outcome, last.text) == ("completed", "Both done.")
    results = [result(1, ANSWERS["Paris"]), result(2, "42")]
    assert same(asked(app), [QUESTION, said("Wait. ", PARIS, THEIRS), *results])
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


@each_dialect
def test_a_call_of_the_clients_own_tool(app: AppServer, dialect: type[Client], mode: str):
    theirs = tool_call("theirs", "{}", id="call_c")
    set_turns(app, ModelTurn(calls=(theirs,)), ModelTurn(text="Forty-two."))
    client = dialect(app, mode, own_tools=["theirs"])
    (call,) = client.ask("What is the weather?").calls
    assert "theirs" in offered(app)
    assert client.give_results({call.id: "42"}).text == "Forty-two."
    assert same(asked(app), [QUESTION, said(None, theirs), result(1, "42")])


@each_dialect
def test_two_texts_before_a_call_of_the_clients(app: AppServer, dialect: type[Client], mode: str):
    theirs = tool_call("theirs", "{}", id="call_c")
    turns = [ModelTurn(text="One. ", calls=(PARIS,)), ModelTurn(text="Two. ", calls=(theirs,))]
    set_turns(app, *turns, ModelTurn(text="Three."))
    client = dialect(app, mode, own_tools=["theirs"])
    (call,) = client.ask("What is the weather?").calls
    assert client.give_results({call.id: "42"}).text == "Three."
    first = [said("One. ", PARIS), result(1, ANSWERS["Paris"])]
    assert same(asked(app), [QUESTION, *first, said("Two. ", theirs, begin=2), result(2, "42")])


@each_dialect
def test_a_second_question_sees_the_first_answer(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="Cloudy."), ModelTurn(text="Sunny."))
    client = dialect(app, mode)
    client.ask("What is the weather?")
    assert client.ask("And tomorrow?").text == "Sunny."
    assert same(asked(app), [QUESTION, said("Cloudy."), {"role": "user", "content": "And tomorrow?"}])


@each_dialect
def test_a_tool_that_fails_is_told_to_the_model(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(calls=(tool_call("broken"),)), ModelTurn(text="Sorry."))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.text) == ("completed", "Sorry.")
    assert "no such city" in asked(app)[-1]["content"]


@each_dialect
def test_a_call_of_no_tool_never_reaches_the_client(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(calls=(tool_call("get_wether", "{}"),)), ModelTurn(text="Sorry."))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.text, answer.calls) == ("completed", "Sorry.", ())
    assert "get_weather" in asked(app)[-1]["content"]


@each_dialect
def test_a_refusal_is_the_clients_to_read(app: AppServer, dialect: type[Client], mode: str):
    refusal = {"message": "no such model", "type": "invalid_request_error", "param": None, "code": None}
    set_turns(app, json_reply({"error": refusal}, 404))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.status) == ("refused", 404)
    assert "no such model" in answer.error


@each_dialect
def test_a_model_server_that_breaks_behind_a_tool(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="Let me look. ", calls=(PARIS,)), OUT_OF_MEMORY)
    answer = dialect(app, mode).ask(f"What breaks {dialect.name}?")
    assert "out of memory" in answer.error
    if mode == "streamed":
        assert (answer.outcome, answer.text) == ("failed", "Let me look. ")
    else:
        assert (answer.outcome, answer.status) == ("refused", 502)
    assert len(app.tools.calls) == 1


@each_dialect
def test_a_stream_that_is_cut(app: AppServer, dialect: type[Client], mode: str):
    whole = ModelTurn(text="It is cloudy.").reply(streamed=mode == "streamed")
    half = whole.parts[:3] if mode == "streamed" else [b'{"id":']
    set_turns(app, Reply(half, headers=whole.headers, cut=True))
    answer = dialect(app, mode).ask("What is the weather?")
    assert answer.error
    assert (answer.outcome, answer.status) == (("failed", 200) if mode == "streamed" else ("refused", 502))


@each_dialect
def test_an_image_of_the_client(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="A dot."))
    assert dialect(app, mode).ask("What is it?", image=IMAGE).text == "A dot."
    (message,) = asked(app)
    text, image = message["content"]
    assert text == {"type": "text", "text": "What is it?"}
    assert image["image_url"]["url"] == IMAGE


@each_dialect
def test_an_image_of_a_tool(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(calls=(tool_call("picture"),)), ModelTurn(text="A dot."))
    assert dialect(app, mode).ask("What is it?").text == "A dot."
    assert {"type": "image_url", "image_url": {"url": IMAGE}} in asked(app)[-1]["content"]


@each_dialect
def test_an_answer_that_reaches_its_limit(app: AppServer, dialect: type[Client], mode: str):
    set_turns(app, ModelTurn(text="It is", finish="length"))
    answer = dialect(app, mode, limit=2).ask("What is the weather?")
    assert (answer.outcome, answer.text) == ("incomplete", "It is")
    sent = app.upstream.seen[-1].json
    assert sent.get("max_tokens", sent.get("max_completion_tokens")) == 2


@each_dialect
def test_the_last_round_is_an_answer(app: AppServer, dialect: type[Client], mode: str):
    calls = [ModelTurn(calls=({**PARIS, "id": f"call_{n}"},)) for n in range(MAX_ROUNDS + 1)]
    set_turns(app, *calls, ModelTurn(text="So far."))
    answer = dialect(app, mode).ask("What is the weather?")
    assert (answer.outcome, answer.text) == ("completed", "So far.")
    assert len(app.upstream.seen) == MAX_ROUNDS + 2
    last = app.upstream.seen[-1].json
    assert not last.get("tools") or last["tool_choice"] == "none"


TEXTS = st.sampled_from(["", "Hello", "Let me see.", "é 😀", "line\nbreak", "<b>"])
NAMES = st.sampled_from(["get_weather", "list_cities", "broken", "nothing_like_it", "theirs"])


@st.composite
def conversations(draw: st.DrawFn) -> list[ModelTurn]:
    """Turns with texts and calls of anybody's tools; the last one is an answer."""
    turns = []
    for number in range(draw(st.integers(0, 3))):
        names = draw(st.lists(NAMES, min_size=1, max_size=3))
        calls = tuple(
            tool_call(name, '{"city":"Oslo"}', id=f"call_{number}_{index}", index=index)
            for index, name in enumerate(names)
        )
        turns.append(ModelTurn(text=draw(TEXTS), calls=calls))
    return [*turns, ModelTurn(text=draw(TEXTS) or "Done.")]


def played(app: AppServer, client: Client, turns: list[ModelTurn]) -> Any:
    """All that the model server was asked and all that the client was told, to the end of the conversation."""
    set_turns(app, *turns)
    answers = [client.ask("What is the weather?")]
    while answers[-1].outcome == "calls":
        answers.append(client.give_results({call.id: f"mine {call.name}" for call in answers[-1].calls}))
    requests = [
        [{**message, "content": message.get("content") or ""} for message in asked(app, number)]
        for number in range(len(app.upstream.seen))
    ]
    told = [
        (answer.outcome, answer.text, [(call.name, call.arguments) for call in answer.calls])
        for answer in answers
    ]
    return requests, told, sorted(map(str, app.tools.calls))


@slow
@given(turns=conversations())
def test_any_conversation_is_the_same_in_every_dialect(app: AppServer, turns: list[ModelTurn]):
    first, *others = [
        (f"{dialect.name}, {mode}", played(app, dialect(app, mode, own_tools=["theirs"]), turns))
        for dialect, mode in EACH
    ]
    for name, outcome in others:
        assert outcome == first[1], f"{name} differs from {first[0]}"
