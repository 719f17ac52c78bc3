"""Suspicious definitions of tools: hidden text, words to the model, other servers' tools, parameters for secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from toolway.types import JSON

PIECE = 2**14
"""Characters of a definition that are read at once, about a millisecond."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
    # Joiners and variation selectors belong into some scripts and into emoji, but not beside ASCII.
    "|\r(?!\n)|(?<=[A-Za-z .,])[\u200c\u200d\ufe00-\ufe0f]|[\u200c\u200d](?=[A-Za-z .,])|[\ufe00-\ufe0f]{2,}"
)
_KINDS = (
    (re.compile("[\U000e0000-\U000e007f]"), "tag characters"),
    (re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]"), "bidirectional controls"),
    (re.compile("[\x00-\x1f\x7f-\x9f]"), "control characters"),
)
_ANY_KIND = re.compile("|".join(pattern.pattern for pattern, _ in _KINDS))
_COMMENT = re.compile(r"<!--|\[//\]: *#")
_TO_MODEL = re.compile(
    r"<\s*(?:important|system|instructions?|secret|hidden)\b[^>\n]{0,40}>"
    r"|\b(?:ignore|disregard|forget)\s+(?:all|any|the|your|previous|prior|above|other)\b"
    r"|\b(?:do\s+not|don't|never)\s+(?:tell|mention|inform|reveal|show|say|ask|notify)\b"
    r"|\bwithout\s+(?:telling|informing|asking|notifying)\b"
    r"|\byou\s+(?:must|have\s+to|should\s+always)\b|\bsystem\s+prompt\b"
    r"|\b(?:always|must\s+first|must\s+always)\s+(?:call|use|run|invoke|send|read)\b"
    r"|\bbefore\s+(?:using|calling|running|any)\b",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"passw(?:or)?d|passphrase|secret|api[ _-]?key|private[ _-]?key|credential|\.ssh\b|\.env\b|cookie|bearer"
    r"|(?:^|auth\w*[ _-]?|access[ _-]?|refresh[ _-]?|bot[ _-]?)token\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z0-9][\w.-]*[A-Za-z0-9]")
_IS_DISTINCT = re.compile(r"[a-z0-9][_.-][a-z0-9]|[a-z][A-Z]")
"""A name that is no ordinary word: `send_mail`, `sendMail`. Others are mentioned as `search` or the search tool."""
_AS_TOOL = re.compile(r"(?<=[`\"'])[A-Za-z0-9][\w.-]*+(?=[`\"'])|(?<![\w.-])[A-Za-z0-9][\w.-]*+(?= tool\b)")

_AROUND = 30
"""Characters that are shown on each side of what was found."""


def visible(text: str) -> str:
    """The text with each hidden character written as <U+200B>."""
    return _HIDDEN.sub(lambda found: "".join(f"<U+{ord(char):04X}>" for char in found[0]), text)


def hides_text(name: str, definition: JSON) -> str:
    """What hides text in a definition, in words; empty: nothing does."""
    pieces = [name, *_pieces(definition)]
    hidden = "".join(char for piece in pieces for char in _HIDDEN.findall(piece))
    kinds = [kind for pattern, kind in _KINDS if pattern.search(hidden)]
    if _ANY_KIND.sub("", hidden):
        kinds.append("invisible characters")
    if any(map(_COMMENT.search, pieces)):
        kinds.append("a comment")
    return ", ".join(kinds)


def mentions_in(definition: JSON) -> frozenset[str]:
    """The words of a definition that mention a tool, if one has such a name."""
    words, as_tools = set[str](), set[str]()
    for piece in _pieces(definition):
        words.update(_WORD.findall(piece))
        as_tools.update(_AS_TOOL.findall(piece))
    return frozenset({*filter(_IS_DISTINCT.search, words), *(words & as_tools)})


def words_to_model(definition: JSON) -> list[str]:
    """Where a definition tells the model what to do, rather than what the tool does: each with the words around it."""
    return [
        " ".join(visible(text[max(hit.start() - _AROUND, 0) : hit.end() + _AROUND]).split())
        for text in _texts(definition)
        for hit in _TO_MODEL.finditer(text)
    ]


def secret_parameters(parameters: JSON) -> list[str]:
    """The parameters that ask for a secret, by their names or descriptions: "login.password"."""
    return sorted(
        ".".join(path)
        for path, schema in _properties(parameters)
        if _SECRET.search(path[-1])
        or (isinstance(schema, dict) and _SECRET.search(str(schema.get("description", ""))))
    )


def _properties(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    pending = [(schema, path)]
    while pending:
        part, path = pending.pop()
        if isinstance(part, list):
            pending += [(item, path) for item in part]
        elif isinstance(part, dict):
            named = part.get("properties")
            for name, inner in named.items() if isinstance(named, dict) else ():
                yield (*path, name), inner
                pending.append((inner, (*path, name)))
            pending += [(value, path) for key, value in part.items() if key != "properties"]


def _pieces(value: Any) -> Iterator[str]:
    """Its texts, as lines of pieces; while a regular expression reads one, all other threads wait."""
    piece = ""
    for text in _texts(value):
        piece += f"{text}\n"
        if len(piece) > PIECE:
            yield piece
            piece = ""
    yield piece


def _texts(value: Any) -> Iterator[str]:
    """Each text in a JSON value, the keys of objects too."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            pending += [*part.values(), *part]
        elif isinstance(part, list):
            pending += part
