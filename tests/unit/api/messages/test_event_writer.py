"""What happens in a conversation is told in Anthropic's events: one block at a time, the reason by the blocks."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.messages import check_error, check_message, events_of, read_message
from tests.unit.api.responses.test_random import choices
from toolway.api.messages.content import unsealed
from toolway.api.messages.event_writer import PING, MessageWriter
from toolway.conversation.chunk_template import ChunkTemplate
from toolway.conversation.events import Outcome
from toolway.conversation.message import Message, MessageBuilder
from toolway.errors import UpstreamError
from toolway.types import JSON, Tool, ToolCall, ToolResult

ADD = Tool(name="add", server="calc", description="", parameters={})


def writer(**options: Any) -> MessageWriter:
    return MessageWriter("mock", input_tokens=9, **options)


def chunk(**delta: Any) -> tuple[JSON, None]:
    return {"choices": [{"index": 0, "delta": delta}]}, None


def fragment(index: int, arguments: str, name: str = "") -> JSON:
    begun = {"id": f"call_{index}", "type": "function"} if name else {}
    return {
        "index": index,
        **begun,
        "function": {**({"name": name} if name else {}), "arguments": arguments},
    }


def outcome(finish: str = "stop", **more: Any) -> Outcome:
    frame = {"choices": [{"index": 0, **more.pop("choice", {})}]}
    message = Message(fields={"role": "assistant"}, finish_reason=finish, frame=frame)
    return Outcome(message=message, **more)


def told(made: MessageWriter, *items: tuple[JSON | str, Any], end: Outcome | None = None) -> JSON:
    """The message that the client reads; the object that the writer has is the same."""
    stream = made.began() + b"".join(made.chunks([item]) for item in items) + made.ended(end or outcome())
    message = read_message(stream.decode())
    assert message == check_message(made.message)
    return message


def test_text_is_one_block():
    message = told(writer(), chunk(role="assistant", content=""), chunk(content="Hel"), ("lo", b""))
    assert message["content"] == [{"type": "text", "text": "Hello"}]
    assert (message["stop_reason"], message["model"]) == ("end_turn", "mock")


def test_a_run_of_chunks_is_told_chunk_by_chunk():
    template = ChunkTemplate()
    first = orjson.dumps(chunk(content="a")[0])
    template.learn(orjson.loads(first), first)
    data = b"".join(
        b"data: " + orjson.dumps(chunk(content=word)[0]) + b"\n\n" for word in ("Zürich", " is", " big")
    )
    found = template.run_in(data)
    assert found is not None
    made = writer()
    stream = made.began() + made.chunks(found[0]) + made.ended(outcome())
    deltas = [
        event["delta"]["text"]
        for event in events_of(stream.decode())
        if event["type"] == "content_block_delta"
    ]
    assert deltas == ["Zürich", " is", " big"]
    assert read_message(stream.decode()) == made.message


def test_thoughts_are_seen_by_those_who_ask_for_them():
    items = [
        chunk(reasoning="Where "),
        chunk(reasoning="is it?"),
        chunk(reasoning_details=[{"id": 1}]),
        chunk(content="There."),
    ]
    assert told(writer(), *items)["content"] == [{"type": "text", "text": "There."}]
    thinking, _ = told(writer(thinking="shown"), *items)["content"]
    assert thinking["thinking"] == "Where is it?"
    assert unsealed(thinking["signature"]) == {"member": "reasoning", "reasoning_details": [{"id": 1}]}
    thinking, _ = told(writer(thinking="sealed"), *items)["content"]
    assert thinking["thinking"] == ""
    assert unsealed(thinking["signature"])["thinking"] == "Where is it?"


def test_calls_that_come_mixed_are_told_one_after_the_other():
    pieces = [
        fragment(0, "", "f"),
        fragment(0, '{"a":'),
        fragment(1, '{"b"', "g"),
        fragment(0, "1"),
        fragment(1, ":2}"),
        fragment(0, "}"),
    ]
    message = told(writer(), *(chunk(tool_calls=[piece]) for piece in pieces), chunk(content="Behind."))
    assert [(block["type"], block.get("name"), block.get("input")) for block in message["content"]] == [
        ("tool_use", "f", {"a": 1}),
        ("tool_use", "g", {"b": 2}),
        ("text", None, None),
    ]
    assert message["stop_reason"] == "tool_use"


def test_a_call_that_follows_a_whole_one_is_told_as_it_comes():
    made = writer()
    made.began()
    made.chunks([chunk(tool_calls=[fragment(0, "{}", "f")])])
    events = events_of(made.chunks([chunk(tool_calls=[fragment(1, "{", "g")])]).decode())
    kinds = ["content_block_stop", "content_block_start", "content_block_delta"]
    assert [event["type"] for event in events] == kinds
    assert made.chunks([chunk(tool_calls=[fragment(0, " ")])]) == b""


@pytest.mark.parametrize(
    ("arguments", "input"), [("", {}), (" ", {}), ('"{\\"a\\": 1}"', {"a": 1}), ("null", {}), ("oops", {})]
)
def test_arguments_that_are_no_object_become_one(arguments: str, input: JSON):
    (block,) = told(writer(), chunk(tool_calls=[fragment(0, arguments, "f")]))["content"]
    assert block["input"] == input


def test_what_a_server_adds_to_a_call_is_carried_along():
    call = {**fragment(0, "{}", "f"), "extra_content": {"google": {"thought_signature": "x"}}}
    carried, _ = told(writer(), chunk(tool_calls=[call]))["content"]
    assert unsealed(carried["data"]) == {"calls": {"call_0": {"extra_content": call["extra_content"]}}}


def test_calls_of_servers_that_the_request_names_are_whole_from_the_beginning():
    made = writer(shown={"calc"})
    call = ToolCall(id="call_0", name="calc_add", arguments='{"a":1}')
    stream = made.began() + made.chunks([chunk(content="Look.")])
    begun = made.call_began(call, ADD)
    ended = made.call_ended(call, ADD, ToolResult(text="2"))
    stream += begun + ended + made.chunks([chunk(content="Two.")]) + made.ended(outcome())
    assert b"input_json_delta" not in stream
    text, use, result, last = read_message(stream.decode())["content"]
    assert (use["name"], use["server_name"], use["input"]) == ("add", "calc", {"a": 1})
    assert result["tool_use_id"] == use["id"]
    assert result["content"] == [{"type": "text", "text": "2"}]
    assert (text["text"], last["text"]) == ("Look.", "Two.")


def test_other_calls_of_ours_are_a_ping():
    made = writer(shown={"other"})
    call = ToolCall(id="call_0", name="calc_add", arguments="{}")
    assert made.call_began(call, ADD) == PING
    assert made.call_ended(call, ADD, ToolResult(text="2")) == b""


ENDS = {
    "end_turn": outcome(),
    "max_tokens": outcome("length"),
    "refusal": outcome("content_filter"),
    "pause_turn": outcome(is_paused=True),
    "stop_sequence": outcome(choice={"stop_reason": "END"}),
}


@pytest.mark.parametrize("reason", ENDS)
def test_why_a_message_ends(reason: str):
    message = told(writer(stop_sequences={"END"}), chunk(content="So"), end=ENDS[reason])
    assert message["stop_reason"] == reason


def test_an_answer_without_a_word_has_an_empty_text():
    assert told(writer())["content"] == [{"type": "text", "text": ""}]


def test_what_came_from_a_cache_is_told_apart():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 1},
    }
    assert told(writer(), end=outcome(usage=usage))["usage"] == {
        "input_tokens": 2,
        "cache_creation_input_tokens": 1,
        "cache_read_input_tokens": 7,
        "output_tokens": 2,
    }


def test_a_model_server_that_gives_up_is_an_error():
    made = writer()
    made.began()
    with pytest.raises(UpstreamError, match="network_error"):
        made.ended(outcome("network_error"))
    (event,) = events_of(made.failed(UpstreamError("It broke.")).decode())
    assert check_error(event) == "It broke."


@example(
    [
        {
            "delta": {
                "tool_calls": [{"index": None, "function": {"name": "f"}}, {"function": {"arguments": "}"}}]
            }
        },
        {"delta": {"reasoning": "a"}},
    ],
    False,
    "sealed",
)
@given(st.lists(choices, max_size=12), st.booleans(), st.sampled_from(["off", "shown", "sealed"]))
def test_any_chunks_are_told_in_valid_events(sent: list[JSON], fails: bool, thinking: Any):
    builder, made = MessageBuilder({"f", "sql"}.__contains__), writer(thinking=thinking)
    stream = made.began()
    for choice in sent:
        visible = builder.feed({"model": "m", "choices": [choice]})
        stream += made.chunks([(visible, None)] if visible else [])
    end = Outcome(message=builder.message())
    stream += made.failed(UpstreamError("It broke.")) if fails else made.ended(end)
    message = read_message(stream.decode()) if _is_read(stream) else made.message
    uses = [block["name"] for block in message["content"] if block["type"] == "tool_use"]
    if not fails:
        theirs = [call.name for call in end.message.tool_calls if call.name in ("f", "sql")]
        assert uses == theirs


def _is_read(stream: bytes) -> bool:
    """Whether all arguments are JSON: models write what is none."""
    try:
        read_message(stream.decode())
    except orjson.JSONDecodeError:
        return False
    return True
