"""Changes of one member in the text of a JSON file with comments; everything else in it stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolway.settings.edit import find


@dataclass(frozen=True, kw_only=True)
class _Member:
    start: int
    value: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _Object:
    start: int
    end: int
    """Where its closing brace stands."""
    members: dict[str, _Member]


def set_member(text: str, path: Sequence[str], value: Any) -> str:
    """The text with this value under these keys; objects that are missing on the way are made.

    `text` is JSON with comments, as `jsonc.parse` takes it. Raises MistakeError.
    """
    holder, missing = _innermost(text, path)
    name = path[-1]
    for key in reversed(missing):
        name, value = key, {name: value}
    indent = _indent_of(text, holder)
    written = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"\n{indent}")
    if there := holder.members.get(name):
        return f"{text[: there.value]}{written}{text[there.end :]}"
    member = f"{json.dumps(name, ensure_ascii=False)}: {written}"
    if not holder.members:
        inside = text[holder.start + 1 : holder.end].rstrip()
        close = indent[:-2]
        return f"{text[: holder.start + 1]}{inside}\n{indent}{member}\n{close}{text[holder.end :]}"
    last = max(holder.members.values(), key=lambda one: one.end)
    behind = re.match(r"(?:\s|//[^\n]*|/\*.*?\*/)*,", text[last.end : holder.end], re.DOTALL)
    if behind:  # a comma, and perhaps a comment that belongs to what is before it
        comment = re.match(r"[^\S\n]*//[^\n]*", text[last.end + behind.end() :])
        at = last.end + behind.end() + (comment.end() if comment else 0)
        return f"{text[:at]}\n{indent}{member}{text[at:]}"
    comment = re.match(r"[^\S\n]*//[^\n]*", text[last.end :])
    at = last.end + (comment.end() if comment else 0)
    return f"{text[: last.end]},{text[last.end : at]}\n{indent}{member}{text[at:]}"


def remove_member(text: str, path: Sequence[str]) -> str:
    """The text without the member under these keys; the same text if there is none. Raises MistakeError."""
    holder, missing = _innermost(text, path)
    name = path[-1]
    there = holder.members.get(name)
    if missing or there is None:
        return text
    line = text.rfind("\n", 0, there.start) + 1
    start = line if not text[line : there.start].strip() else there.start
    end = there.end
    if comma := re.match(r"\s*,", text[end : holder.end]):
        end += comma.end()
    elif before := re.search(r",(?=(?:\s|//[^\n]*)*$)", text[holder.start : start]):
        at = holder.start + before.start()
        text = text[:at] + text[at + 1 :]
        start, end = start - 1, end - 1
    if start == text.rfind("\n", 0, start) + 1:  # the whole line goes
        rest = re.match(r"[^\S\n]*(?://[^\n]*)?\n?", text[end:])
        end += rest.end() if rest else 0
    return text[:start] + text[end:]


def _innermost(text: str, path: Sequence[str]) -> tuple[_Object, Sequence[str]]:
    """The object that holds the member, or as much of the way to it as there is, and the keys that there are not."""
    tokens, found, rest = find(text, path)
    members = {
        key: _Member(
            start=tokens[member.at].start, value=tokens[member.first].start, end=tokens[member.last].end
        )
        for key, member in found.members.items()
    }
    start, end = tokens[found.opening].start, tokens[found.closing].start
    return _Object(start=start, end=end, members=members), rest[:-1]


def _indent_of(text: str, holder: _Object) -> str:
    """How the members of an object are indented, or would be."""
    for member in holder.members.values():
        line = text[text.rfind("\n", 0, member.start) + 1 : member.start]
        if not line.strip():
            return line
    line = text[text.rfind("\n", 0, holder.start) + 1 :]
    return line[: len(line) - len(line.lstrip(" \t"))] + "  "
