"""The body of a request, as a JSON object of bounded size."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope

from toolway.errors import InvalidRequest, TooLarge
from toolway.types import JSON

MAX_DEPTH = 200
"""Levels of nesting. Little more can be read than written (254), and what is kept of a request adds some."""


class ClientGone(Exception):
    """The client left, perhaps before its request was whole; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises TooLarge over `limit` bytes, before buffering more than that; ClientGone."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
        if name == b"content-encoding" and value.lower() != b"identity":
            raise InvalidRequest("Compressed request bodies are not accepted here; send plain JSON.")
    parts, size = [], 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        part = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not event.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parse_object(body: bytes) -> JSON:
    """The JSON object in a body. Raises InvalidRequest: no JSON, another kind of value, too deep."""
    if not body:
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deep(parsed):
        raise InvalidRequest(f"The request body is nested deeper than {MAX_DEPTH} levels.")
    return parsed


def _is_deep(parsed: JSON) -> bool:
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        inner = (outer.values() if type(outer) is dict else outer for outer in level)
        level = [value for values in inner for value in values if type(value) in (dict, list)]
        if not level:
            return False
    return True


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit:,} bytes (the setting TOOLWAY_MAX_BODY_BYTES).")
