"""JSON as lax servers write it: with NaN, or with a character cut into the halves of a surrogate pair."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(text: bytes) -> Any:
    """The value, null for NaN; a text in it may hold half a character. Raises ValueError for what is no JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text, parse_constant=lambda _: None)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def loads_mended(text: bytes) -> Any:
    """The value, with every text in it whole. orjson takes no halves, so what it reads needs no mending."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return mended_all(loads(text))


def dumps(value: Any) -> bytes:
    """JSON in which halves of characters stay halves, so that the other one may follow later."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def mended(text: str) -> str:
    """`text` with its halves put together; one that is alone becomes U+FFFD, since no JSON writer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def mended_all(value: Any) -> Any:
    """The same for every text in a JSON value."""
    if isinstance(value, str):
        return mended(value)
    if isinstance(value, list):
        return [mended_all(item) for item in value]
    if isinstance(value, dict):
        return {mended(key): mended_all(item) for key, item in value.items()}
    return value
