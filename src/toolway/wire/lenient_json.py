"""Lenient JSON, read and written: lax syntax is read, and no value is too deep, too large or too broken to be written.

What comes from a model server, a client or a tool may be nested thousands of levels, hold numbers of thousands of
digits, or half a surrogate pair. Each edge reads and writes through this module, so that none of it is ever a fault
of ours. Integers stay exact in both directions: orjson makes floats of those beyond 64 bits and writes none of them.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

MAX_DEPTH = 128
"""Levels of a value that are kept. orjson writes 254, and what is kept stands within messages and events."""

MAX_DIGITS = 4000
"""Digits of an integer that is read exactly; CPython itself reads and writes 4,300."""

MAX_PARTS = 200_000
"""Values within one that is made harmless piece by piece; what is more is left out."""

LEFT_OUT = "…"
"""Stands in the place of what is too deep or too much."""

_LARGEST = 10**MAX_DIGITS
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[0-9]{19}")
"""What may be beyond 64 bits."""
_ZEROS_FOR_DIGITS = bytes(0x30 if byte in b"0123456789" else byte for byte in range(256))
_QUOTED_LEFT_OUT = f'"{LEFT_OUT}"'.encode()
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?[0-9]{20,}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?', re.DOTALL)


def loads(text: bytes) -> Any:
    """The value, null for NaN; a text in it may hold half a character. Raises ValueError for what is no JSON."""
    return loads_told(text)[0]


def loads_told(text: bytes) -> tuple[Any, bool]:
    """The same, and whether every JSON reader takes the text and finds this value in it."""
    if not _may_hold_large_integers(text):
        try:
            return orjson.loads(text), True
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(text, parse_constant=lambda _: None), False
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def may_be_deeper(text: bytes, max_depth: int) -> bool:
    """Whether a JSON value may be nested deeper: that takes two brackets for each level."""
    return len(text) > 2 * max_depth and _brackets_in(text) > max_depth


def _brackets_in(text: bytes) -> int:
    # CPython 3.11 finds a byte far faster than it counts it.
    return 2 * len(text) - len(text.replace(b"{", b"")) - len(text.replace(b"[", b""))


def loads_harmless(text: bytes, *, max_parts: int = MAX_PARTS) -> Any:
    """The value as `harmless` makes it."""
    value, is_plain = loads_told(text)
    if is_plain and not may_be_deeper(text, MAX_DEPTH):
        return value
    return harmless(value, max_parts=max_parts)


def _may_hold_large_integers(text: bytes) -> bool:
    """Whether 19 digits in a row, no decimals, are in it. Every sixth byte says no for most: such a row has three."""
    return (
        text[::6].translate(_ZEROS_FOR_DIGITS).find(b"000") >= 0  # `in` of CPython 3.11 makes an error first
        and text.translate(_ZEROS_FOR_DIGITS).find(b"0" * 19) >= 0
        and _LONG_INTEGER.search(text) is not None
    )


def loads_cut(text: bytes) -> Any:
    """The value as far as it can be kept, however deep it is and whatever digits its numbers have.

    What is deeper than MAX_DEPTH, or has more than MAX_DIGITS digits, is LEFT_OUT. Raises ValueError for no JSON.
    """
    kept, depth, begin = [], 0, 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start() : token.start() + 1]
        if mark in (b"{", b"["):
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept.append(text[begin : token.start()])
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth == MAX_DEPTH:
                kept.append(_QUOTED_LEFT_OUT)
                begin = token.end()
        elif mark != b'"' and depth <= MAX_DEPTH and token.end() - token.start() > MAX_DIGITS:
            kept += [text[begin : token.start()], _QUOTED_LEFT_OUT]
            begin = token.end()
    return harmless(loads(b"".join([*kept, text[begin:]])))


def loads_exact(text: str | bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value with every integer as it is written. Raises ValueError, in words, for what cannot be kept so."""
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    if not _may_hold_large_integers(text):
        try:
            return _bounded(orjson.loads(text), text, max_depth)
        except orjson.JSONDecodeError:
            pass
    return fix_surrogates_in(_bounded(_loads_digits(text), text, max_depth))


def _bounded(value: Any, text: bytes, max_depth: int) -> Any:
    if may_be_deeper(text, max_depth) and is_too_deep(value, max_depth):
        raise ValueError(f"it is nested deeper than {max_depth} levels")
    return value


def _loads_digits(text: bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_reject, parse_int=_exact_integer, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def _exact_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds a number that is too large ({text[:40]})")
    return number


def _reject(word: str) -> Any:
    raise ValueError(f"it holds {word}, which is not JSON")


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON of any value. Integers stay exact; halves of characters stay halves, so that the other may follow later."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:
        return _dumps_slowly(value, sort_keys=sort_keys, ascii_only=True).encode()


def dumps_exact(value: Any) -> bytes:
    """JSON of a value that every reader takes as it is. Raises ValueError for halves of characters and NaN."""
    try:
        return orjson.dumps(value)
    except TypeError:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
        return text.encode()


def dumps_text(value: Any) -> str:
    """JSON of any value as text for people and models: integers stay exact, halves of characters become U+FFFD."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return fix_surrogates(_dumps_slowly(value, sort_keys=False, ascii_only=False))


def _dumps_slowly(value: Any, *, sort_keys: bool, ascii_only: bool) -> str:
    try:
        return json.dumps(
            value,
            ensure_ascii=ascii_only,
            separators=(",", ":"),
            sort_keys=sort_keys,
            allow_nan=False,
            default=_plain,
        )
    except (ValueError, TypeError, RecursionError):
        return json.dumps(harmless(value), separators=(",", ":"), sort_keys=sort_keys)


def harmless(value: Any, *, max_parts: int = MAX_PARTS) -> Any:
    """A value like `value` that every JSON reader takes; the same object if orjson writes it.

    Halves of characters become U+FFFD, what is no number null; what is deeper than MAX_DEPTH, has more than MAX_DIGITS
    digits or is more than `max_parts` is left out. Integers beyond 64 bits stay, and `dumps` writes them.
    """
    return value if _is_harmless(value) else _HarmlessCopy(max_parts).of(value, MAX_DEPTH)


def is_too_deep(value: Any, max_depth: int = MAX_DEPTH) -> bool:
    """Whether a value has more levels than these."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        inner = (outer.values() if isinstance(outer, dict) else outer for outer in level)
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def _is_harmless(value: Any) -> bool:
    """Asked of orjson, which rejects halves, large integers and still greater depth."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return False
    return not may_be_deeper(text, MAX_DEPTH) or not is_too_deep(value)


class _HarmlessCopy:
    """Copies a value without what is harmful in it; counts the parts."""

    def __init__(self, max_parts: int) -> None:
        self._parts = 0
        self._max_parts = max_parts

    def of(self, value: Any, depth: int) -> Any:
        self._parts += 1
        if isinstance(value, str):
            return fix_surrogates(value)
        if isinstance(value, dict | list):
            if depth <= 0:
                return LEFT_OUT
            return (
                self._object(value, depth - 1) if isinstance(value, dict) else self._array(value, depth - 1)
            )
        if isinstance(value, int) and not isinstance(value, bool):
            return value if -_LARGEST < value < _LARGEST else LEFT_OUT
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if value is None or isinstance(value, bool) else _plain(value)

    def _array(self, value: list[Any], depth: int) -> list[Any]:
        copy: list[Any] = []
        for item in value:
            if self._parts >= self._max_parts:
                return [*copy, LEFT_OUT]
            copy.append(self.of(item, depth))
        return copy

    def _object(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, item in value.items():
            if self._parts >= self._max_parts:
                break
            copy[fix_surrogates(str(key))] = self.of(item, depth)
        return copy


def _plain(value: Any) -> Any:
    """What is no JSON value as one: JSON that is written already is read again."""
    return orjson.loads(orjson.dumps(value)) if isinstance(value, orjson.Fragment) else str(value)


def fix_surrogates(text: str) -> str:
    """`text` with its halves put together; one that is alone becomes U+FFFD, since no JSON writer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def fix_surrogates_in(value: Any) -> Any:
    """The same for every text in a JSON value; its numbers stay as they are. Not for values that are deep."""
    if isinstance(value, str):
        return fix_surrogates(value)
    if isinstance(value, list):
        return [fix_surrogates_in(item) for item in value]
    if isinstance(value, dict):
        return {fix_surrogates(key): fix_surrogates_in(item) for key, item in value.items()}
    return value


_HALF = ("\ud800", "\udbff")
"""The range of characters that are the first half of one: a model server may cut there."""


class JsonText:
    """A text that comes in pieces, each of which is written as a JSON string at once."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""

    def quoted(self, text: str) -> bytes:
        """One more piece, in its quotes. Half a character waits for its other half."""
        if self._half:
            text, self._half = self._half + text, ""
        try:
            quoted = orjson.dumps(text)
        except TypeError:
            if _HALF[0] <= text[-1] <= _HALF[1]:
                text, self._half = text[:-1], text[-1]
            text = fix_surrogates(text)
            quoted = orjson.dumps(text)
        self._pieces.append(text)
        return quoted

    @property
    def waits(self) -> bool:
        """Whether half a character waits for its other half."""
        return bool(self._half)

    def append(self, text: str) -> None:
        """One more piece, which somebody else has written; nothing may wait."""
        self._pieces.append(text)

    def flush(self) -> str:
        """What is still to be written when no more comes: a sign for a half that stayed alone."""
        half, self._half = self._half, ""
        return fix_surrogates(half)

    def whole(self) -> str:
        """All that was written."""
        return "".join(self._pieces)
