"""The loop: who runs what, what the model is told, and how it ends."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from tests.unit.engine.scripted_model import InMemorySource, ScriptedModel, call, echo, run_loop, says
from toolway.conversation.events import CallBegan, CallEnded, Chunks, RoundBegan
from toolway.types import JSON, ToolResult

CLIENTS_TOOL = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}


def tool_names(request: JSON) -> list[str]:
    return [tool["function"]["name"] for tool in request.get("tools", ())]


async def test_an_answer_without_calls_ends_the_loop():
    model = ScriptedModel(says("Hello"))
    outcome, events = await run_loop(model)
    assert outcome.message.fields["content"] == "Hello"
    assert (outcome.rounds, outcome.calls) == (1, 0)
    assert events == [RoundBegan(number=1)]


async def test_a_call_is_run_and_its_result_goes_back_to_the_model():
    model = ScriptedModel(says("Let me see.", call(), reasoning_content="hm"), says("Cloudy."))
    outcome, events = await run_loop(model)
    _, second = model.requests
    assert second["messages"] == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "echo", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": 'echo {"city":"Paris"}'},
    ]
    assert outcome.message.fields["content"] == "Cloudy."
    assert [type(event) for event in events] == [
        RoundBegan,
        CallBegan,
        CallEnded,
        RoundBegan,
    ]


async def test_a_missing_content_is_replayed_as_an_empty_string():
    model = ScriptedModel(says(None, call()), says("Done"))
    await run_loop(model)
    assert model.requests[1]["messages"][1]["content"] == ""


async def test_calls_of_one_turn_run_side_by_side_and_their_results_keep_the_order():
    second_done = anyio.Event()

    async def waits_for_the_other(_: JSON) -> ToolResult:
        await second_done.wait()
        return ToolResult(text="first")

    async def frees_the_other(_: JSON) -> ToolResult:
        second_done.set()
        return ToolResult(text="second")

    model = ScriptedModel(says(None, call("one", id="1"), call("two", id="2")), says("Done"))
    with anyio.fail_after(60):
        await run_loop(model, InMemorySource(one=waits_for_the_other, two=frees_the_other))
    assert [m["content"] for m in model.requests[1]["messages"][2:]] == ["first", "second"]


async def test_a_call_of_the_clients_own_tool_goes_back_to_the_client():
    model = ScriptedModel(says(None, call("theirs"), finish="tool_calls"))
    outcome, events = await run_loop(model, tools=[CLIENTS_TOOL])
    assert [c.name for c in outcome.message.tool_calls] == ["theirs"]
    assert outcome.message.finish_reason == "tool_calls"
    assert not any(isinstance(event, CallBegan) for event in events)


async def test_the_clients_tools_come_first_and_its_names_win():
    model = ScriptedModel(says("Hi"))
    own_echo = {"type": "function", "function": {"name": "echo"}}
    await run_loop(model, InMemorySource(echo=echo, alpha=echo), tools=[CLIENTS_TOOL, own_echo])
    assert tool_names(model.requests[0]) == ["theirs", "echo", "alpha"]


async def test_an_unknown_tool_is_an_error_that_names_the_closest_ones():
    model = ScriptedModel(says(None, call("ecko")), says("Sorry"))
    await run_loop(model)
    assert "Did you mean echo?" in model.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("written", "replayed"), [("", "{}"), ("{bad", "{}"), ('"{\\"city\\": \\"x\\"}"', '{"city":"x"}')]
)
async def test_arguments_are_replayed_as_an_object(written: str, replayed: str):
    model = ScriptedModel(says(None, call(arguments=written)), says("Done"))
    await run_loop(model)
    assert model.requests[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == replayed


async def test_broken_arguments_are_not_run():
    model = ScriptedModel(says(None, call(arguments="{bad")), says("Done"))
    await run_loop(model)
    assert model.requests[1]["messages"][-1]["content"].startswith("Error: the arguments of echo")


async def test_arguments_that_do_not_fit_the_schema_are_not_run():
    model = ScriptedModel(says(None, call(arguments='{"city": 3}')), says("Done"))
    outcome, _ = await run_loop(model)
    assert "city" in model.requests[1]["messages"][-1]["content"]
    assert outcome.message.fields["content"] == "Done"


@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_a_turn_that_was_cut_short_runs_nothing(finish: str):
    outcome, events = await run_loop(ScriptedModel(says("Well", call(), finish=finish)))
    assert outcome.message.finish_reason == finish
    assert outcome.message.tool_calls == ()
    assert not any(isinstance(event, CallBegan) for event in events)


@pytest.mark.parametrize("finish", ["stop", "TOOL_CALLS", "function_call"])
async def test_a_tool_turn_is_known_by_its_calls_not_by_its_finish(finish: str):
    outcome, _ = await run_loop(ScriptedModel(says(None, call(), finish=finish), says("Done")))
    assert outcome.calls == 1


@pytest.mark.parametrize(
    ("choice", "later"),
    [
        ("required", "auto"),
        ({"type": "function", "function": {"name": "echo"}}, "auto"),
        ("auto", "auto"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"name": "echo"}]}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "echo"}]}},
        ),
    ],
)
async def test_a_forced_call_holds_for_the_first_round_only(choice: object, later: object):
    model = ScriptedModel(says(None, call()), says("Done"))
    await run_loop(model, tool_choice=choice)
    assert [request["tool_choice"] for request in model.requests] == [choice, later]


async def test_tool_choice_none_injects_nothing_and_runs_nothing():
    model = ScriptedModel(says(None, call()), says("Then in words."))
    outcome, events = await run_loop(model, tool_choice="none", parallel_tool_calls=False)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(model.requests[0])
    assert (outcome.message.tool_calls, outcome.message.fields["content"]) == ((), "Then in words.")
    assert [event.tool for event in events if isinstance(event, CallBegan)] == [None]
    assert "no tool named 'echo'" in model.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "tools", [None, [], [CLIENTS_TOOL]], ids=["no tools", "an empty list", "the client's"]
)
async def test_a_call_that_nobody_declared_never_reaches_the_client(tools: list[JSON] | None):
    gone = InMemorySource(echo=echo)
    gone.status = replace(
        gone.status, state="failed", tools=tuple(replace(tool, available=False) for tool in gone.status.tools)
    )
    model = ScriptedModel(says(None, call()), says(None, call("elsewhere")), says("Without it, then."))
    outcome, _ = await run_loop(model, gone, tools=tools)
    assert (outcome.message.tool_calls, outcome.message.fields["content"]) == ((), "Without it, then.")
    told = [m["content"] for m in model.requests[-1]["messages"] if m["role"] == "tool"]
    assert "its server is away" in told[0]
    assert "no tool named 'elsewhere'" in told[1]


@pytest.mark.parametrize("choice", ["auto", "required", "none"])
async def test_nothing_that_stands_beside_tools_is_left_when_there_are_none(choice: str):
    model = ScriptedModel(says("Hi"))
    source = InMemorySource()
    await run_loop(model, source, tools=[], tool_choice=choice, parallel_tool_calls=False)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(model.requests[0])


@pytest.mark.parametrize("finish", ["tool_calls", "function_call"])
async def test_a_finish_reason_of_calls_without_calls_is_a_stop(finish: str):
    outcome, _ = await run_loop(ScriptedModel(says("Hm.", finish=finish)))
    assert outcome.message.finish_reason == "stop"


async def test_a_client_of_the_old_functions_gets_no_tools_beside_them():
    model = ScriptedModel(says("Hi"))
    await run_loop(model, functions=[{"name": "theirs"}])
    assert "tools" not in model.requests[0]


async def test_allowed_tools_are_a_hard_filter():
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "one"}]}}
    model = ScriptedModel(says("Hi"))
    await run_loop(model, InMemorySource(one=echo, two=echo), tool_choice=choice)
    assert tool_names(model.requests[0]) == ["one"]


async def test_nothing_is_added_that_the_client_did_not_send():
    model = ScriptedModel(says("Hi"))
    await run_loop(model, InMemorySource(), temperature=0.5, vendor={"x": 1})
    assert model.requests[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "vendor": {"x": 1},
    }


async def test_the_limit_of_rounds_ends_in_an_answer():
    model = ScriptedModel(
        says(None, call()), says(None, call()), says(None, call()), says("What I know so far.")
    )
    outcome, _ = await run_loop(model, max_rounds=2, tool_choice="auto", parallel_tool_calls=True)
    assert outcome.message.fields["content"] == "What I know so far."
    assert outcome.calls == 2
    last = model.requests[-1]
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(last)
    assert "limit of 2 rounds" in last["messages"][-1]["content"]


async def test_withdrawing_our_tools_leaves_the_clients():
    model = ScriptedModel(says(None, call()), says(None, call()), says("Enough."))
    await run_loop(model, max_rounds=1, tools=[CLIENTS_TOOL])
    assert tool_names(model.requests[-1]) == ["theirs"]


async def test_a_model_that_calls_for_ever_still_ends():
    model = ScriptedModel(says(None, call()), forever=True)
    outcome, events = await run_loop(model, max_rounds=3)
    assert len(model.requests) == 5
    assert outcome.message.tool_calls == ()
    assert outcome.message.finish_reason == "stop"
    assert "limit of 3 rounds" in outcome.message.fields["content"]
    assert isinstance(events[-1], Chunks)


async def test_when_the_time_is_up_no_further_call_is_run():
    model = ScriptedModel(says(None, call()), says("Done"))
    outcome, events = await run_loop(model, max_seconds=0.0)
    assert outcome.message.fields["content"] == "Done"
    assert not any(isinstance(event, CallBegan) for event in events)


async def test_a_tool_that_does_not_answer_is_given_up():
    async def never(_: JSON) -> ToolResult:
        await anyio.sleep_forever()
        raise AssertionError

    model = ScriptedModel(says(None, call("slow")), says("Done"))
    with anyio.fail_after(60):
        await run_loop(model, InMemorySource(slow=never), tool_timeout=0.05)
    assert "did not answer in time" in model.requests[1]["messages"][-1]["content"]


async def test_a_mixed_turn_runs_ours_and_hands_back_theirs():
    model = ScriptedModel(says("Both", call("echo", id="a"), call("theirs", id="b")))
    outcome, _ = await run_loop(model, tools=[CLIENTS_TOOL])
    assert len(model.requests) == 1
    assert [c.id for c in outcome.message.tool_calls] == ["b"]
    assert outcome.message.finish_reason == "tool_calls"
    full, result = outcome.split_turn
    assert [c["id"] for c in full["tool_calls"]] == ["a", "b"]
    assert result == {"role": "tool", "tool_call_id": "a", "content": 'echo {"city":"Paris"}'}


async def test_a_long_result_is_cut_and_says_so():
    async def long(_: JSON) -> ToolResult:
        return ToolResult(text="a" * 5000 + "z")

    model = ScriptedModel(says(None, call("long")), says("Done"))
    await run_loop(model, InMemorySource(long=long))
    content = model.requests[1]["messages"][-1]["content"]
    assert content.startswith("a" * 600)
    assert content.endswith("z")
    assert "4,001 of 5,001 characters left out" in content


async def test_an_empty_result_and_a_lone_surrogate_reach_the_model_as_text():
    async def nothing(_: JSON) -> ToolResult:
        return ToolResult(text="")

    async def odd(_: JSON) -> ToolResult:
        return ToolResult(text="half \ud800")

    model = ScriptedModel(says(None, call("nothing", id="1"), call("odd", id="2")), says("Done"))
    await run_loop(model, InMemorySource(nothing=nothing, odd=odd))
    contents = [message["content"] for message in model.requests[1]["messages"][2:]]
    assert contents == ["(the tool returned nothing)", "half \ufffd"]


async def test_usage_is_that_of_the_last_round_and_the_sum_stands_beside_it():
    first = replace(says(None, call()), usage={"total_tokens": 3})
    model = ScriptedModel(first, replace(says("Done"), usage={"total_tokens": 4}))
    outcome, _ = await run_loop(model)
    assert outcome.usage == {"total_tokens": 4, "toolway": {"rounds": 2, "total_tokens": 7}}
    assert outcome.total_usage == {"total_tokens": 7}
