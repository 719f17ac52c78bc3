"""Calls that models write as text: the common markups, and what only looks like one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.conversation.text_call_parser import CLOSERS, is_cut_call, may_become_calls, read_calls

TOOLS = {"get_weather", "list_cities", "add"}
PARIS: list[tuple[str, Any]] = [("get_weather", {"city": "Paris"})]
ROME: list[tuple[str, Any]] = [("get_weather", {"city": "Rome"})]
JSON_CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
OTHER_CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'


def is_known(name: str) -> bool:
    return name in TOOLS


def read(text: str) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in read_calls(text, is_known)]


MARKUPS = {
    "hermes": (f"<tool_call>\n{JSON_CALL}\n</tool_call>", PARIS),
    "hermes, two": (f"<tool_call>{JSON_CALL}</tool_call>\n<tool_call>{OTHER_CALL}</tool_call>", PARIS + ROME),
    "hermes, not closed": (f"\n\n<tool_call>\n{JSON_CALL}", PARIS),
    "qwen coder": (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        PARIS,
    ),
    "qwen coder, bare": ("<function=get_weather><parameter=city>Paris</parameter></function>", PARIS),
    "qwen coder, nothing": (
        "<tool_call><function=list_cities></function></tool_call>",
        [("list_cities", {})],
    ),
    "llama, function": ('<function=get_weather>{"city": "Paris"}</function>', PARIS),
    "mistral, list": (f"[TOOL_CALLS] [{JSON_CALL}, {OTHER_CALL}]", PARIS + ROME),
    "mistral, new": ('[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', PARIS),
    "mistral, two": (
        '[TOOL_CALLS]get_weather{"city": "Paris"}[TOOL_CALLS]get_weather[CALL_ID]abc123[ARGS]{"city": "Rome"}</s>',
        PARIS + ROME,
    ),
    "llama, tag": ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}<|eom_id|>', PARIS),
    "llama, bare": ('{"name": "get_weather", "parameters": {"city": "Paris"}}', PARIS),
    "llama, several": (f"{JSON_CALL}; {OTHER_CALL}", PARIS + ROME),
    "as openai writes it": (
        '[{"id": "1", "type": "function", '
        '"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}]',
        PARIS,
    ),
    "lm studio": (f"[TOOL_REQUEST]{JSON_CALL}[END_TOOL_REQUEST]", PARIS),
    "lm studio, two": (
        f"[TOOL_REQUEST]\n{JSON_CALL}\n[END_TOOL_REQUEST]\n[TOOL_REQUEST]{OTHER_CALL}[END_TOOL_REQUEST]",
        PARIS + ROME,
    ),
    "fence, not closed": (f"```json\n{JSON_CALL}\n", PARIS),
    "fence": (f"```json\n{JSON_CALL}\n```", PARIS),
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        PARIS,
    ),
    "deepseek 3.1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
        '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        PARIS + ROME,
    ),
    "harmony": (
        '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>',
        PARIS,
    ),
    "a mark of an end between two": (f"<tool_call></tool_call><|call|>{JSON_CALL}", PARIS),
    "a fence with a mark of an end": (f"```json\n{JSON_CALL}\n```<|eot_id|>", PARIS),
    "a fence with another call behind it": (
        f"```json\n{JSON_CALL}\n``` <tool_call>{OTHER_CALL}",
        PARIS + ROME,
    ),
    "a fence in an argument": (
        '```json\n{"name": "get_weather", "arguments": {"city": "a ```sh``` b", "days": 10, "more": true}}\n```',
        [("get_weather", {"city": "a ```sh``` b", "days": 10, "more": True})],
    ),
}
TEXTS = [
    "It is cloudy.",
    f"I will call it: <tool_call>{JSON_CALL}</tool_call>",
    f"<tool_call>{JSON_CALL}</tool_call> and then I will tell you.",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "get_weather"</tool_call>',
    '{"name": "Ada", "age": 36}',
    '{"name": "get_weather", "arguments": {}, "why": "because"}',
    '{"name": "get_weather"}',
    '```json\n{"city": "Paris"}\n```',
    "```python\nprint(1)\n```",
    "[1, 2, 3]",
    "[TOOL_CALLS] none",
    "<function=get_weather>what?</function>",
    "<",
    "",
    "   ",
    "[" * 5000,
    '{"name": "get_weather", "arguments": ' + '{"a":' * 3000,
    "<tool_call>" * 3000,
]


@pytest.mark.parametrize("name", MARKUPS)
def test_a_markup_is_read(name: str):
    text, calls = MARKUPS[name]
    assert read(text) == calls


@pytest.mark.parametrize("name", MARKUPS)
def test_a_markup_is_held_back_from_its_first_character_on(name: str):
    text, _ = MARKUPS[name]
    for end in range(len(text)):
        assert may_become_calls(text[:end], is_known), text[:end]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_other_text_is_text(text: str):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "free_at"),
    [
        ("It is cloudy.", "I"),
        ("<b>bold</b>", "<b"),
        ('{"city": 1}', '{"c'),
        ('{"name": "Ada", "age": 36}', '{"name": "Ada"'),
        ("```python\nprint()", "```p"),
        ("[1, 2]", "[1"),
        ('```json\n{"city"', '```json\n{"c'),
        ("<tool_call>{}</tool_call> Well", "<tool_call>{}</tool_call> W"),
        (f"```json\n{JSON_CALL}\n``` Well", f"```json\n{JSON_CALL}\n``` W"),
        ('```json\n{"name": "get_weather", oops}\n``` Well', '```json\n{"name": "get_weather", oops}\n```'),
    ],
)
def test_text_is_let_go_as_soon_as_it_cannot_be_a_call(text: str, free_at: str):
    ends = [end for end in range(1, len(text) + 1) if not may_become_calls(text[:end], is_known)]
    assert text[: ends[0]] == free_at


def test_each_call_gets_an_id_of_its_own():
    first, second = read_calls(f"{JSON_CALL}; {OTHER_CALL}", is_known)
    assert first.id != second.id


PARTS = (
    "<tool_call> </tool_call> <function=add> </function> <parameter=a> </parameter> [TOOL_CALLS] add [ARGS] { } [ ] "
    '"name" : , "add" "arguments" ```json ``` x <|python_tag|> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> '
    "<｜tool▁sep｜> <｜tool▁call▁end｜> <|channel|>commentary to=functions.add <|message|> <|call|> 1 null"
)
parts = st.sampled_from([*PARTS.split(), JSON_CALL, "\n", " ", "\ud800"])


@given(st.lists(parts, max_size=12).map("".join))
def test_whatever_was_read_as_calls_was_held_back(text: str):
    if read_calls(text, is_known):
        assert all(may_become_calls(text[:end], is_known) for end in range(len(text)))


CLOSED = [text.rstrip() for text, _ in MARKUPS.values() if text.rstrip().endswith(CLOSERS)]


@pytest.mark.parametrize("text", CLOSED)
def test_a_mark_of_the_end_that_is_cut_anywhere_hides_no_call(text: str):
    closer = max((mark for mark in CLOSERS if text.endswith(mark)), key=len)
    for size in range(len(closer)):
        cut = text[: len(text) - len(closer) + size]
        assert may_become_calls(cut, is_known), cut
        assert read(cut) == read(text), cut


@pytest.mark.parametrize("text", [text for text, _ in MARKUPS.values()])
def test_the_beginning_of_a_call_is_known_for_one_when_the_answer_was_cut(text: str):
    cut = text[: text.index("get_weather") + 12] if "get_weather" in text else text
    assert is_cut_call(cut, is_known)


@pytest.mark.parametrize(
    "text", ["", "Hello", "{", '{"name": "Bob"', "```json\n{", '{"city": "get_weather"', "[1"]
)
def test_an_answer_that_was_cut_is_no_call_only_because_it_looks_a_little_like_one(text: str):
    assert not is_cut_call(text, is_known)
