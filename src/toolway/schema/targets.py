"""What each kind of model server takes of JSON Schema, as a table, and of the regular expressions in it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

SchemaTarget = Literal["openai", "llama.cpp", "gemini", "strict"]


@dataclass(frozen=True, kw_only=True)
class TargetRules:
    """What one kind of model server takes: these keywords, and some of them only in one way."""

    keywords: frozenset[str]
    formats: frozenset[str] | None = None
    """The formats of strings that it knows; None: any."""
    largest: float = math.inf
    """The largest length or count that it takes as a bound."""
    largest_number: float = math.inf
    any_regex: bool = True
    type_lists: bool = True
    """Several types may stand in one `type`."""
    null_is_a_type: bool = True
    """Else `nullable` says it, and only strings can be enumerated."""
    always_typed: bool = False
    """Each property needs a `type` of one word: chat templates read it without asking whether it is there."""
    free_objects: bool = True
    """An object may have no named properties; else it becomes a string of JSON."""
    ceiling: float = math.inf
    """Bytes that all definitions of a request may have together."""
    closed: bool = False
    """Every object names and requires all its properties; what may be missing may be null instead."""


def _words(words: str, more: frozenset[str] = frozenset()) -> frozenset[str]:
    return more | frozenset(words.split())


_COMMON = _words("type description enum items properties required anyOf")
NUMBERS = _words("minimum maximum exclusiveMinimum exclusiveMaximum")
_SIZES = _words("minLength maxLength minItems maxItems")

RULES: dict[SchemaTarget, TargetRules] = {
    "openai": TargetRules(
        keywords=_words(
            "title default examples const format pattern multipleOf uniqueItems additionalProperties minProperties "
            "maxProperties patternProperties propertyNames",
            _COMMON | NUMBERS | _SIZES,
        )
    ),
    # common/json-schema-to-grammar.cpp writes a repetition out rule by rule: a lower bound of thousands is refused,
    # and a lower bound above the upper one never ends (measured: b11549).
    "llama.cpp": TargetRules(
        keywords=_words("default const format pattern additionalProperties", _COMMON | NUMBERS | _SIZES),
        formats=_words("date time date-time uuid"),
        largest=64,
        ceiling=96_000,  # ggml-org/llama.cpp#25895
        largest_number=2**53,
        any_regex=False,
        type_lists=False,
        always_typed=True,
    ),
    # ai.google.dev/api/caching#Schema is a protobuf message: one unknown member fails the whole request.
    "gemini": TargetRules(
        keywords=_words("nullable format minItems maxItems minimum maximum", _COMMON),
        formats=_words("date-time"),
        largest=10_000,
        largest_number=2**53,
        any_regex=False,
        type_lists=False,
        null_is_a_type=False,
        always_typed=True,
        free_objects=False,
    ),
    # platform.openai.com/docs/guides/structured-outputs names the part of JSON Schema that strict tools may use.
    "strict": TargetRules(
        keywords=_words("minItems maxItems const format pattern multipleOf", _COMMON | NUMBERS),
        formats=_words("date-time time date duration email hostname ipv4 ipv6 uuid"),
        largest=10_000,
        any_regex=False,
        free_objects=False,
        closed=True,
    ),
}


MAX_REPEAT = 64

_CLASS_ESCAPE = r"\\[dw.\-\]\[/^]"
_TOKEN = re.compile(
    rf"""
      (?P<plain>[A-Za-z0-9 _,:;=@%&~<>\#!'/-])
    | (?P<escaped>\\[.+*?()\[\]{{}}|^$/-])
    | (?P<shorthand>\\[dw])
    | (?P<set>\[\^?(?:[A-Za-z0-9 _,:;=@%&~<>\#!'/.+*?(){{}}|$-]|{_CLASS_ESCAPE})+\])
    | (?P<dot>\.)
    | (?P<open>\((?:\?:)?)
    | (?P<close>\))
    | (?P<or>\|)
    | (?P<repeat>[*+?]|\{{\d+(?:,\d*)?\}})
    """,
    re.VERBOSE,
)
_SHORTHAND = {"d": "0-9", "w": "A-Za-z0-9_"}


def portable_pattern(pattern: object) -> str | None:
    r"""`pattern` in the part of the language that every build of llama.cpp reads; None when it cannot be said in it.

    That part is anchored at both ends and has no lookaround, no `\b \s \p`, no lazy or huge repetitions. `\d` and
    `\w` become sets (ggml-org/llama.cpp#26930, #27580).
    """
    if not isinstance(pattern, str) or len(pattern) > 500 or not re.fullmatch(r"\^.+\$", pattern, re.DOTALL):
        return None
    body = _translated(pattern[1:-1])
    if body is None or not _is_sound(body):
        return None
    return f"^{body}$"


def _translated(body: str) -> str | None:
    out: list[str] = []
    position, before = 0, "start"
    while position < len(body):
        token = _TOKEN.match(body, position)
        if token is None:
            return None
        kind, text = token.lastgroup or "", token.group()
        if kind == "repeat" and (before in ("start", "open", "or", "repeat") or _too_many(text)):
            return None
        if kind in ("close", "or") and before in ("start", "open", "or"):
            return None
        out.append(_written(kind, text))
        position, before = token.end(), kind
    return None if before in ("or", "open") else "".join(out)


def _written(kind: str, text: str) -> str:
    if kind == "shorthand":
        return f"[{_SHORTHAND[text[1]]}]"
    if kind == "set":
        return re.sub(r"\\([dw])", lambda found: _SHORTHAND[found[1]], text)
    return "(" if kind == "open" else text


def _too_many(repeat: str) -> bool:
    return any(int(number) > MAX_REPEAT for number in re.findall(r"\d{1,9}", repeat))


def _is_sound(body: str) -> bool:
    """Whether it is one expression: a `|` outside all brackets would stand beside the anchors, not between them."""
    depth = 0
    for token in _TOKEN.finditer(body):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        if depth < 0 or (depth == 0 and token.lastgroup == "or"):
            return False
    try:
        re.compile(body)
    except (re.error, OverflowError):
        return False
    return depth == 0
