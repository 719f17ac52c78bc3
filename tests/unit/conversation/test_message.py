"""Chunks of sloppy servers -> one clean message; what the client sees of them on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.conversation.message import MessageBuilder, add_usage, read_answer
from toolway.conversation.tool_calls import CallAssembler, read_arguments
from toolway.errors import UpstreamError
from toolway.types import JSON


def chunk(finish: str | None = None, **delta: Any) -> JSON:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def fragment(index: int | None = 0, id: str | None = None, name: str | None = None, args: Any = None) -> JSON:
    made: JSON = {} if index is None else {"index": index}
    if id is not None:
        made["id"] = id
    made["function"] = {k: v for k, v in (("name", name), ("arguments", args)) if v is not None}
    return made


def calls_of(*fragments: JSON) -> list[tuple[str, str]]:
    assembler = CallAssembler()
    for one in fragments:
        assembler.feed([one])
    return [(call.name, call.arguments) for call in assembler.finished()]


PARIS, ROME = '{"city":"Paris"}', '{"city":"Rome"}'


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        ([fragment(0, "a", "f", ""), fragment(0, args='{"x'), fragment(0, args='":1}')], [("f", '{"x":1}')]),
        ([fragment(0, "a", "f", PARIS), fragment(0, "b", "f", ROME)], [("f", PARIS), ("f", ROME)]),
        ([fragment(0, None, "f", PARIS), fragment(0, None, "f", ROME)], [("f", PARIS), ("f", ROME)]),
        ([fragment(None, "a", "f", PARIS), fragment(None, "b", "f", ROME)], [("f", PARIS), ("f", ROME)]),
        ([fragment(None, None, "f", PARIS), fragment(None, None, "g", ROME)], [("f", PARIS), ("g", ROME)]),
        ([fragment(None, None, "f", PARIS), fragment(None, None, "f", ROME)], [("f", PARIS), ("f", ROME)]),
        ([fragment(None, "a", "f", '{"x'), fragment(None, args='":1}')], [("f", '{"x":1}')]),
        ([fragment(0, "a", "f", '{"x'), fragment(0, "a", "f", '":1}')], [("f", '{"x":1}')]),
        ([fragment(0, "a", "f", '{"x'), fragment(0, "", "", '":1}')], [("f", '{"x":1}')]),
        ([fragment(0, None, "f", '{"x'), fragment(0, None, "f", '":1}')], [("f", '{"x":1}')]),
        (
            [fragment(0, None, "f", PARIS), fragment(0, args=""), fragment(0, None, "f", ROME)],
            [("f", PARIS), ("f", ROME)],
        ),
        ([fragment(1, "a", "f", PARIS), fragment(3, "b", "g", ROME)], [("f", PARIS), ("g", ROME)]),
        (
            [fragment(0, "a", "f", '{"x'), fragment(1, "b", "g", "{"), fragment(0, args='":1}'), fragment(1, args="}")],
            [("f", '{"x":1}'), ("g", "{}")],
        ),
        (
            [fragment(None, "a", "f", '{"x'), fragment(None, "b", "g", "{"), fragment(None, "a", None, '":1}')],
            [("f", '{"x":1}'), ("g", "{")],
        ),
        # An id for each fragment: what has no name goes on with the call that is not whole.
        ([fragment(0, "a", "f", ""), fragment(0, "b", None, '{"x'), fragment(0, "c", "", '":1}')], [("f", '{"x":1}')]),
        ([fragment(0, "a", "f"), fragment(0, "b", None, '{"x'), fragment(0, "b", None, '":1}')], [("f", '{"x":1}')]),
        (
            [fragment(0, "a", "f", "{"), fragment(1, "b", "g", "{"), fragment(0, "c", None, "}"),
             fragment(1, "d", None, "}")],
            [("f", "{}"), ("g", "{}")],
        ),
        (
            [fragment(0, "a", "f", ""), fragment(0, "b", None, PARIS), fragment(0, "c", "f", ""),
             fragment(0, "d", None, ROME)],
            [("f", PARIS), ("f", ROME)],
        ),
        ([fragment(None, "a", "f", '{"x'), fragment(None, "b", None, '":1}')], [("f", '{"x":1}')]),
        ([fragment(0, "a", "f", PARIS), fragment(0, "b", None, "\n"), fragment(0, "c", None, "")], [("f", PARIS)]),
        # Another id is another call where there is a name, or nothing is left to go on with.
        ([fragment(0, "a", "f", '{"x'), fragment(0, "b", "f", ROME)], [("f", '{"x'), ("f", ROME)]),
        ([fragment(0, "a", "f", PARIS), fragment(0, "b"), fragment(0, None, "f", ROME)], [("f", PARIS), ("f", ROME)]),
        (
            [fragment(0, "a", "f"), fragment(0, "b", "g"), fragment(0, "a", None, PARIS), fragment(0, "b", None, ROME)],
            [("f", PARIS), ("g", ROME)],
        ),
        ([fragment(0, "a"), fragment(0, None, "f", "{}")], [("f", "{}")]),
        ([fragment(0, "a", "f", {"city": "Paris"})], [("f", PARIS)]),
        ([fragment(0, "a", "f")], [("f", "")]),
        ([{"index": 0, "id": "a", "function": None}, fragment(0, None, "f", "{}")], [("f", "{}")]),
        ([fragment(0, "a", "f", "{}"), {"index": 0, "id": None, "function": {"name": None, "arguments": None}}],
         [("f", "{}")]),
    ],
)  # fmt: skip
def test_a_fragment_finds_its_call(fragments: list[JSON], calls: list[tuple[str, str]]):
    assert calls_of(*fragments) == calls


def test_ids_stay_and_are_made_only_where_missing_or_doubled():
    assembler = CallAssembler()
    assembler.feed(
        [fragment(0, "call_1", "f", "{}"), fragment(1, "call_1", "g", "{}"), fragment(2, None, "h", "{}")]
    )
    first, second, third = (call.id for call in assembler.finished())
    assert first == "call_1"
    assert len({first, second, third}) == 3
    assert all(len(made) == 9 and made.isalnum() for made in (second, third))


def test_unknown_members_of_a_call_are_kept_for_the_replay():
    assembler = CallAssembler()
    assembler.feed([{**fragment(0, "a", "f", "{}"), "extra_content": {"google": {"thought_signature": "s"}}}])
    assert assembler.finished()[0].extra == {"extra_content": {"google": {"thought_signature": "s"}}}


def build(*chunks: JSON, theirs: tuple[str, ...] = ()) -> tuple[MessageBuilder, list[JSON | None]]:
    builder = MessageBuilder(lambda name: name in theirs)
    return builder, [builder.feed(one) for one in chunks]


def test_text_passes_as_the_same_object():
    one = chunk(content="Hello")
    builder, seen = build(one)
    assert seen[0] is one
    assert builder.message().fields == {"role": "assistant", "content": "Hello"}


def test_our_calls_the_finish_and_the_usage_stay_here():
    builder, seen = build(
        chunk(role="assistant", content=None),
        chunk(tool_calls=[fragment(0, "a", "f", PARIS)]),
        chunk(finish="tool_calls"),
        {"id": "c", "choices": [], "usage": {"total_tokens": 5}},
    )
    assert seen[1:] == [None, None, None]
    message = builder.message()
    assert [(call.id, call.name) for call in message.tool_calls] == [("a", "f")]
    assert message.usage == {"total_tokens": 5}
    assert message.finish_reason == "tool_calls"


def test_text_beside_a_call_passes_without_the_call():
    _, seen = build(
        chunk(content="Look:", tool_calls=[fragment(0, "a", "f", PARIS)], function_call={"name": "f"})
    )
    assert seen == [chunk(content="Look:")]


def test_text_in_the_finish_chunk_passes_without_the_finish():
    _, seen = build({**chunk(finish="stop", content="Bye"), "usage": {"total_tokens": 5}})
    assert seen == [chunk(content="Bye")]


def test_the_clients_calls_pass_clean_and_numbered_from_zero():
    _, seen = build(
        chunk(tool_calls=[fragment(1, "a", "ours", "{}")]),
        chunk(tool_calls=[fragment(2, None, "theirs", {"x": 1})]),
        chunk(tool_calls=[fragment(2, None, "theirs", "")]),
        chunk(tool_calls=[fragment(3, "b", "theirs", '{"x"')]),
        chunk(tool_calls=[fragment(3, "b", "theirs", ":2}")]),
        theirs=("theirs",),
    )
    passed = [one["choices"][0]["delta"]["tool_calls"][0] for one in seen if one]
    assert passed[0].pop("id").isalnum()
    assert passed == [
        {"index": 0, "type": "function", "function": {"name": "theirs", "arguments": '{"x":1}'}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "theirs", "arguments": '{"x"'}},
        {"index": 1, "function": {"arguments": ":2}"}},
    ]


def test_a_call_is_held_until_its_name_is_known():
    _, seen = build(
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"arguments": "{"}}]),
        chunk(tool_calls=[fragment(0, None, "theirs", "}")]),
        theirs=("theirs",),
    )
    assert seen[0] is None
    assert seen[1]["choices"][0]["delta"]["tool_calls"][0]["function"] == {
        "name": "theirs",
        "arguments": "{}",
    }


def test_a_custom_tool_call_of_the_clients_keeps_its_shape():
    builder, seen = build(
        chunk(
            tool_calls=[{"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": "SEL"}}]
        ),
        chunk(tool_calls=[{"index": 0, "custom": {"input": "ECT"}}]),
        theirs=("sql",),
    )
    assert [one["choices"][0]["delta"]["tool_calls"][0] for one in seen] == [
        {"index": 0, "id": "a", "type": "custom", "custom": {"name": "sql", "input": "SEL"}},
        {"index": 0, "custom": {"input": "ECT"}},
    ]
    assert builder.message().tool_calls[0].extra["custom"] == {"name": "sql", "input": "SELECT"}


def test_a_running_total_of_usage_counts_once():
    builder, seen = build(
        {**chunk(content="a"), "usage": {"total_tokens": 1}},
        {**chunk(content="b"), "usage": {"total_tokens": 2}},
    )
    assert seen == [chunk(content="a"), chunk(content="b")]
    assert builder.message().usage == {"total_tokens": 2}


@pytest.mark.parametrize("odd", [{"id": "c"}, {"choices": None}, {"choices": []}, {"choices": [None]}])
def test_chunks_without_choices_say_nothing(odd: JSON):
    assert build(odd)[1] == [None]


def test_a_null_delta_is_an_empty_one():
    _, seen = build({"choices": [{"index": 0, "delta": None}]}, {"choices": [{"index": 0}]})
    assert [one["choices"][0]["delta"] for one in seen] == [{}, {}]


def test_unknown_members_of_a_chunk_without_choices_pass():
    assert build({"id": "", "choices": [], "prompt_filter_results": [1]})[1] == [
        {"id": "", "choices": [], "prompt_filter_results": [1]}
    ]


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "boom", "code": 500}},
        {"error": "boom"},
        {**chunk(finish="error"), "error": "boom"},
    ],
)
def test_an_error_in_the_stream_is_raised_with_its_message(error: JSON):
    with pytest.raises(UpstreamError, match="boom"):
        build(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["choices", "delta", "tool_calls", "function", "name", "arguments", "index", "id", "content",
                         "finish_reason", "usage", "error", "custom", "input", "message", "reasoning_details"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(
    st.lists(st.dictionaries(st.sampled_from(["choices", "usage", "error", "id"]), json_values), max_size=4)
)
def test_any_chunks_make_a_message_or_an_upstream_error(chunks: list[JSON]):
    builder = MessageBuilder(lambda name: len(name) % 2 == 0)
    try:
        for one in chunks:
            builder.feed(one)
    except UpstreamError:
        return
    json.dumps(builder.message().fields)


@given(st.dictionaries(st.sampled_from(["choices", "usage", "error", "id"]), json_values))
def test_any_whole_answer_is_a_message_or_an_upstream_error(answer: JSON):
    try:
        read_answer(answer)
    except UpstreamError:
        pass


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}), ("  ", {}), ("null", {}), ('""', {}), ("{}", {}), ('{"a": 1}', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("[1]", None), ("1", None), ('"hello"', None), ('{"a": ', None), ("NaN", None),
    ],
)  # fmt: skip
def test_arguments_are_an_object_or_nothing(text: str, arguments: JSON | None):
    assert read_arguments(text) == arguments


def test_usage_is_summed_member_by_member():
    one = {
        "prompt_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 2, "x": None},
        "cost": 0.5,
        "tier": "a",
    }
    two = {
        "prompt_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
        "cost": 0.25,
        "tier": "b",
        "new": 1,
    }
    assert add_usage(add_usage(None, one), two) == {
        "prompt_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 6, "x": None},
        "cost": 0.75,
        "tier": "b",
        "new": 1,
    }


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "content": "Hi", "tool_calls": [], "function_call": None},
         {"role": "assistant", "content": "Hi"}),
        ({"tool_calls": None, "reasoning_content": "hm"}, {"role": "assistant", "reasoning_content": "hm"}),
    ],
)  # fmt: skip
def test_a_whole_message_is_replayed_without_nulls(message: JSON, said: JSON):
    read = read_answer({"choices": [{"message": message, "finish_reason": "stop"}]})
    assert {k: v for k, v in read.fields.items() if k != "tool_calls"} == said
    assert not read.tool_calls
