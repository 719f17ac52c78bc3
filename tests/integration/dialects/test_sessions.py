"""Any session of several questions, in any dialect: the history that the model reads is the history that happened."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.dialects.dialects import DIALECTS, Client
from tests.support.app_server import AppServer, app_server
from tests.support.fuzz import slow
from tests.support.model_turns import ModelTurn
from tests.support.sessions import SessionModel, unpaired
from tests.support.upstream import tool_call

EACH = [(dialect, mode) for dialect in DIALECTS for mode in dialect.modes]
OWN = ["theirs", "theirs_too"]
NAMES = st.sampled_from(["get_weather", "list_cities", "nothing_like_it", *OWN])
TEXTS = st.sampled_from(["", "Let me see. ", "é 😀", "Two\nlines\n\n"])
sessions_begun = count()


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server(replay=True) as server:
        yield server


def ids_of(style: str, turn: int, index: int, name: str) -> str:
    """As llama.cpp, vLLM and Kimi write them: unique, or counted anew in each turn."""
    return {"unique": f"call_{turn}_{index}", "anew": f"call_{index}", "named": f"functions.{name}:{index}"}[
        style
    ]


@st.composite
def questions(draw: st.DrawFn) -> list[list[ModelTurn]]:
    """The turns of each question: rounds with calls of anybody's tools, then an answer."""
    style = draw(st.sampled_from(["unique", "anew", "named"]))
    numbers = count()
    asked = []
    for _ in range(draw(st.integers(1, 4))):
        turns = []
        for _ in range(draw(st.integers(0, 3))):
            turn = next(numbers)
            names = draw(st.lists(NAMES, min_size=1, max_size=3))
            calls = tuple(
                tool_call(name, f'{{"city":"Oslo {turn}"}}', id=ids_of(style, turn, index, name), index=index)
                for index, name in enumerate(names)
            )
            turns.append(
                ModelTurn(text=draw(TEXTS), calls=calls, reasoning=draw(st.sampled_from(["", "Hm."])))
            )
        asked.append([*turns, ModelTurn(text=f"Answer {next(numbers)}.")])
    return asked


def played(app: AppServer, client: Client, asked: list[list[ModelTurn]]) -> list[str]:
    """Play a session, which nobody played before; what is wrong with what the model was told."""
    model = SessionModel(*(turn for turns in asked for turn in turns))
    app.set_replies()
    app.upstream.answer = model.answer
    session = next(sessions_begun)
    for number in range(len(asked)):
        answer = client.ask(f"Question {number} of session {session}?")
        while answer.outcome == "calls":
            answer = client.give_results({call.id: f"mine {call.name}" for call in answer.calls})
        assert answer.outcome == "completed", answer
    return model.faults()


@slow
@given(asked=questions())
def test_the_model_reads_all_rounds_in_order_each_once_as_it_wrote_them(
    app: AppServer, asked: list[list[ModelTurn]]
):
    for dialect, mode in EACH:
        faults = played(app, dialect(app, mode, own_tools=OWN), asked)
        assert not faults, f"{dialect.name}, {mode}: {faults[0]}"


def test_what_is_wrong_with_a_history_is_found():
    call = tool_call("get_weather", id="c")
    said = ModelTurn(text="Hm. ", calls=(call,))
    user, told = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm. ", "tool_calls": [call]},
    )
    result = {"role": "tool", "tool_call_id": "c", "content": "x"}
    histories = {
        (): [user, told, result],
        ("is told to have said",): [user, {**told, "content": "Hm"}, result],
        ("is told to have called",): [user, {"role": "assistant", "content": "Hm. "}, user],
        ("in place of the turn",): [user, user],
        ("message 0 was",): [{**user, "content": "Ho"}, told, result],
    }
    for expected, history in histories.items():
        model = SessionModel(said, ModelTurn(text="Done."))
        model.answer({"messages": [user]})
        model.answer({"messages": history})
        faults = model.faults()
        assert len(faults) == len(expected), faults
        assert all(words in fault for words, fault in zip(expected, faults, strict=True))
    assert unpaired([told]) == ["no result of ['c']"]
    assert unpaired([result])[0].startswith("message 0 is no result")
    assert unpaired([told, user, result])[0].startswith("message 1 stands where")
