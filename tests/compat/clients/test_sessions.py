"""Long sessions of real clients, in which their tools and Toolway's are mixed: the model reads what happened, once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compat.clients.agents import AGENTS, Agent
from tests.compat.clients.installed import ClientRun, missing
from tests.compat.clients.test_anthropic import CLIENTS, runs
from tests.compat.clients.test_clients import each_client
from tests.compat.clients.test_codex import Codex
from tests.support.app_server import AppServer, app_server
from tests.support.gate import Gate
from tests.support.model_turns import ModelTurn
from tests.support.sessions import SessionModel
from tests.support.upstream import JSON, tool_call

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

QUESTIONS = 4
ROUNDS = 4
"""Of each question; the last one is the answer."""


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server(replay=True) as server:
        yield server


def session(app: AppServer, own: tuple[str, str], *, thinks: bool) -> SessionModel:
    """A model that is asked four questions and numbers its calls anew; `own` is the client's tool, and arguments."""

    def ours(index: int = 0) -> JSON:
        return tool_call("get_weather", '{"city":"Paris"}', id=f"call_{index}", index=index)

    theirs = [tool_call(*own, id=f"call_{index}", index=index) for index in (0, 1)]
    turns = []
    for number in range(QUESTIONS):
        reasoning = f"Thought {number}. " if thinks else ""
        turns += [
            ModelTurn(text=f"First {number}. ", calls=(ours(), theirs[1]), reasoning=reasoning),
            ModelTurn(calls=(ours(0), ours(1)), reasoning=reasoning),
            ModelTurn(text=f"Mine {number}. ", calls=(theirs[0],), reasoning=reasoning),
            ModelTurn(text=f"Answer {number}."),
        ]
    model = SessionModel(*turns, own=own[0])
    app.set_replies()
    app.upstream.answer = model.answer
    return model


@each_client(tools="own", always=True, every=True)
def test_a_session_of_sixteen_rounds(app: AppServer, run: ClientRun):
    model = session(app, ("double", '{"x":21}'), thinks=False)
    told = run.told(app, *(f"Question {number} of {run}?" for number in range(QUESTIONS)))
    assert told["error"] is None
    assert (told["ran"], len(app.tools.calls)) == ([21] * 2 * QUESTIONS, 3 * QUESTIONS)
    assert (model.rounds, model.faults()) == (QUESTIONS * ROUNDS, [])


# The runners keep what they were answered to themselves: a second question begins anew.
@runs("own", *(client for client in CLIENTS if not client.name.lower().endswith("runner")))
def test_a_session_of_sixteen_rounds_over_messages(app: AppServer, run: ClientRun):
    model = session(app, ("double", '{"x":21}'), thinks=False)
    told = run.told(app, *(f"Question {number} of {run}?" for number in range(QUESTIONS)))
    assert told["error"] is None
    assert (told["ran"], len(app.tools.calls)) == ([21] * 2 * QUESTIONS, 3 * QUESTIONS)
    assert (model.rounds, model.faults()) == (QUESTIONS * ROUNDS, [])


@pytest.mark.parametrize("agent", AGENTS, ids=str)
def test_a_session_of_an_agent_that_is_taken_up_again_and_again(app: AppServer, tmp_path: Path, agent: Agent):
    if not agent.program.exists():
        pytest.skip(f"{agent.program} is not installed")
    model = session(app, agent.own, thinks=True)
    agent.set_up(tmp_path, app.url)
    for number in range(QUESTIONS):
        told = agent.says(tmp_path, app.url, f"Question {number}?", again=number > 0)
        assert f"Answer {number}." in told
    assert len(app.tools.calls) == 3 * QUESTIONS
    faults = model.faults(rewrites_questions=agent.rewrites_questions)
    assert (model.rounds, faults) == (QUESTIONS * ROUNDS, [])


INTERRUPTED = ("pi", "opencode @ai-sdk/openai-compatible", "claude code")
"""Qwen Code does not end at Ctrl-C while it waits, and Continue forgets the question that was interrupted."""


@pytest.mark.parametrize("agent", [agent for agent in AGENTS if agent.name in INTERRUPTED], ids=str)
def test_a_session_of_an_agent_that_is_interrupted_while_a_tool_runs(
    app: AppServer, tmp_path: Path, agent: Agent
):
    if not agent.program.exists():
        pytest.skip(f"{agent.program} is not installed")
    gate = Gate()

    async def waits(_: object) -> str:
        await gate()
        return "never"

    app.tools.behaviours["list_cities"] = waits
    model = SessionModel(
        ModelTurn(text="First. ", calls=(tool_call(*agent.own, id="call_0"),)),
        ModelTurn(text="Answer 0."),
        ModelTurn(text="Then. ", calls=(tool_call("get_weather", '{"city":"Paris"}', id="call_0"),)),
        ModelTurn(text="Slow. ", calls=(tool_call("list_cities", "{}", id="call_0"),)),
        ModelTurn(text="Answer 2."),
        own=agent.own[0],
    )
    app.set_replies()
    app.upstream.answer = model.answer
    agent.set_up(tmp_path, app.url)
    agent.says(tmp_path, app.url, "Question 0?", again=False)
    agent.interrupt(tmp_path, app.url, "Question 1?", gate)
    app.tools.departures.wait()
    assert "Answer 2." in agent.says(tmp_path, app.url, "Question 2?", again=True)
    faults = model.faults(rewrites_questions=agent.rewrites_questions)
    assert (model.rounds, faults) == (5, [])


@pytest.mark.parametrize("websockets", [False, True], ids=["stream", "websocket"])
def test_a_session_of_codex_that_is_taken_up_again_and_again(
    app: AppServer, tmp_path: Path, websockets: bool
):
    model = session(app, ("exec_command", '{"cmd":"echo forty-two"}'), thinks=True)
    codex = Codex(tmp_path, app.url, websockets=websockets)
    for number in range(QUESTIONS):
        told = codex.says(f"Question {number}?", *(("resume", "--last") if number else ()))
        texts = [item["text"].strip() for item in told if item["type"] == "agent_message"]
        assert texts == [f"First {number}.", f"Mine {number}.", f"Answer {number}."]
        assert re.findall(r"forty-two", str(told))
    assert len(app.tools.calls) == 3 * QUESTIONS
    assert (model.rounds, model.faults()) == (QUESTIONS * ROUNDS, [])
