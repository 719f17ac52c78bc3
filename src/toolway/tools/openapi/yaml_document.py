"""YAML of an OpenAPI document -> plain values, by the rules of YAML 1.2, bounded in depth and size."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from toolway.errors import SourceError
from toolway.types import JSON

MAX_DEPTH = 200
MAX_NODES = 2_000_000
"""Values in a YAML document when every alias is written out: a billion laughs end here."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(content: bytes) -> Any:
    """The value that a document holds. Raises SourceError (stage "parse")."""
    try:
        return _Builder().build(yaml.parse(content, Loader=Loader))
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"is neither JSON nor YAML: {reason[:200]}", stage="parse") from error


class _OpenNode:
    """A mapping or sequence whose end has not been read."""

    __slots__ = ("anchor", "before", "key", "value")

    def __init__(self, value: JSON | list[Any], anchor: str | None, before: int) -> None:
        self.value = value
        self.anchor = anchor
        self.before = before
        self.key: Any = None


class _Builder:
    """Builds plain values from YAML events: no tags, no objects, no recursion, and half the time of a loader."""

    def __init__(self) -> None:
        self._open: list[_OpenNode] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._root: Any = None

    def build(self, events: Iterator[Any]) -> Any:
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._scalar(event)
            elif kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
                self._start({} if kind is yaml.MappingStartEvent else [], event.anchor)
            elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
                self._end()
            elif kind is yaml.AliasEvent:
                self._alias(event.anchor)
            elif kind is yaml.DocumentEndEvent:
                break
        return self._root

    def _start(self, value: JSON | list[Any], anchor: str | None) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise SourceError(f"is nested deeper than {MAX_DEPTH} levels", stage="parse")
        self._open.append(_OpenNode(value, anchor, self._nodes))

    def _end(self) -> None:
        done = self._open.pop()
        self._anchor(done.anchor, done.value, self._nodes - done.before)
        self._add(done.value)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and top.key is None and isinstance(top.value, dict):
            self._anchor(event.anchor, event.value, 1)
            top.key = _MERGE if event.value == "<<" and event.implicit[0] else event.value
            return
        value = _plain(event.value) if event.implicit[0] else event.value
        self._anchor(event.anchor, value, 1)
        self._add(value)

    def _alias(self, anchor: str) -> None:
        if anchor not in self._anchors:
            raise SourceError(
                f"has a YAML alias *{anchor[:40]} of something unknown or unfinished", stage="parse"
            )
        value, nodes = self._anchors[anchor]
        self._nodes += nodes
        top = self._open[-1] if self._open else None
        if top is not None and top.key is None and isinstance(top.value, dict) and not isinstance(value, str):
            raise SourceError("has a YAML mapping with a key that is no text", stage="parse")
        if top is not None and top.key is None and isinstance(top.value, dict):
            top.key = value
        else:
            self._add(value)

    def _anchor(self, anchor: str | None, value: Any, nodes: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, nodes + 1)

    def _add(self, value: Any) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SourceError(f"holds more than {MAX_NODES} values, counting YAML aliases", stage="parse")
        if not self._open:
            self._root = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            raise SourceError("has a YAML mapping with a key that is no text", stage="parse")
        else:
            _put(top.value, top.key, value)
            top.key = None


_MERGE = object()
"""The key `<<` of a mapping that merges others in (YAML 1.1, still written by hand)."""


def _put(mapping: JSON, key: Any, value: Any) -> None:
    """Set one member, or with the merge key those that the mapping does not have."""
    parts = value if isinstance(value, list) else [value]
    if key is not _MERGE or not all(isinstance(part, dict) for part in parts):
        mapping["<<" if key is _MERGE else key] = value
        return
    for part in parts:
        for name, member in part.items():
            mapping.setdefault(name, member)


_CONSTANTS = {"": None, "~": None} | {
    variant: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for variant in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")


def _plain(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2, as far as JSON has it."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "0123456789-+.":
        if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**64:  # what JSON writers here can hold
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
    return text
