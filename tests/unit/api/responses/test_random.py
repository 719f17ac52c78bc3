"""Random conversations: told in valid events, in one piece as in many, and read back as they were."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzz import slow
from tests.support.responses import check_events
from tests.unit.api.responses.golden_runner import TOOL, chunk, fragment, writer_of
from tests.unit.api.responses.test_mutated import assert_messages, assert_served, messages_of
from toolway.api.fields import text_in
from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.request import choice_of, needs_approval, read_request
from toolway.api.responses.items.response_object import Event
from toolway.conversation.message import Message, MessageBuilder
from toolway.errors import InvalidRequest, UpstreamError
from toolway.types import JSON, ToolCall, ToolResult

TOOLS = [
    {"type": "function", "name": "f"},
    {"type": "custom", "name": "sql"},
    {"type": "mcp", "server_label": "calc", "require_approval": "never"},
]
CLIENTS = frozenset({"f", "sql"})

texts = st.text(alphabet='ab é😀\n"\\\u2028', min_size=1, max_size=6)
halves = st.text(alphabet="a\ud83d\ude00", max_size=3)
logprobs = st.none() | st.fixed_dictionaries(
    {
        "content": st.lists(
            st.fixed_dictionaries({"token": halves, "logprob": st.none() | st.floats()}), max_size=2
        )
    }
)
contents = (
    halves
    | st.none()
    | st.lists(
        st.one_of(
            st.builds(lambda text: {"type": "text", "text": text}, halves),
            st.builds(
                lambda text: {"type": "thinking", "thinking": [{"type": "text", "text": text}]}, halves
            ),
            st.just({"type": "reference"}),
        ),
        max_size=2,
    )
)
fragments = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(0, 2) | st.none(),
        "id": st.sampled_from(["a", "b", "\ud83d", "", None]),
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["f", "sql", "add", "", None]),
                "arguments": st.sampled_from(["", "{", "}", '{"input":', '"\ud83d', None, {"input": 1}]),
            },
        ),
    },
)
deltas = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": contents,
        "reasoning": halves,
        "reasoning_content": contents,
        "refusal": halves,
        "tool_calls": st.lists(fragments, max_size=2) | fragments | st.none(),
    },
)
choices = st.fixed_dictionaries(
    {"delta": deltas | st.none()},
    optional={
        "logprobs": logprobs,
        "finish_reason": st.sampled_from([None, "", "stop", "tool_calls", "length", "content_filter"]),
    },
)


@given(st.lists(choices, max_size=12), st.booleans())
def test_any_chunks_are_told_in_valid_events(sent: list[JSON], fails: bool):
    builder, writer, events = (
        MessageBuilder(CLIENTS.__contains__),
        writer_of({"input": "Hi", "tools": TOOLS}),
        [],
    )
    events += writer.began()
    for choice in sent:
        visible = builder.feed({"model": "m", "choices": [choice]})
        events += writer.chunks([(visible, None)] if visible else [])
    message = builder.message()
    events += writer.failed(UpstreamError("It broke.")) if fails else writer.ended(message, message.usage)
    final = check_events(events)
    for kind, member in (("output_text", "content"), ("refusal", "refusal")):
        assert unhalved(said_in(final, kind)) == unhalved(text_in(message.fields.get(member)))
    made = [item for item in final["output"] if item["type"] in ("function_call", "custom_tool_call")]
    assert [item["name"] for item in made] == [one.name for one in message.tool_calls if one.name in CLIENTS]


def unhalved(text: str) -> str:
    """What is left when halves of characters do not count: one that stands between parts is alone in each."""
    return text.replace("😀", "").replace("\ufffd", "")


def said_in(response: JSON, kind: str) -> str:
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(text_in([part]) for item in messages for part in item["content"] if part["type"] == kind)


@given(st.lists(texts), st.lists(texts), st.lists(texts), st.lists(texts))
def test_whole_and_streamed_are_the_same(
    reasoning: list[str], said: list[str], refusals: list[str], arguments: list[str]
):
    streamed = [{"reasoning": piece} for piece in reasoning]
    streamed += [{"content": piece} for piece in said]
    streamed += [{"refusal": piece} for piece in refusals]
    streamed += [{"tool_calls": [fragment(0, "", "a", "f")]}]
    streamed += [{"tool_calls": [fragment(0, piece)]} for piece in arguments]
    whole = {
        "reasoning": "".join(reasoning),
        "content": "".join(said),
        "refusal": "".join(refusals),
        "tool_calls": [fragment(0, "".join(arguments), "a", "f")],
    }
    assert output_of(streamed) == output_of([whole])


def output_of(deltas: Iterable[JSON]) -> list[JSON]:
    writer = writer_of({"input": "Hi", "tools": TOOLS})
    events = writer.began()
    for delta in deltas:
        events += writer.chunks([chunk(delta)])
    output: list[JSON] = check_events([*events, *writer.ended(Message(fields={}), None)])["output"]
    return output


reasoning = st.none() | texts
rounds = st.lists(
    st.tuples(
        st.just("") | texts, reasoning, st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=2)
    ),
    max_size=2,
)
endings = st.one_of(st.tuples(st.just("text"), texts), st.tuples(st.just("calls"), st.integers(1, 3)))
turns = st.lists(st.tuples(texts, rounds, reasoning, endings), min_size=1, max_size=3)


@given(turns)
def test_what_was_told_is_read_back_as_it_was(conversation: list[Any]):
    """The client keeps all items and sends them back; the model sees the conversation that it had."""
    items: list[JSON] = []
    expected: list[JSON] = []
    for number, (request, before, reasoning, ending) in enumerate(conversation):
        items.append({"role": "user", "content": request})
        expected.append({"role": "user", "content": request})
        told, had, results = Answer(number).make(before, reasoning, ending)
        items += [*told, *results]
        expected += had
    assert nameless(messages_of(items)) == nameless(expected)


class Answer:
    """One response: its output, the messages behind it, and the client's results for its calls."""

    def __init__(self, number: int) -> None:
        self._writer = EventWriter(read_request({"input": "Hi", "tools": TOOLS}), f"resp_{number}")
        self._events: list[Event] = self._writer.began()
        self._had: list[JSON] = []

    def make(
        self, before: list[Any], reasoning: str | None, ending: Any
    ) -> tuple[list[JSON], list[JSON], list[JSON]]:
        for text, idea, calls in before:
            self._round(text, idea, calls)
        kind, what = ending
        results = self._answer(reasoning, what) if kind == "text" else self._call(reasoning, what)
        final = check_events([*self._events, *self._writer.ended(Message(fields={}), None)])
        return final["output"], self._had, results

    def _say(self, reasoning: str | None, text: str) -> JSON:
        for delta in ({"reasoning": reasoning}, {"content": text}):
            self._events += self._writer.chunks([chunk(delta)])
        said: JSON = {"role": "assistant", "content": text}
        self._had.append({**said, "reasoning_content": reasoning} if reasoning else said)
        return self._had[-1]

    def _round(self, text: str, reasoning: str | None, calls: list[tuple[str, bool]]) -> None:
        message = self._say(reasoning, text)
        made = [ToolCall(id=str(n), name="add", arguments='{"a": 1}') for n in range(len(calls))]
        for call, (result, fails) in zip(made, calls, strict=True):
            self._events += self._writer.call_began(call, TOOL)
            self._events += self._writer.call_ended(call, ToolResult(text=result, is_error=fails))
        message["tool_calls"] = [function(call.id, "add", call.arguments) for call in made]
        for call, (result, fails) in zip(made, calls, strict=True):
            text = result.strip() or "(the tool returned nothing)"
            self._had.append(
                {"role": "tool", "tool_call_id": call.id, "content": f"Error: {text}" if fails else text}
            )
        self._events += self._writer.turn_ended()

    def _answer(self, reasoning: str | None, text: str) -> list[JSON]:
        self._say(reasoning, text)
        return []

    def _call(self, reasoning: str | None, count: int) -> list[JSON]:
        message = self._say(reasoning, "")
        names = ["sql" if number % 2 else "f" for number in range(count)]
        arguments = '{"input":"x"}'
        for number, name in enumerate(names):
            begin = fragment(number, arguments, f"call_{number}", name)
            self._events += self._writer.chunks([chunk({"tool_calls": [begin]})])
        message["tool_calls"] = [function(f"call_{n}", name, arguments) for n, name in enumerate(names)]
        self._had += [
            {"role": "tool", "tool_call_id": f"call_{n}", "content": f"result {n}"} for n in range(count)
        ]
        return [
            {"type": "function_call_output", "call_id": f"call_{n}", "output": f"result {n}"}
            for n in range(count)
        ]


def function(identity: str, name: str, arguments: str) -> JSON:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def nameless(messages: list[JSON]) -> list[JSON]:
    """The same messages with the ids of calls counted, since ours have those of their items when they come back."""
    found: list[JSON] = []
    for message in messages:
        changes: JSON = {}
        if "tool_calls" in message:
            changes["tool_calls"] = [{**made, "id": n} for n, made in enumerate(message["tool_calls"])]
            count = 0
        elif message["role"] == "tool":
            changes["tool_call_id"] = count
            count += 1
        found.append({**message, **changes})
    return found


words = st.sampled_from(["a", "b", "", "toolway:SG0u", "toolway:!", "completed", "incomplete"])
odd = st.none() | st.booleans() | st.integers(-1, 2) | words | st.lists(words, max_size=2) | st.just({})
parts = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["input_text", "output_text", "input_image", "input_file", "input_audio", "x", None]
        )
    },
    optional=dict.fromkeys(("text", "image_url", "file_data", "detail", "refusal"), words | odd),
)
KINDS = [
    *(
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ),
    *("mcp_call", "mcp_approval_request", "mcp_approval_response", "mcp_list_tools", "compaction"),
    *("compaction_trigger", "additional_tools", "web_search_call", "ghost_snapshot", "moon_call"),
]
items = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | odd},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "developer", "tool"]),
        "content": words | st.lists(parts, max_size=2) | odd,
        "call_id": words,
        "id": words,
        "name": words,
        "namespace": words | odd,
        "server_label": words,
        "arguments": words | odd,
        "input": words | odd,
        "output": words | st.lists(parts, max_size=2) | odd,
        "error": odd | st.fixed_dictionaries({"content": st.lists(parts) | odd}),
        "approval_request_id": words,
        "approve": st.booleans() | odd,
        "status": words,
        "encrypted_content": words | odd,
    },
)
good_items = st.one_of(
    st.builds(lambda text: {"role": "assistant", "content": text}, words),
    st.builds(lambda text: {"type": "reasoning", "content": [{"text": text}]}, words),
    st.builds(lambda id: {"type": "function_call", "call_id": id, "name": "f", "arguments": ""}, st.sampled_from("ab")),
    st.builds(lambda one: {"type": "function_call_output", "call_id": one, "output": "x"}, st.sampled_from("ab")),
    st.builds(
        lambda one, request: {
            "type": "mcp_call", "id": one, "server_label": "s", "name": "f", "output": "",
            "approval_request_id": request,
        },
        st.sampled_from("cde"),
        st.sampled_from(["r", None]),
    ),
    st.just({"type": "mcp_approval_request", "id": "r", "server_label": "s", "name": "f", "arguments": "{}"}),
    st.builds(lambda yes: {"type": "mcp_approval_response", "approval_request_id": "r", "approve": yes}, st.booleans()),
)  # fmt: skip


@given(st.lists(items, max_size=6) | st.lists(good_items, max_size=10))
def test_any_items_are_a_conversation_or_the_clients_fault(sent: list[JSON]):
    try:
        messages = messages_of(sent)
    except InvalidRequest as error:
        assert error.param
        return
    assert_messages(messages)


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_an_output_may_stand_anywhere_behind_its_call(count: int, any_: Random):
    calls = [
        {"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(count)
    ]
    outputs: list[JSON] = [
        {"type": "function_call_output", "call_id": f"c{n}", "output": f"{n}"} for n in range(count)
    ]
    any_.shuffle(outputs)
    sent: list[JSON] = [{"role": "user", "content": "Go on"}, {"type": "ghost_snapshot"}]
    for output in outputs:
        sent.insert(any_.randint(0, len(sent)), output)
    messages = messages_of([*calls, *sent])
    assert_messages(messages)
    assert [message.get("tool_call_id", message["role"]) for message in messages] == [
        "assistant",
        *(f"c{n}" for n in range(count)),
        "user",
    ]


FIELDS: dict[str, Any] = {
    **dict.fromkeys(["temperature", "top_p", "presence_penalty", "frequency_penalty"], st.floats(0, 2)),
    **dict.fromkeys(["store", "stream", "background", "parallel_tool_calls"], st.booleans()),
    **dict.fromkeys(["user", "instructions", "safety_identifier", "prompt_cache_key", "model"], words),
    **dict.fromkeys(["max_output_tokens", "max_tool_calls", "top_logprobs"], st.integers(0, 3)),
    "service_tier": st.sampled_from(["auto", "flex", "on_demand", ""]),
    "prompt_cache_retention": st.sampled_from(["24h", "in_memory", "forever"]),
    "truncation": st.sampled_from(["auto", "disabled", "middle"]),
    "metadata": st.dictionaries(words, words | odd, max_size=2),
    "reasoning": st.fixed_dictionaries(
        {},
        optional={
            "effort": st.sampled_from(["low", "x"]) | odd,
            "summary": st.sampled_from(["auto", "x"]) | odd,
        },
    ),
    "text": st.fixed_dictionaries(
        {},
        optional={
            "verbosity": st.sampled_from(["low", "x"]) | odd,
            "format": odd
            | st.fixed_dictionaries(
                {"type": st.sampled_from(["text", "json_object", "json_schema"])},
                optional={"name": words | odd, "schema": odd, "strict": odd, "description": odd},
            ),
        },
    ),
    "tool_choice": st.sampled_from(["auto", "none", "required", "x"])
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["function", "custom", "mcp", "allowed_tools"])},
        optional={
            "name": words | odd,
            "server_label": words | odd,
            "mode": st.sampled_from(["auto", "required", "x"]) | odd,
            "tools": st.just([{"type": "function", "name": "f"}]) | odd,
        },
    ),
    "include": st.lists(st.sampled_from(["reasoning.encrypted_content", "message.output_text.logprobs"])),
    "tools": st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["function", "custom", "mcp", "web_search", "namespace"])},
            optional={
                "name": words | odd,
                "server_label": words | odd,
                "parameters": odd,
                "strict": odd,
                "description": odd,
                "defer_loading": odd,
                "tools": odd
                | st.lists(st.sampled_from([{"type": "function", "name": "f"}, {"type": "web_search"}, {}])),
                "format": odd | st.fixed_dictionaries({"type": words, "syntax": words, "definition": words}),
                "server_url": words | odd,
                "headers": odd,
                "allowed_tools": odd | st.fixed_dictionaries({"tool_names": st.lists(words) | odd}),
                "require_approval": st.sampled_from(["always", "never"])
                | odd
                | st.dictionaries(
                    st.sampled_from(["always", "never", "x"]),
                    odd
                    | st.fixed_dictionaries({}, optional={"tool_names": st.lists(words), "read_only": odd}),
                ),
            },
        ),
        max_size=2,
    ),
}
"""What clients send in each field, right or nearly."""


@given(st.fixed_dictionaries({}, optional={name: good | odd for name, good in FIELDS.items()}))
@slow
def test_any_fields_make_a_valid_response_or_name_the_wrong_one(fields: JSON):
    assert_fields(fields)


@pytest.mark.parametrize("name", FIELDS)
def test_null_is_the_default(name: str):
    given, usual = (writer_of({"input": "Hi", **body}).resource for body in ({name: None}, {}))
    assert given == usual


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", ["hot", 1.5, True, [1], {"a": 1}], ids=str)
def test_a_field_of_a_wrong_kind_is_named(name: str, value: Any):
    assert_fields({name: value})


def assert_fields(fields: JSON) -> None:
    try:
        request = read_request({"input": "Hi", **fields})
        choice_of(request, lambda label, name: [f"{label}_{name}"])
    except InvalidRequest as error:
        assert error.param
        assert error.param.partition(".")[0].partition("[")[0] in fields
        return
    assert_served(request, is_checked=True)


@pytest.mark.parametrize(
    ("approval", "asking"),
    [
        (None, "abc"),
        ("always", "abc"),
        ("never", ""),
        ({"never": {"tool_names": ["a"]}}, "bc"),
        ({"never": ["a"]}, "bc"),
        ({"always": {"tool_names": ["a"]}}, "a"),
        ({"always": {"tool_names": ["a"]}, "never": {"tool_names": ["b"]}}, "ac"),
        ({"always": {"tool_names": ["a"]}, "never": None}, "a"),
        ({"never": {"tool_names": ["a"], "read_only": None}}, "bc"),
        ({"never": {"tool_names": ["a"], "read_only": True}}, "abc"),
        ({"never": {"read_only": True}}, "abc"),
        ({"always": {"read_only": False}}, "abc"),
        ({"always": {}}, "abc"),
        ({"never": {}}, "abc"),
    ],
)
def test_a_call_runs_unasked_only_where_the_client_said_so(approval: Any, asking: str):
    entry = {"require_approval": approval}
    assert "".join(name for name in "abc" if needs_approval(entry, name)) == asking
