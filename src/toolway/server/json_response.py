"""Small ASGI answers: JSON, and errors in OpenAI's envelope."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from starlette.types import Send

from toolway.errors import ToolwayError, UpstreamError, UpstreamStatus
from toolway.server.error_envelope import openai_envelope
from toolway.types import JSON_TYPE, Header

DO_NOT_RETRY: Header = (b"x-should-retry", b"false")
"""The OpenAI SDKs repeat a 5xx twice; after a tool ran that would run its side effects again."""

NOT_RELAYED = frozenset(
    {
        b"alt-svc",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"cache-control",
        b"date",
        b"server",
        b"set-cookie",
        b"location",
        b"strict-transport-security",
        b"vary",
        b"x-accel-buffering",
    }
)
"""Headers of an upstream answer that do not hold for the answer that Toolway makes of it."""


async def send_whole(send: Send, status: int, body: bytes, headers: Sequence[Header] = (JSON_TYPE,)) -> None:
    """A complete response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: Any, headers: Sequence[Header] = ()) -> None:
    """`body` as JSON."""
    await send_whole(send, status, orjson.dumps(body), [JSON_TYPE, *headers])


async def send_error(send: Send, error: ToolwayError, headers: Sequence[Header] = ()) -> None:
    """The error in OpenAI's envelope; an upstream's own refusal is relayed as it came."""
    if isinstance(error, UpstreamStatus):
        kind = [header for header in error.headers if header[0] == b"content-type"]
        await send_whole(send, error.status, error.body, [*kind, *relayed(error.headers)])
    else:
        await send_json(send, error.status, openai_envelope(error), headers)


async def send_failure(send: Send, error: ToolwayError, *, tools_ran: bool) -> None:
    """The error in place of a whole answer. After a tool ran no status may make an SDK ask again by itself."""
    if tools_ran:
        status = 502 if isinstance(error, UpstreamError) else 500
        await send_json(send, status, openai_envelope(error), [DO_NOT_RETRY])
    else:
        await send_error(send, error)


def relayed(headers: Iterable[Header]) -> list[Header]:
    """The upstream headers that a client may use: request ids, rate limits, retry-after, vendor ones."""
    return [
        (name, value)
        for name, value in headers
        if name not in NOT_RELAYED and not name.startswith(b"access-control-")
    ]
