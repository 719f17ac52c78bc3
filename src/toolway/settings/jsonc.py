"""JSON with comments and trailing commas: values that know their lines, and edits that leave all comments in place."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64

INDENT = "  "
"""What one level is indented by in a file that shows none."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
      | (?P<word>true|false|null)
      | (?P<mark>[][{},:])""",
    re.VERBOSE | re.DOTALL,
)


class MistakeError(ValueError):
    """The text is not JSON, not even with comments; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value and its line (for a member of an object, the line of its key).

    `value` holds a scalar, a list of Nodes, or a dict of Nodes.
    """

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def parse(text: str) -> Node:
    """The one value of a text.

    Raises:
        MistakeError: With the line where the text stops making sense, or where a key is repeated.
    """
    parser = _Parser(text.removeprefix("\N{BYTE ORDER MARK}"))
    node = parser.value()
    parser.expect("")
    return node


def parse_toml(text: str, table: str) -> Node:
    """The same for TOML, where only the lines of the tables below `table` are known. Raises MistakeError."""
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise MistakeError("this is nested too deeply", 1) from None
    except ValueError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise MistakeError(f"this is not TOML: {error}", int(line[1]) if line else 1) from None
    heads = re.finditer(rf"""^\s*\[{re.escape(table)}\.["']?([^]."']+)["']?\]""", text, re.MULTILINE)
    lines = {head[1]: text.count("\n", 0, head.start(1)) + 1 for head in heads}
    root = _node(found, 1)
    entries = root.value.get(table)
    if entries and isinstance(entries.value, dict):
        placed = {label: _node(entry.plain(), lines.get(label, 1)) for label, entry in entries.value.items()}
        root.value[table] = Node(value=placed, line=1)
    return root


def _node(value: Any, line: int) -> Node:
    if isinstance(value, dict):
        value = {key: _node(child, line) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_node(child, line) for child in value]
    return Node(value=value, line=line)


@dataclass(frozen=True)
class Token:
    """One token and where it stands; white space and comments are none, "end" is the last one's kind."""

    kind: str
    text: str
    start: int
    line: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + len(self.text)


def _tokens(text: str) -> Iterator[Token]:
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise MistakeError(_strange(text, at), line)
        if match.lastgroup != "space":
            yield Token(match.lastgroup or "", match[0], at, line)
        line += match[0].count("\n")
        at = match.end()
    yield Token("end", "", at, line)


def _strange(text: str, at: int) -> str:
    if text[at] == '"':
        return "a string is not closed"
    if text.startswith("/*", at):
        return "a comment is not closed"
    if text[at] == "'":
        return "strings are written in double quotes"
    return f"{text[at : at + 20].splitlines()[0]!r} is not JSON"


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)
        self._depth = 0

    def _take(self) -> Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def expect(self, *texts: str) -> Token:
        """The next token, which must be one of these ("" is the end)."""
        token = self._take()
        if token.text not in texts or token.kind == "string":
            wanted = " or ".join(repr(text) if text else "the end" for text in texts)
            raise MistakeError(f"expected {wanted}, found {token.text[:40] or 'the end'}", token.line)
        return token

    def value(self) -> Node:
        token = self._take()
        if token.kind == "mark" and token.text in "{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise MistakeError("this is nested too deeply", token.line)
            found: Any = self._object() if token.text == "{" else self._list()
            self._depth -= 1
            return Node(value=found, line=token.line)
        if token.kind in ("string", "number", "word"):
            return Node(value=_scalar(token), line=token.line)
        raise MistakeError(f"expected a value, found {token.text or 'the end'}", token.line)

    def _object(self) -> dict[str, Node]:
        members: dict[str, Node] = {}
        while self._next.text != "}":
            token = self._take()
            if token.kind != "string":
                raise MistakeError(f"expected a key in quotes, found {token.text or 'the end'}", token.line)
            key = _scalar(token)
            if key in members:
                raise MistakeError(
                    f"{key!r} is here twice; the first is in line {members[key].line}", token.line
                )
            self.expect(":")
            members[key] = Node(value=self.value().value, line=token.line)
            if self._next.text != "}":
                self.expect(",", "}")
        self._take()
        return members

    def _list(self) -> list[Node]:
        items: list[Node] = []
        while self._next.text != "]":
            items.append(self.value())
            if self._next.text != "]":
                self.expect(",", "]")
        self._take()
        return items


def _scalar(token: Token) -> Any:
    try:
        return json.loads(token.text)
    except json.JSONDecodeError as error:
        raise MistakeError(error.msg, token.line) from None
    except ValueError:
        raise MistakeError("a number has too many digits", token.line) from None


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

    `text` is JSON with comments that `parse` takes. `indented` writes a value over several lines where the object
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
    tokens = list(_tokens(text))
    if tokens[0].text != "{":
        raise MistakeError("the file must hold an object", 1)
    found = _object(tokens, 0)
    for depth, key in enumerate(path):
        if key not in found.members:
            return tokens, found, path[depth:]
        if depth + 1 < len(path):
            value = found.members[key].first
            if tokens[value].text != "{":
                raise MistakeError(f"{key!r} must be an object", tokens[value].line)
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
