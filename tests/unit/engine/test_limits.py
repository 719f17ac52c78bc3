"""When a loop ends, and what the model is told before."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.engine.scripted_model import InMemorySource, ScriptedModel, call, echo, run_loop, says
from toolway.conversation.events import CallBegan
from toolway.engine.limits import Limits, LoopLimits
from toolway.types import JSON, ToolCall, ToolResult


def loop_limits(**limits: float) -> LoopLimits:
    free = {"max_rounds": 99, "max_calls": 99, "max_seconds": 99, "max_repeats": 3, "max_similar": 5}
    return LoopLimits(Limits(**{**free, **limits}))


def lets_run(watch: LoopLimits, one: ToolCall, result: str) -> bool:
    """Play one round with one call; whether it was run."""
    assert watch.stop_reason(1, [one]) is None
    if watch.check_calls([one]) != [None]:
        return False
    watch.record(one, ToolResult(text=result))
    return True


def test_the_same_call_with_the_same_result_is_run_three_times():
    watch = loop_limits()
    texts = ['{"a":1,"b":2}', '{"b": 2, "a": 1}', '{"a": 1,\n"b": 2}', '{"a":1,"b":2}']
    assert [lets_run(watch, call(arguments=text), "same") for text in texts] == [True, True, True, False]


def test_a_model_that_does_not_listen_is_ended():
    watch = loop_limits()
    assert [lets_run(watch, call(), "same") for _ in range(4)] == [True, True, True, False]
    assert watch.stop_reason(5, [call("other")]) is None
    assert "again and again" in (watch.stop_reason(5, [call()]) or "")


def test_waiting_for_a_result_that_changes_is_no_repetition():
    watch = loop_limits(max_similar=50)
    assert all(lets_run(watch, call(), f"{n} of 20 files are copied") for n in range(20))


def test_almost_the_same_calls_with_almost_the_same_results_are_a_repetition():
    watch = loop_limits()
    asked = [call(arguments=f'{{"query": "weather in Paris {n}"}}') for n in range(6)]
    assert [lets_run(watch, one, "nothing found") for one in asked] == [True] * 5 + [False]
    assert watch.stop_reason(7, [call(arguments='{"query": "weather in Paris 99"}')])
    assert watch.stop_reason(7, [call(arguments='{"query": "a hotel by the sea"}')]) is None


def test_a_repetition_with_another_tool_in_between_is_one_too():
    watch = loop_limits(max_similar=4)
    ran = []
    for n in range(5):
        ran.append(lets_run(watch, call("search", f'{{"query": "weather in Paris {n}"}}'), "nothing found"))
        lets_run(watch, call("note", f'{{"text": "{"abcdefgh"[n] * 20}"}}'), f"{n * 997}")
    assert ran == [True] * 4 + [False]


def test_reading_many_files_or_pages_is_no_repetition():
    watch = loop_limits()
    for n in range(20):
        page = f"page {n}: " + " ".join(str(hash((n, m))) for m in range(30))
        assert lets_run(watch, call("read", f'{{"path": "/data/part-{n}.csv"}}'), page)


def test_the_limit_of_calls_counts_those_that_run():
    watch = loop_limits(max_calls=3)
    verdicts = watch.check_calls([call(arguments=f'{{"n": {n}}}', id=str(n)) for n in range(5)])
    assert [verdict is None for verdict in verdicts] == [True, True, True, False, False]
    assert "limit of 3 tool calls" in (watch.stop_reason(2, [call()]) or "")


async def test_beyond_the_limit_of_calls_the_model_answers():
    messages = [
        says(None, *(call(id=f"{n}{m}", arguments=f'{{"city": "{m}"}}') for m in range(3))) for n in range(3)
    ]
    model = ScriptedModel(*messages, says("So far."))
    outcome, events = await run_loop(model, max_calls=4)
    assert outcome.message.fields["content"] == "So far."
    assert sum(isinstance(event, CallBegan) for event in events) == 4
    assert "tools" not in model.requests[-1]
    contents = [m["content"] for m in model.requests[-1]["messages"] if m["role"] == "tool"]
    assert [content.startswith("Error: not run: the limit") for content in contents] == [False] * 4 + [
        True
    ] * 5


async def test_a_loop_over_one_call_is_told_and_then_ended_with_an_answer():
    model = ScriptedModel(*[says(None, call(id=str(n))) for n in range(5)], says("I know enough."))
    outcome, events = await run_loop(model, max_repeats=3)
    assert outcome.message.fields["content"] == "I know enough."
    assert sum(isinstance(event, CallBegan) for event in events) == 3
    told = model.requests[4]["messages"][-1]["content"]
    assert "exactly these arguments" in told
    assert "tools" in model.requests[4]
    assert "tools" not in model.requests[5]


async def test_a_loop_with_varied_arguments_ends_too():
    numbers = itertools.count()

    async def nothing(_: JSON) -> ToolResult:
        return ToolResult(text="no results")

    class Stubborn(ScriptedModel):
        async def answer(self, request, emit, is_clients):
            self.requests.append(body := request.body())
            if "tools" not in body:
                return says("I give up.")
            return says(
                None, call("search", f'{{"city": "try number {next(numbers)}"}}', id=str(next(numbers)))
            )

    outcome, events = await run_loop(Stubborn(), InMemorySource(search=nothing), max_similar=4, max_rounds=50)
    assert outcome.message.fields["content"] == "I give up."
    assert sum(isinstance(event, CallBegan) for event in events) == 4


@pytest.mark.parametrize("limit", [0, 1])
async def test_a_limit_of_no_rounds_still_gives_an_answer(limit: int):
    model = ScriptedModel(*[says(None, call())] * (limit + 1), says("Done"))
    outcome, _ = await run_loop(model, InMemorySource(echo=echo), max_rounds=limit)
    assert (outcome.message.fields["content"], outcome.calls) == ("Done", limit)
