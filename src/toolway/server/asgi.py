"""ASGI requests and responses: bodies in; JSON, event streams and relayed answers out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from toolway.errors import InvalidRequest, TooLarge
from toolway.server.cancellation import cancel_on_disconnect
from toolway.types import JSON, JSON_TYPE, Header
from toolway.upstream.client import UpstreamResponse
from toolway.wire import sse
from toolway.wire.lenient_json import dumps, loads_exact

MAX_DEPTH = 200
"""Levels of nesting. Little more can be read than written (254), and what is kept of a request adds some."""


class ClientGone(Exception):
    """The client left, perhaps before its request was whole; there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises TooLarge over `limit` bytes, before buffering more than that; ClientGone."""
    headers = dict(scope["headers"])
    if (length := headers.get(b"content-length", b"")).isdigit() and int(length) > limit:
        raise _too_large(limit)
    if b"content-encoding" in headers and _is_compressed(scope["headers"]):
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


def _is_compressed(headers: Iterable[Header]) -> bool:
    return any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers)


def parse_object(body: bytes) -> JSON:
    """The JSON object in a body. Raises InvalidRequest: no JSON, another kind of value, too deep."""
    if not body:
        raise InvalidRequest("The request has no body; send a JSON object.")
    try:
        parsed = loads_exact(body, max_depth=MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from error
    except ValueError as error:
        raise InvalidRequest(f"The request body cannot be used: {error}.") from error
    if not isinstance(parsed, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return parsed


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The request body is larger than {limit:,} bytes (the setting TOOLWAY_MAX_BODY_BYTES).")


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
"""Headers of a model server's answer that do not hold for the answer that Toolway makes of it."""


async def send_whole(send: Send, status: int, body: bytes, headers: Sequence[Header] = (JSON_TYPE,)) -> None:
    """A complete response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: Any, headers: Sequence[Header] = ()) -> None:
    """`body` as JSON."""
    await send_whole(send, status, dumps(body), [JSON_TYPE, *headers])


def relayed(headers: Iterable[Header]) -> list[Header]:
    """The headers of a model server that a client may use: request ids, rate limits, retry-after, vendor ones."""
    return [
        (name, value)
        for name, value in headers
        if name not in NOT_RELAYED and not name.startswith(b"access-control-")
    ]


STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStreamResponse:
    """The client's side of one event stream. Each write is whole events, so a `pulse` may stand between."""

    def __init__(self, send: Send, keep_alive: float, pulse: bytes = sse.KEEP_ALIVE) -> None:
        self.started = self._ended = False
        self._send = send
        self._interval = keep_alive
        self._pulse = pulse
        self._written = 0.0
        self._opened = asyncio.Event()

    async def start(self, headers: Sequence[Header]) -> None:
        """Send the 200 and its headers now."""
        self.started = True
        self._written = time.monotonic()
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]}
        )
        await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        self._opened.set()

    async def write(self, events: bytes) -> None:
        """Send events; waits when the client reads slowly."""
        if events:
            self._written = time.monotonic()
            await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Send the last events. No pulse may follow them, however long a slow client takes."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": events})

    async def keep_alive(self) -> None:
        """Write the pulse whenever nothing else was written for the interval; runs until cancelled."""
        await self._opened.wait()
        while not self._ended:
            silence = time.monotonic() - self._written
            if silence >= self._interval:
                await self.write(self._pulse)
                silence = 0.0
            await asyncio.sleep(self._interval - silence)


async def stream_events(
    scope: Scope,
    receive: Receive,
    send: Send,
    produce: Callable[[EventStreamResponse], Coroutine[Any, Any, None]],
    *,
    keep_alive: float,
    pulse: bytes = sse.KEEP_ALIVE,
) -> None:
    """Run `produce(stream)` while the client listens, with a `pulse` in each silence of `keep_alive` seconds."""
    stream = EventStreamResponse(send, keep_alive, pulse)

    async def run() -> None:
        # Most streams end before a pulse can be due: a task for each, and its group, would cost them a twentieth.
        loop = asyncio.get_running_loop()
        pulses: list[asyncio.Task[None]] = []
        first = loop.call_later(keep_alive, lambda: pulses.append(loop.create_task(stream.keep_alive())))
        try:
            await produce(stream)
        finally:
            first.cancel()
            for task in pulses:
                task.cancel()
                await asyncio.wait(pulses)

    await cancel_on_disconnect(scope, receive, run)


async def relay(answer: UpstreamResponse, send: Send) -> None:
    """Send a model server's answer to the client as it comes; what is said of CORS is ours to say."""
    headers = [header for header in answer.headers if not header[0].startswith(b"access-control-")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    while data := await answer.receive():
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
