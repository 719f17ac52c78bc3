"""JSON texts of many megabytes, read in steps of a millisecond or two, so that other threads run in between.

A parser in C holds the interpreter until it is done: 13 MB, as GitHub's OpenAPI document has them, are 0.1 s in which
no request is answered, whatever thread it runs in. Here brackets are found first, a match at a time; then the members
of what is large are parsed in groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from toolway.wire.lenient_json import MAX_DEPTH, loads_told

STEP = 2**17
"""Bytes that are parsed at once."""

_SPACE = b" \t\r\n"
_COMMA = re.compile(rb"[ \t\r\n]*,")
_TO_BRACKET = re.compile(
    rb'[^"\[\]{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+){0,1000}+([\[\]{}]?)', re.DOTALL
)
"""Up to the next bracket that stands in no string, past at most a thousand strings."""

_ENDS = {b"{": b"}", b"[": b"]"}
_PLACE = "\0the large value that stands here"


class _Container(NamedTuple):
    """Where an object or array stands, and what containers stand in it; those of small ones are not kept."""

    start: int
    end: int
    inner: list[_Container]


def _loads_plain(text: bytes) -> Any:
    value, is_plain = loads_told(text)
    if not is_plain:
        raise ValueError("not every JSON reader takes it")
    return value


def loads_in_steps(text: bytes, *, step: int = STEP, loads: Callable[[bytes], Any] = _loads_plain) -> Any:
    """The value of a text that is an object or an array, as `loads` reads it, which gets about `step` bytes at a time.

    A member that is larger and holds no object or array is read at once. Raises ValueError for what is no JSON, deeper
    than MAX_DEPTH levels, or written so oddly that it must be read at once: also for integers beyond 64 bits.
    """
    return _Reader(text, step, loads).value(_outermost(text, step))


def _outermost(text: bytes, step: int) -> _Container:
    found, place = list[tuple[int, list[_Container]]](), 0
    while (match := _TO_BRACKET.match(text, place)) and match.end() > place:
        place = match.end()
        if match[1] in _ENDS:
            if len(found) == MAX_DEPTH:
                break
            found.append((place - 1, []))
        elif match[1]:
            if not found:
                break
            start, inner = found.pop()
            container = _Container(start, place, inner if place - start > step else [])
            if found:
                found[-1][1].append(container)
            elif text[:start].strip(_SPACE) or text[place:].strip(_SPACE):
                break
            else:
                return container
    raise ValueError("the brackets cannot be matched")


class _Reader:
    def __init__(self, text: bytes, step: int, loads: Callable[[bytes], Any]) -> None:
        self._text = text
        self._step = step
        self._loads = loads

    def value(self, container: _Container) -> Any:
        """The value of one object or array."""
        text, (start, end, inner) = self._text, container
        opening, closing = text[start : start + 1], text[end - 1 : end]
        if not inner:
            return self._loads(text[start:end])
        if _ENDS[opening] != closing:
            raise ValueError("the brackets cannot be matched")
        whole: Any = {} if opening == b"{" else []
        add = whole.update if opening == b"{" else whole.extend
        begin, is_expected = start + 1, False
        for one in inner:
            if one.end - one.start > self._step:
                group = self._loads(opening + text[begin : one.start] + orjson.dumps(_PLACE) + closing)
                group[_place_in(group)] = self.value(one)
            elif one.end - begin > self._step:
                group = self._loads(opening + text[begin : one.end] + closing)
            else:
                continue
            add(group)
            comma = _COMMA.match(text, one.end)
            begin, is_expected = comma.end() if comma else one.end, comma is not None
            if comma is None and text[begin : end - 1].strip(_SPACE):
                raise ValueError("a comma is missing")
        rest = text[begin : end - 1]
        if is_expected or rest.strip(_SPACE):
            group = self._loads(opening + rest + closing)
            if not group:
                raise ValueError("nothing stands behind a comma")
            add(group)
        return whole


def _place_in(group: Any) -> Any:
    """The key or the index of the value that is not read yet."""
    if isinstance(group, list):
        return len(group) - 1
    places = [key for key, value in group.items() if value == _PLACE]
    if len(places) != 1:
        raise ValueError("what stands for a large value is said in the text")
    return places[0]
