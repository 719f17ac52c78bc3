"""The shortcut for chunks that differ in their text alone says what a parser would say, or nothing."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.conversation.chunk_template import MAX_RUN, ChunkTemplate


def chunk(content: Any, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return {"id": "c", "choices": [{**choice, **more}]}


def learned(content: Any = "the", *, dumps: Any = orjson.dumps, **more: Any) -> ChunkTemplate:
    template = ChunkTemplate()
    first = chunk(content, **more)
    text = dumps(first)
    template.learn(first, text if isinstance(text, bytes) else text.encode())
    return template


@given(st.text(), st.text())
def test_a_text_that_is_recognised_is_the_text_that_a_parser_reads(first: str, second: str):
    found = learned(first).text_in(orjson.dumps(chunk(second)))
    assert found in (None, second)


@pytest.mark.parametrize("text", ["word", " word", "é", "日本", "{}", "a:b,"])
def test_plain_text_is_recognised_whatever_the_spacing_of_the_json(text: str):
    assert learned().text_in(orjson.dumps(chunk(text))) == text
    spaced = learned(dumps=json.dumps)
    assert spaced.text_in(json.dumps(chunk(text), ensure_ascii=False).encode()) == text


@pytest.mark.parametrize(
    "other",
    [
        {**chunk("x"), "id": "d"},
        {**chunk("x"), "usage": {"total_tokens": 1}},
        chunk("x", finish_reason="stop"),
        chunk("x", index=1),
        chunk(""),
        chunk(None),
        {"id": "c", "choices": [{"index": 0, "delta": {"content": "x", "role": "assistant"}, "finish_reason": None}]},
        {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": []}, "finish_reason": None}]},
        {"error": {"message": "x"}},
        chunk('a "quoted" word'),
        chunk("line\n"),
        chunk("back\\slash"),
    ],
)  # fmt: skip
def test_anything_else_is_left_to_the_parser(other: dict[str, Any]):
    assert learned().text_in(orjson.dumps(other)) is None


@given(st.binary(max_size=40))
def test_bytes_between_head_and_tail_that_are_no_plain_text_are_left_to_the_parser(middle: bytes):
    whole = orjson.dumps(chunk("@"))
    payload = whole.replace(b"@", middle)
    found = learned().text_in(payload)
    if found is not None:
        assert orjson.loads(payload)["choices"][0]["delta"]["content"] == found


def test_nothing_is_learned_from_a_chunk_with_more_than_text():
    template = ChunkTemplate()
    first = {"choices": [{"delta": {"content": "x", "reasoning_content": "y"}}]}
    template.learn(first, orjson.dumps(first))
    assert template.text_in(orjson.dumps(first)) is None


@given(
    st.lists(st.text(alphabet=st.sampled_from('abc é日"\\\n\x85'), max_size=4), max_size=200),
    st.binary(max_size=12),
)
def test_a_run_is_the_chunks_that_are_recognised_one_by_one(texts: list[str], behind: bytes):
    payloads = [orjson.dumps(chunk(text)) for text in texts]
    data = b"".join(b"data: " + payload + b"\n\n" for payload in payloads) + behind
    template = learned()
    alike = list(itertools.takewhile(lambda payload: template.text_in(payload) is not None, payloads))[
        :MAX_RUN
    ]
    found = template.run_in(data)
    if found is None:
        assert not alike
        return
    run, rest = found
    assert run.events + rest == data
    assert run.text == "".join(text for text, _ in run)
    assert run.behind_first == b"".join(b"data: " + payload + b"\n\n" for payload in alike[1:])
    assert list(run) == [(template.text_in(payload), payload) for payload in alike]


def test_a_run_ends_before_an_event_that_is_cut():
    event = b"data: " + orjson.dumps(chunk("word")) + b"\n\n"
    for size in range(len(event)):
        found = learned().run_in(event + event[:size])
        assert found is not None
        run, rest = found
        assert (run.text, rest) == ("word", event[:size])


def test_a_run_ends_before_an_event_that_begins_in_another_way():
    events = [b"data: " + orjson.dumps({**chunk("word"), "id": name}) + b"\n\n" for name in "cdc"]
    found = learned().run_in(b"".join(events))
    assert found is not None
    assert (found[0].text, found[0].events, found[1]) == ("word", events[0], b"".join(events[1:]))


@given(
    st.lists(st.text(alphabet=st.sampled_from('abc é日"\\\n\x85'), max_size=4), max_size=9), st.integers(0, 2)
)
def test_a_run_of_events_is_the_run_in_their_bytes(texts: list[str], others: int):
    events = [b"data: " + orjson.dumps(chunk(text)) + b"\n\n" for text in texts]
    other = b"data: " + orjson.dumps({**chunk("word"), "id": "d"}) + b"\n\n"
    run = learned().run_of([*events, *[other] * others])
    found = learned().run_in(b"".join(events))
    if run is not None:
        assert found == (run, b"")
    elif found is not None:
        assert found[1], "all are alike, and none was found"


@pytest.mark.parametrize("change", [(b"null", b"true"), (b"\n\n", b"\n\r"), (b'"c"', b'"d"')])
@pytest.mark.parametrize("number", [0, 1])
def test_a_run_of_events_has_none_that_differs_in_more_than_its_text(
    change: tuple[bytes, bytes], number: int
):
    events = [b"data: " + orjson.dumps(chunk(text)) + b"\n\n" for text in ("one", "two", "ten")]
    events[number] = events[number].replace(*change)
    assert learned().run_of(events) is None


def test_a_character_that_two_chunks_share_is_left_to_the_parser():
    events = [
        b"data: " + orjson.dumps(chunk("@")).replace(b"@", half) + b"\n\n" for half in (b"a\xc3", b"\xa9b")
    ]
    assert learned().run_of(events) is None
    assert learned().run_in(b"".join(events)) is None
