"""Regular expressions of a JSON Schema -> those that llama.cpp's grammars can be made of, or none."""

from __future__ import annotations

import re

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
