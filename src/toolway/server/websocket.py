"""WebSockets: one connection for whoever speaks over it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import anyio
from starlette.types import Message, Receive, Scope, Send

from toolway.dialects import RESPONSES
from toolway.server.asgi import ClientGone
from toolway.server.cancellation import SHUTDOWN, ConnectionSignal
from toolway.settings.settings import ServerSettings
from toolway.types import Header

T = TypeVar("T")

WEBSOCKET_PATHS = frozenset({RESPONSES.path})
"""Where a GET may become a WebSocket. Every other offer to upgrade is declined."""

MAX_QUEUED = 64
"""Messages that may wait while work is under way."""

CLOSE_SECONDS = 5.0
"""How long a close waits for a client that does not read, and then for its answer."""

NORMAL, GOING_AWAY, UNSUPPORTED, POLICY, FAILED = 1000, 1001, 1003, 1008, 1011
"""Codes of a close (RFC 6455, 7.4.1)."""

PONG_SECONDS = 30.0
"""A client that gives no sign of life for so long after a ping is gone."""

STOPPING = "The server is stopping."


class WebSocket:
    """The server's side of one connection, over ASGI's three. One task receives; any may send.

    Every method raises ClientGone once the connection is over, whoever ended it: the client, a limit, or the stop of
    this server. Between messages it may be idle for `websocket_idle_timeout`; the server's pings find out meanwhile
    whether the client is alive.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: ServerSettings) -> None:
        self._receive = receive
        self._send = send
        self._idle_timeout = settings.websocket_idle_timeout
        self._max_queued = settings.max_body_bytes
        self._queued: deque[str] = deque()
        self._over = False
        self._shutdown: ConnectionSignal = (scope.get("extensions") or {}).get(SHUTDOWN) or ConnectionSignal()

    async def accept(self, headers: Sequence[Header] = ()) -> None:
        """Answer 101, with these headers besides."""
        await self._next_of("websocket.connect")
        await self._send_event({"type": "websocket.accept", "headers": list(headers)})

    async def receive_text(self) -> str:
        """The next message. A binary one, silence for too long, or the stop of the server closes the connection."""
        reason = STOPPING
        if not self._shutdown.is_set:
            if self._queued:
                return self._queued.popleft()
            reason = f"Nothing was sent for {self._idle_timeout:g} seconds."
            with anyio.CancelScope(deadline=anyio.current_time() + self._idle_timeout) as wait:
                self._shutdown.add_callback(wait.cancel)
                try:
                    return await self._next_text()
                finally:
                    self._shutdown.remove_callback(wait.cancel)
        if self._shutdown.is_set:
            reason = STOPPING
        await self.close(GOING_AWAY, reason)
        raise ClientGone

    def __aiter__(self) -> WebSocket:
        return self

    async def __anext__(self) -> str:
        """The next message; the end when the connection is over."""
        try:
            return await self.receive_text()
        except ClientGone:
            raise StopAsyncIteration from None

    async def send_text(self, text: bytes) -> None:
        """Send a message of UTF-8; waits while the client reads slowly."""
        await self._send_event({"type": "websocket.send", "text": text.decode()})

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye, with at most 123 bytes of reason. Nothing happens when the connection is over already."""
        if self._over:
            return
        self._over = True
        with suppress(OSError, RuntimeError), anyio.move_on_after(CLOSE_SECONDS):
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def while_open(self, produce: Callable[[], Awaitable[T]]) -> T:
        """What `produce` returns or raises; it is cancelled when the client leaves, which raises ClientGone.

        Messages that come meanwhile wait for `receive_text`; too many of them close the connection. The stop of
        the server does not end it before `shutdown_grace` is over; then it is as if the client had left.
        """
        results: list[T] = []
        failures: list[Exception] = []
        async with anyio.create_task_group() as group:

            async def collect() -> None:
                with suppress(ClientGone):
                    while True:
                        await self._enqueue(await self._next_text())
                group.cancel_scope.cancel()

            group.start_soon(collect)
            # A task group would raise a group.
            try:
                results.append(await produce())
            except Exception as error:
                failures.append(error)
            group.cancel_scope.cancel()
        for failure in failures:
            raise failure
        if not results:
            raise ClientGone
        return results[0]

    async def _enqueue(self, text: str) -> None:
        self._queued.append(text)
        if len(self._queued) > MAX_QUEUED or sum(map(len, self._queued)) > self._max_queued:
            await self.close(POLICY, "Too many messages wait; wait for the end of a response.")
            raise ClientGone

    async def _next_text(self) -> str:
        text = (await self._next_of("websocket.receive")).get("text")
        if text is None:
            await self.close(UNSUPPORTED, "Messages must be text, not binary.")
            raise ClientGone
        return str(text)

    async def _next_of(self, kind: str) -> Message:
        if self._over:
            raise ClientGone
        message = await self._receive()
        if message["type"] != kind:
            self._over = True
            raise ClientGone
        return message

    async def _send_event(self, message: Message) -> None:
        if self._over:
            raise ClientGone
        try:
            await self._send(message)
        # ASGI has OSError for a client that left. uvicorn raises RuntimeError when it has closed by itself.
        except (OSError, RuntimeError):
            self._over = True
            raise ClientGone from None


async def serve_websocket(
    scope: Scope,
    receive: Receive,
    send: Send,
    settings: ServerSettings,
    handle: Callable[[WebSocket], Awaitable[None]],
) -> None:
    """Accept the connection, run `handle`, and close: 1000 at its end, 1011 when it failed, 1001 when cancelled."""
    socket = WebSocket(scope, receive, send, settings)
    try:
        await socket.accept()
        await handle(socket)
        await socket.close()
    except ClientGone:
        return
    except asyncio.CancelledError:
        await socket.close(GOING_AWAY, STOPPING)
        raise
    except Exception:
        await socket.close(FAILED, "The server failed; its log says why.")
        raise


def in_place_of_upgrade(scope: Scope, send: Send) -> Send:
    """A `send` that takes an HTTP answer, to reject a WebSocket with; without the extension that is a bare 403."""
    if "websocket.http.response" in (scope.get("extensions") or {}):

        async def answer(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        return answer

    async def reject(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send({"type": "websocket.close", "code": POLICY})

    return reject
