"""Server-sent events as a response, with keep-alive comments; a disconnect of the client cancels it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from toolway.errors import ToolwayError
from toolway.server.disconnect import cancel_on_disconnect
from toolway.server.json_response import send_error
from toolway.types import Header
from toolway.wire import sse

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStreamResponse:
    """The client's side of one event stream. Each write is whole events, so comments may stand between."""

    def __init__(self, send: Send, keep_alive: float) -> None:
        self.started = self._ended = False
        self._send = send
        self._interval = keep_alive
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
        """Send the last events. No comment may follow them, however long a slow client takes."""
        self._ended = True
        await self._send({"type": "http.response.body", "body": events})

    async def refuse(self, error: ToolwayError) -> None:
        """Answer with an error status; only before `start`."""
        await send_error(self._send, error)

    async def keep_alive(self) -> None:
        """Write a comment whenever nothing else was written for the interval; runs until cancelled."""
        await self._opened.wait()
        while not self._ended:
            silence = time.monotonic() - self._written
            if silence >= self._interval:
                await self.write(sse.KEEP_ALIVE)
                silence = 0.0
            await asyncio.sleep(self._interval - silence)


async def stream_events(
    scope: Scope,
    receive: Receive,
    send: Send,
    produce: Callable[[EventStreamResponse], Coroutine[Any, Any, None]],
    *,
    keep_alive: float,
) -> None:
    """Run `produce(stream)` with keep-alive comments while the client listens."""
    stream = EventStreamResponse(send, keep_alive)

    async def run() -> None:
        # anyio's task group would cost each stream 0.1 ms more.
        async with asyncio.TaskGroup() as group:
            comments = group.create_task(stream.keep_alive())
            await produce(stream)
            comments.cancel()

    await cancel_on_disconnect(scope, receive, run)
