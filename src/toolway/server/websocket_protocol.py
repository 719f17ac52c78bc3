"""uvicorn's protocol for WebSockets, with bounds; loaded with the first client that wants one."""

from __future__ import annotations

from asyncio import AbstractEventLoop, BaseTransport
from typing import Any, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Close, Frame
from websockets.http11 import Request

from toolway.server.cancellation import SHUTDOWN, ConnectionSignal
from toolway.server.websocket import CLOSE_SECONDS, GOING_AWAY, POLICY, STOPPING
from toolway.types import Header

MAX_FRAGMENTS = 16 * 1024
"""Frames of one message; each costs memory, however small it is."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, from the moment at which `HttpProtocol` hands it over.

    Uvicorn alone waits for ever for a client that does not read what is in the way of its close, answers pings into
    a buffer without end, takes a slow reader for a dead one, does not let a client hear why its message is rejected,
    and cuts work off at a stop.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.close_timeout = CLOSE_SECONDS
        self._headers: list[Header] = []
        self._shutdown = ConnectionSignal()
        self._client_is_alive = False
        self._unsent = 0
        """Bytes that waited for the client when it was pinged."""

    def take_over(self, transport: BaseTransport, url: bytes, headers: list[Header]) -> None:
        """Go on with a connection whose client sent this handshake, which is known to be valid."""
        self._headers = headers
        self.connection_made(transport)
        # Parsed once more with other limits; so only what that is needed for.
        needed = [b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13"]
        needed += [name + b": " + value for name, value in headers if name == b"sec-websocket-key"]
        self.data_received(b"\r\n".join([b"GET " + url + b" HTTP/1.1", *needed, b"", b""]))

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = cast("Any", _BoundedClose(transport, self.loop))

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        self.scope["headers"] = self._headers
        cast("Any", self.scope)["extensions"][SHUTDOWN] = self._shutdown

    def data_received(self, data: bytes) -> None:
        self._client_is_alive = True
        super().data_received(data)

    def resume_writing(self) -> None:
        self._client_is_alive = True
        super().resume_writing()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.conn.fail(POLICY, f"A message may have at most {MAX_FRAGMENTS} frames.")
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            # Who does not read gets no answers either: they would pile up here.
            self.conn.data_to_send()

    def send_keepalive_ping(self) -> None:
        self._client_is_alive = False
        self._unsent = self.transport.get_write_buffer_size()
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        reads = self.transport.get_write_buffer_size() < self._unsent
        if self._client_is_alive or reads or self.read_paused:
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    def handle_parser_exception(self) -> None:
        """Close, but read on for a while: to close on a client that still sends would take the reason from it."""
        if self.close_sent:
            return
        close = cast("Close", self.conn.close_sent)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.write_eof()
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def shutdown(self) -> None:
        """Let work that is under way end; whoever waits for a message closes at once (`websocket.WebSocket`)."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
            return
        self._shutdown.set()
        if grace := self.config.timeout_graceful_shutdown:
            # A little earlier than uvicorn, which would cancel the task and leave no time to say goodbye.
            self.loop.call_later(grace - min(0.5, grace / 2), self._go_away)

    def _go_away(self) -> None:
        if self.close_sent or self.disconnected:
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": GOING_AWAY})
        self.conn.send_close(GOING_AWAY, STOPPING)
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()


class _BoundedClose:
    """A transport whose close does not wait for ever until a client has read everything."""

    def __init__(self, transport: Any, loop: AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSE_SECONDS, self._transport.abort)
