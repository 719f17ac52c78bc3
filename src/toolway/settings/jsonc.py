"""JSON with comments and trailing commas -> values that know their lines, so that a mistake can be pointed at."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64

TOKEN = re.compile(
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
class _Token:
    kind: str
    text: str
    line: int


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise MistakeError(_strange(text, at), line)
        if match.lastgroup != "space":
            yield _Token(match.lastgroup or "", match[0], line)
        line += match[0].count("\n")
        at = match.end()
    yield _Token("end", "", line)


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

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._next = next(self._tokens)
        return token

    def expect(self, *texts: str) -> _Token:
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


def _scalar(token: _Token) -> Any:
    try:
        return json.loads(token.text)
    except json.JSONDecodeError as error:
        raise MistakeError(error.msg, token.line) from None
    except ValueError:
        raise MistakeError("a number has too many digits", token.line) from None
