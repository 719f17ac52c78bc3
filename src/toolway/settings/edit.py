"""Changes one member of a configuration file's text; comments and all that stands around it stay as they are."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolway.errors import ConfigError
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


def with_member(text: str, path: Sequence[str], value: Any) -> str:
    """The text of a file in which the member at `path` is `value`; objects on the way there are made."""
    tokens, found, rest = find(text, path)
    if not rest:
        member = found.members[path[-1]]
        return text[: tokens[member.first].start] + _json(value) + text[tokens[member.last].end :]
    if len(rest) > 1:
        return with_member(with_member(text, path[: 1 - len(rest)], {}), path, value)
    return _inserted(text, tokens, found, f"{_json(rest[0])}: {_json(value)}")


def without_member(text: str, path: Sequence[str]) -> str:
    """The text without the member at `path`. Raises KeyError when there is none."""
    tokens, found, _ = find(text, path)
    member = found.members[path[-1]]
    start, end = tokens[member.at].start, tokens[member.last].end
    if tokens[member.last + 1].text == ",":
        end = tokens[member.last + 1].end
    elif tokens[member.at - 1].text == ",":
        start = tokens[member.at - 1].start
    line = text.rfind("\n", 0, start) + 1
    if not text[line:start].strip() and text[end:].lstrip(" \t\r").startswith("\n"):
        start, end = line, text.index("\n", end) + 1
    return text[:start] + text[end:]


def find(text: str, path: Sequence[str]) -> tuple[Sequence[Token], Object, Sequence[str]]:
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


def _inserted(text: str, tokens: Sequence[Token], into: Object, member: str) -> str:
    """The text with one more member at the end of an object: on a line of its own, unless the object is on one."""
    opening, closing, last = tokens[into.opening], tokens[into.closing], None
    for known in into.members.values():
        last = known
    is_on_one_line = "\n" not in text[opening.start : closing.start]
    if last and is_on_one_line:
        end = tokens[last.last].end
        return f"{text[:end]}, {member}{text[end:]}"
    outer = _indentation(text, opening.start if is_on_one_line else closing.start)
    inner = _indentation(text, tokens[last.at].start) if last else outer + _unit(text)
    body = text[: closing.start].rstrip()
    if last and tokens[into.closing - 1].text != ",":
        end = tokens[last.last].end
        body = f"{body[:end]},{body[end:]}"
    return f"{body}\n{inner}{member}\n{outer}{text[closing.start :]}"


def _indentation(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip())]


def _unit(text: str) -> str:
    """By how much the file indents."""
    lines = (line for line in text.splitlines() if line[:1] in (" ", "\t") and line.strip())
    first = next(lines, INDENT)
    return first[: len(first) - len(first.lstrip())]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no two programs change the files of one folder at once."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        yield
        return
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """`write_at_once`. Raises ConfigError."""
    try:
        write_at_once(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def write_at_once(path: Path, text: str) -> None:
    """Put `text` into the file, so that no reader ever sees half of it; rights and a link stay. Raises OSError."""
    target = path.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        _put(Path(name), target, text)
    finally:
        with suppress(OSError):
            Path(name).unlink()


def _put(file: Path, target: Path, text: str) -> None:
    try:
        file.replace(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        target.write_text(text, encoding="utf-8", newline="")  # a file that is mounted by itself
