"""Values of parameters -> text on the wire, by OpenAPI's `style` and `explode` (RFC 6570)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

RESERVED = "/:?@!$'()*,;"
"""What `allowReserved` leaves as it is; never what ends a value or the query."""

_DELIMITERS = {"spaceDelimited": "%20", "pipeDelimited": "%7C", "tabDelimited": "%09"}

Pair = tuple[str, str]


def to_text(value: Any) -> str:
    """A value as plain text: `true`, `12.5`, `Paris`; an object or array as compact JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else to_json(value)


def to_json(value: Any) -> str:
    """A value as compact JSON. Raises ValueError for what JSON cannot say (NaN)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encoded(text: str, safe: str = "") -> str:
    """Percent-encoded but for letters, digits, `-._~` and what is in `safe`."""
    return quote(text, safe=safe)


def in_query(name: str, value: Any, style: str, explode: bool, *, reserved: bool = False) -> list[Pair]:
    """Encoded (name, value) pairs for a query string or an urlencoded body."""
    safe = RESERVED if reserved else ""
    if style == "deepObject" and isinstance(value, dict | list):
        return [(encoded(key), encoded(text, safe)) for key, text in _deep(name, value)]
    if isinstance(value, dict) and explode:
        return [(encoded(key), encoded(to_text(item), safe)) for key, item in value.items()]
    if isinstance(value, list) and explode:
        return [(encoded(name), encoded(to_text(item), safe)) for item in value]
    if isinstance(value, dict | list):
        joined = _DELIMITERS.get(style, ",").join(_parts(value, lambda text: encoded(text, safe)))
        return [(encoded(name), joined)] if value else []
    return [(encoded(name), encoded(to_text(value), safe))]


def in_path(name: str, value: Any, style: str, explode: bool) -> str:
    """The encoded text that takes the place of `{name}` in a path."""
    parts = _parts(value, encoded, joined=explode)
    if style == "label":
        return "." + ("." if explode else ",").join(parts)
    if style == "matrix":
        return _matrix(encoded(name), value, parts, explode)
    return ",".join(parts)


def in_header(value: Any, explode: bool) -> str:
    """Style `simple`: the parts of an array or object with commas between."""
    return ",".join(_parts(value, str, joined=explode))


def _matrix(name: str, value: Any, parts: list[str], explode: bool) -> str:
    if isinstance(value, dict) and explode:
        return "".join(f";{part}" for part in parts)
    if isinstance(value, list) and explode:
        return "".join(f";{name}={part}" for part in parts)
    return f";{name}={','.join(parts)}"


def _parts(value: Any, encode: Callable[[str], str], *, joined: bool = False) -> list[str]:
    """The encoded parts of a value: an object's are `k, v, k, v`, or `k=v, k=v` when `joined`."""
    if isinstance(value, list):
        return [encode(to_text(item)) for item in value]
    if not isinstance(value, dict):
        return [encode(to_text(value))]
    pairs = [(encode(str(key)), encode(to_text(item))) for key, item in value.items()]
    return [f"{key}={text}" for key, text in pairs] if joined else [part for pair in pairs for part in pair]


def _deep(name: str, value: Any) -> Iterator[Pair]:
    """`name[key][key]=text`; plain items of an array as `name[]`, others by their index."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _deep(f"{name}[{key}]", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _deep(f"{name}[{index}]" if isinstance(item, dict | list) else f"{name}[]", item)
    else:
        yield name, to_text(value)
