"""Changes one member in the text of a JSON file with comments; all that stands around it stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolway.settings.jsonc import TOKEN, MistakeError

INDENT = "  "


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token of JSON with comments, and where it stands; white space and comments are none."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Member:
    """A member of an object: where its key stands among the tokens, and where its value begins and ends."""

    at: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Object:
    """An object: the tokens that begin and end it, and its members."""

    opening: int
    closing: int
    members: dict[str, Member]


def with_member(text: str, path: Sequence[str], value: Any, *, indented: bool = False) -> str:
    """The text of a file in which the member at `path` is `value`; objects on the way there are made.

    `text` is JSON with comments that `jsonc.parse` takes. `indented` writes a value over several lines where the object
    around it has lines. Raises MistakeError.
    """
    tokens, found, rest = _find(text, path)
    if len(rest) > 1:
        return with_member(with_member(text, path[: 1 - len(rest)], {}), path, value, indented=indented)
    unit = _unit(text) if indented else None
    if rest:
        return _inserted(text, tokens, found, rest[0], value, unit=unit)
    member = found.members[path[-1]]
    start = tokens[member.first].start
    return text[:start] + _json(value, unit, _indentation(text, start)) + text[tokens[member.last].end :]


def without_member(text: str, path: Sequence[str]) -> str:
    """The text without the member at `path`, its line and the comment behind it; unchanged when there is none.

    Raises MistakeError.
    """
    tokens, found, rest = _find(text, path)
    if rest:
        return text
    member = found.members[path[-1]]
    start, end = tokens[member.at].start, tokens[member.last].end
    before, behind = tokens[member.at - 1], tokens[member.last + 1]
    if behind.text == ",":
        end = behind.end
    elif before.text == ",":
        text = text[: before.start] + text[before.end :]
        start, end = start - 1, end - 1
    line = text.rfind("\n", 0, start) + 1
    remainder = _REMAINDER.match(text, end)
    if remainder and not text[line:start].strip():
        return text[:line] + text[remainder.end() :]
    if behind.text == ",":
        return text[:start] + text[end:].lstrip(" \t")
    return text[:start].rstrip(" \t") + text[end:]


_REMAINDER = re.compile(r"[^\S\n]*(?://[^\n]*)?(?:\n|\Z)")
"""What stands behind a member on its last line, if that is no other member."""


def _find(text: str, path: Sequence[str]) -> tuple[Sequence[Token], Object, Sequence[str]]:
    """The tokens, the innermost object on the way to a member that there is, and what of the way is not there.

    Raises MistakeError when something on the way is no object.
    """
    matches = TOKEN.finditer(text)
    tokens = [Token(text=m[0], start=m.start(), end=m.end()) for m in matches if m.lastgroup != "space"]
    if not tokens or tokens[0].text != "{":
        raise MistakeError("the file must hold an object", 1)
    found = _object(tokens, 0)
    for depth, key in enumerate(path):
        if key not in found.members:
            return tokens, found, path[depth:]
        if depth + 1 < len(path):
            value = found.members[key].first
            if tokens[value].text != "{":
                raise MistakeError(f"{key!r} must be an object", text.count("\n", 0, tokens[value].start) + 1)
            found = _object(tokens, value)
    return tokens, found, ()


def _object(tokens: Sequence[Token], opening: int) -> Object:
    """The object that begins with this token."""
    members: dict[str, Member] = {}
    at = opening + 1
    while tokens[at].text != "}":
        last = _end_of_value(tokens, at + 2)
        members[json.loads(tokens[at].text)] = Member(at=at, first=at + 2, last=last)
        at = last + 1
        if tokens[at].text == ",":
            at += 1
    return Object(opening=opening, closing=at, members=members)


def _end_of_value(tokens: Sequence[Token], at: int) -> int:
    depth = 0
    while True:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(tokens[at].text, 0)
        if depth == 0:
            return at
        at += 1


def _inserted(
    text: str, tokens: Sequence[Token], into: Object, name: str, value: Any, *, unit: str | None
) -> str:
    """The text with one more member at the end of an object: on a line of its own, unless the object is on one."""
    opening, closing = tokens[into.opening], tokens[into.closing]
    last = next(reversed(into.members.values()), None)
    is_on_one_line = "\n" not in text[opening.start : closing.start]
    if last and is_on_one_line:
        end = tokens[last.last].end
        return f"{text[:end]}, {_json(name)}: {_json(value)}{text[end:]}"
    outer = _indentation(text, opening.start if is_on_one_line else closing.start)
    inner = _indentation(text, tokens[last.at].start) if last else outer + _unit(text)
    body = text[: closing.start].rstrip()
    if last and tokens[into.closing - 1].text != ",":
        end = tokens[last.last].end
        body = f"{body[:end]},{body[end:]}"
    return f"{body}\n{inner}{_json(name)}: {_json(value, unit, inner)}\n{outer}{text[closing.start :]}"


def _indentation(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip())]


def _unit(text: str) -> str:
    """By how much the file indents."""
    lines = (line for line in text.splitlines() if line[:1] in (" ", "\t") and line.strip())
    first = next(lines, INDENT)
    return first[: len(first) - len(first.lstrip())]


def _json(value: Any, unit: str | None = None, outer: str = "") -> str:
    """A value on one line, or, with a unit of indentation, on lines that stand within `outer`."""
    return json.dumps(value, ensure_ascii=False, indent=unit).replace("\n", f"\n{outer}")
