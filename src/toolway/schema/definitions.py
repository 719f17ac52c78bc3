"""Tools -> the `tools` list of a request, serialised once for each kind of model server."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import orjson

from toolway.schema.compile import TERSEST, CannotCompile, compile_schema
from toolway.schema.targets import RULES, Profile
from toolway.types import JSON, Tool

_Key = tuple[str, Profile, int]

_written: WeakKeyDictionary[Tool, dict[_Key, bytes | str]] = WeakKeyDictionary()
"""What became of a tool under one name: its definition as JSON, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """`fragments` by name, `all` of them as one list, and why others are `left_out`."""

    fragments: Mapping[str, orjson.Fragment]
    all: orjson.Fragment
    left_out: Mapping[str, str]


def define(tools: Mapping[str, Tool], profile: Profile) -> Definitions:
    """The definitions of `tools`, in the same order; the same bytes for the same tools.

    Where a kind of model server has a limit for all definitions together, all are shortened alike until they fit;
    if the shortest forms do not fit either, these are it.
    """
    steps = defining(tools, profile)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Definitions = end.value
            return made


def defining(tools: Mapping[str, Tool], profile: Profile) -> Generator[None, None, Definitions]:
    """`define` in steps, one for each definition that was not known yet: they take up to some milliseconds each."""
    written: dict[str, bytes | str] = {}
    for terse in range(TERSEST + 1):
        written = yield from _written_within(
            RULES[profile].ceiling if terse < TERSEST else math.inf, tools, profile, terse
        )
        if len(written) == len(tools):
            break
    done = {name: text for name, text in written.items() if isinstance(text, bytes)}
    return Definitions(
        fragments={name: orjson.Fragment(text) for name, text in done.items()},
        all=orjson.Fragment(b"[" + b",".join(done.values()) + b"]"),
        left_out={name: reason for name, reason in written.items() if isinstance(reason, str)},
    )


def _written_within(
    ceiling: float, tools: Mapping[str, Tool], profile: Profile, terse: int
) -> Generator[None, None, dict[str, bytes | str]]:
    """The definitions of as many tools as have room together; reasons stand where there is none."""
    written: dict[str, bytes | str] = {}
    size = 2
    for name, tool in tools.items():
        known = _written.setdefault(tool, {})
        key = (name, profile, terse)
        if key not in known:
            known[key] = _definition(name, tool, profile, terse)
            yield
        text = known[key]
        size += len(text) + 1 if isinstance(text, bytes) else 0
        if size > ceiling:
            break
        written[name] = text
    return written


def _definition(name: str, tool: Tool, profile: Profile, terse: int) -> bytes | str:
    try:
        return orjson.dumps({"type": "function", "function": _function(name, tool, profile, terse)})
    except (CannotCompile, TypeError) as error:
        return str(error)


def _function(name: str, tool: Tool, profile: Profile, terse: int) -> JSON:
    parameters = compile_schema(tool.parameters, profile, terse=terse)
    rules = RULES[profile]
    function: JSON = {"name": name}
    if tool.description:
        function["description"] = tool.description if terse < TERSEST else tool.description[:200]
    if parameters["properties"] or rules.free_objects or rules.closed:
        function["parameters"] = parameters
    return {**function, "strict": True} if rules.closed else function
