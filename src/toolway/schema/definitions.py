"""Tools -> the `tools` list of a request, serialised once for each kind of model server."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import orjson

from toolway.schema.compile import TERSEST, CannotCompile, compile_schema
from toolway.schema.targets import RULES, SchemaTarget
from toolway.types import JSON, Tool

_Key = tuple[str, SchemaTarget, int]

_serialised: WeakKeyDictionary[Tool, dict[_Key, bytes | str]] = WeakKeyDictionary()
"""What became of a tool under one name: its definition as JSON, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """`fragments` by name, `all` of them as one list, and why others are `left_out`."""

    fragments: Mapping[str, orjson.Fragment]
    all: orjson.Fragment
    left_out: Mapping[str, str]


def define(tools: Mapping[str, Tool], target: SchemaTarget) -> Definitions:
    """The definitions of `tools`, in the same order; the same bytes for the same tools.

    Where a kind of model server has a limit for all definitions together, all are shortened alike until they fit;
    if the shortest forms do not fit either, these are it.
    """
    steps = define_in_steps(tools, target)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Definitions = end.value
            return made


def define_in_steps(tools: Mapping[str, Tool], target: SchemaTarget) -> Generator[None, None, Definitions]:
    """`define` in steps, one for each definition that was not known yet: they take up to some milliseconds each."""
    serialised: dict[str, bytes | str] = {}
    for terse in range(TERSEST + 1):
        serialised = yield from _serialised_within(
            RULES[target].ceiling if terse < TERSEST else math.inf, tools, target, terse
        )
        if len(serialised) == len(tools):
            break
    done = {name: text for name, text in serialised.items() if isinstance(text, bytes)}
    return Definitions(
        fragments={name: orjson.Fragment(text) for name, text in done.items()},
        all=orjson.Fragment(b"[" + b",".join(done.values()) + b"]"),
        left_out={name: reason for name, reason in serialised.items() if isinstance(reason, str)},
    )


def _serialised_within(
    ceiling: float, tools: Mapping[str, Tool], target: SchemaTarget, terse: int
) -> Generator[None, None, dict[str, bytes | str]]:
    """The definitions of as many tools as have room together; reasons stand where there is none."""
    serialised: dict[str, bytes | str] = {}
    size = 2
    for name, tool in tools.items():
        known = _serialised.setdefault(tool, {})
        key = (name, target, terse)
        if key not in known:
            known[key] = _definition(name, tool, target, terse)
            yield
        text = known[key]
        size += len(text) + 1 if isinstance(text, bytes) else 0
        if size > ceiling:
            break
        serialised[name] = text
    return serialised


def _definition(name: str, tool: Tool, target: SchemaTarget, terse: int) -> bytes | str:
    try:
        return orjson.dumps({"type": "function", "function": _function(name, tool, target, terse)})
    except (CannotCompile, TypeError) as error:
        return str(error)


def _function(name: str, tool: Tool, target: SchemaTarget, terse: int) -> JSON:
    parameters = compile_schema(tool.parameters, target, terse=terse)
    rules = RULES[target]
    function: JSON = {"name": name}
    if tool.description:
        function["description"] = tool.description if terse < TERSEST else tool.description[:200]
    if parameters["properties"] or rules.free_objects or rules.closed:
        function["parameters"] = parameters
    return {**function, "strict": True} if rules.closed else function
