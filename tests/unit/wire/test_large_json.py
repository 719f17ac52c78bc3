"""What is read in steps is what is read at once, and no step is long."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.wire.large_json import loads_in_steps
from toolway.wire.lenient_json import MAX_DEPTH

TEXT = st.text(alphabet=st.sampled_from('ab"\\{}[],:\n\0 é'), max_size=8)
LEAF = st.none() | st.booleans() | st.integers(-9, 10**6) | TEXT
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=30
)
CONTAINER = st.lists(VALUE, max_size=5) | st.dictionaries(TEXT, VALUE, max_size=5)
LAYOUT = st.sampled_from([0, orjson.OPT_INDENT_2, orjson.OPT_APPEND_NEWLINE])


def at_once(text: bytes) -> Any:
    """What orjson reads; None for what it refuses."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


@given(CONTAINER, LAYOUT, st.integers(1, 60))
def test_any_value_is_read_as_it_is(value: Any, layout: int, step: int):
    text = orjson.dumps(value, option=layout)
    read = loads_in_steps(text, step=step)
    assert read == value
    assert orjson.dumps(read) == orjson.dumps(value)  # in the same order, too


@given(CONTAINER, st.data(), st.integers(1, 60))
def test_what_orjson_refuses_is_refused(value: Any, data: st.DataObject, step: int):
    text = orjson.dumps(value)
    start, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    piece = data.draw(
        st.sampled_from([b"", b",", b"]", b"}", b"{", b"[", b'"', b":", b" ", b"1", text[start:end]])
    )
    broken = text[:start] + piece + text[end:]
    try:
        read = loads_in_steps(broken, step=step)
    except ValueError:
        return  # also what is right may be left to be read at once
    assert orjson.dumps(read) == orjson.dumps(at_once(broken))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b'{"a": {"b": 1},}',
        b'{"a": {"b": 1}, , "c": 2}',
        b'{"a": {"b": 1} "c": 2}',
        b"[[1, 2, 3, 4], [5, 6, 7, 8],]",
        b'{"a": [1, 2, 3, 4]}}',
        b'{"a": [1, 2, 3, 4]} 1',
        b'{"a": [1, 2, 3, 4}]',
        b'{"a": "unfinished}',
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_broken_is_an_error(text: bytes):
    with pytest.raises(ValueError):
        loads_in_steps(text, step=4)


@pytest.mark.parametrize(
    "text", [b'{"a": {"x": 1}, "b": 0, "a": {"y": 2, "z": [1]}}', b'{"a": 1, "a": {"y": 2, "z": 3}}']
)
def test_the_last_of_two_members_of_one_name_counts(text: bytes):
    assert orjson.dumps(loads_in_steps(text, step=6)) == orjson.dumps(orjson.loads(text))


def test_no_step_is_long():
    sizes: list[int] = []

    def loads(text: bytes) -> Any:
        sizes.append(len(text))
        return orjson.loads(text)

    value = {
        "paths": {f"/{n}": {"get": {"operationId": f"read_{n}", "tags": ["x"] * 20}} for n in range(2000)},
        "all": [{"name": "n" * 50} for _ in range(5000)],
        "info": {"title": "large"},
    }
    assert loads_in_steps(orjson.dumps(value), step=2000, loads=loads) == value
    assert max(sizes) < 3000
    assert len(sizes) > 100
