"""A response that is produced while the client listens; a client that leaves cancels its making."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
from starlette.types import Receive, Send

from toolway import sse
from toolway.errors import ToolwayError
from toolway.respond import Header, send_error

Task = Callable[[], Coroutine[Any, Any, None]]

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Live:
    """The client's side of one event stream. Each write is whole events, so comments may stand between."""

    def __init__(self, send: Send, keep_alive: float) -> None:
        self.started = False
        self._send = send
        self._interval = keep_alive
        self._written = 0.0
        self._opened = anyio.Event()

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
        """Send the last events."""
        await self._send({"type": "http.response.body", "body": events})

    async def refuse(self, error: ToolwayError) -> None:
        """Answer with an error status; only before `start`."""
        await send_error(self._send, error)

    async def keep_alive(self) -> None:
        """Write a comment whenever nothing else was written for the interval; runs until cancelled."""
        await self._opened.wait()
        while True:
            silence = time.monotonic() - self._written
            if silence >= self._interval:
                await self.write(sse.KEEP_ALIVE)
                silence = 0.0
            await anyio.sleep(self._interval - silence)


async def while_client_listens(receive: Receive, produce: Task, *beside: Task) -> None:
    """Run `produce`, with `beside` at its side; all of it is cancelled when the client is gone.

    To be called when the whole request was received: all that can come then is the news that the client left.
    """
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        for task in beside:
            group.start_soon(task)
        await produce()
        group.cancel_scope.cancel()


async def stream_live(
    receive: Receive, send: Send, produce: Callable[[Live], Coroutine[Any, Any, None]], *, keep_alive: float
) -> None:
    """Run `produce(live)` with keep-alive comments while the client listens."""
    live = Live(send, keep_alive)
    await while_client_listens(receive, lambda: produce(live), live.keep_alive)
