"""uvicorn's HTTP protocol, with deadlines for slow clients, a bounded head, and one place to become a WebSocket."""

from __future__ import annotations

import logging
import re
import sys
from asyncio import TimerHandle, Transport
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import orjson
from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from toolway.errors import InvalidRequest, ToolwayError
from toolway.server.cancellation import DISCONNECT, SHUTDOWN, STOP, ConnectionSignal, stop_error
from toolway.server.envelopes import DO_NOT_RETRY, openai_envelope, send_error
from toolway.server.websocket import WEBSOCKET_PATHS

if TYPE_CHECKING:
    from toolway.server.websocket_protocol import WebSocketProtocol

if sys.platform != "win32":
    import fcntl
    import termios

log = logging.getLogger("toolway.http")

MIN_RATE = 16 * 1024
"""Bytes a second that a sender must bring to be given more time."""

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers; also of what follows a chunked body."""

MAX_BATCH = 64 * 1024
"""Bytes of an answer that wait for the end of the event loop's iteration; more go out at once."""


_BODY = frozenset({b"content-length", b"transfer-encoding"})
_NO_HANDSHAKE = (
    "This is no WebSocket handshake: send Sec-WebSocket-Version: 13 and a valid Sec-WebSocket-Key."
)
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")


class HttpProtocol(HttpToolsProtocol):
    """One connection. Uvicorn alone waits for ever for the rest of a request, and takes a head of any size.

    A request must be whole within `receive_timeout` seconds after its first byte, a new connection's first one
    after its beginning. Each MIN_RATE bytes earn a second, so uploads of any size pass and dripping gains
    nothing; the clock stands while we are the ones who do not read. Answers have no deadline, but a client that
    takes nothing of one for `send_timeout` seconds, or a quarter longer, is cut off. Whoever makes an answer can
    learn from the scope when the client leaves (`disconnect`).

    Offers to upgrade are declined: the request is answered as if they were not there. But a GET of one of the
    WEBSOCKET_PATHS becomes a WebSocket.
    """

    def __init__(self, receive_timeout: float, send_timeout: float, **given: Any) -> None:
        super().__init__(**given)
        self._receive_timeout = receive_timeout
        self._send_timeout = send_timeout
        self._due: float | None = None
        """When what we wait for must be there (loop time); None: we wait for nothing."""
        self._timer: TimerHandle | None = None
        self._begun = self._in_body = False
        self._head_size = 0
        """Bytes since the last thing that is no header."""
        self._data = b""
        self._upgraded = False
        self._last_words = b""
        """The refusal of what stands behind the requests under way, told when they are answered."""
        self._disconnect, self._stop = ConnectionSignal(), ConnectionSignal()
        self._shutdown = ConnectionSignal()
        self._extensions: Any = {
            DISCONNECT: self._disconnect,
            STOP: self._stop,
            SHUTDOWN: self._shutdown,
        }

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._send_timer = _SendTimeout(transport, self.loop, self._send_timeout)
        self._writer = _WriteBatch(transport, self.loop, self._send_timer)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disconnect.set()
        self._send_timer.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer.watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_timer.stop()

    def shutdown(self) -> None:
        self._writer.flush()
        super().shutdown()
        self._shutdown.set()
        if grace := self.config.timeout_graceful_shutdown:
            # A little earlier than uvicorn, which would cancel the task and leave no time for last words.
            self.loop.call_later(grace - min(0.5, grace / 2), self._stop.set)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def data_received(self, data: bytes) -> None:
        self._head_size += len(data)
        self._data = data
        super().data_received(data)
        if self._upgraded:
            return
        if self._head_size > MAX_HEAD:
            self._refuse_head()
        elif self._begun or self._is_idle():
            self._extend_due(len(data))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        if self._head_size > MAX_HEAD and self._size_of_headers() > MAX_HEAD:
            self._refuse_head()
            raise InvalidRequest("Nothing more of this request is parsed.")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise InvalidRequest("This is no proxy.")
            return
        if b"://" in self.url:
            self._take_host_from_url()
        super().on_headers_complete()
        self.cycle.transport = cast("Transport", self._writer)
        cast("Any", self.cycle).__class__ = _OldCycle if self.scope["http_version"] == "1.0" else Cycle
        self.scope["extensions"] = self._extensions
        # A trailer must not become a header after the headers were checked (RFC 9110, 6.5.1).
        self.headers = _IgnoredTrailers()
        self._head_size = 0
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._head_size = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_size = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._begun = self._in_body = False
        self._due = None

    def on_response_complete(self) -> None:
        if len(self.tasks) == 1:  # there are no others whose answers could go out with this one
            self._writer.flush()
        if self._last_words and not self.pipeline:
            self._writer.write(self._last_words)
            self._writer.close()
        super().on_response_complete()
        if self._begun and not self._in_body:
            self._await_request()

    def _unsupported_upgrade_warning(self) -> None:
        """Parse the request again without its offer; its body was not parsed (Java offers HTTP/2 with a POST)."""
        upgrade: Any = sys.exception()
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        super().data_received(b"\r\n".join(lines) + b"\r\n\r\n" + self._data[upgrade.args[0] :])

    def _should_upgrade(self) -> bool:
        upgrade = sys.exception()
        return (
            super()._should_upgrade()
            and (self.parser.get_method(), self.parser.get_http_version()) == (b"GET", "1.1")
            and self.url.partition(b"?")[0].decode("latin-1") in WEBSOCKET_PATHS
            and not any(name in _BODY for name, _ in self.headers)
            # Neither behind a request that is being answered, nor with more behind it.
            and self._is_idle()
            and isinstance(upgrade, HttpParserUpgrade)
            and len(self._data) == upgrade.args[0]
        )

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the WebSocket protocol, if the client means one."""
        asked = [(name, value) for name, value in self.headers if name.startswith(b"sec-websocket-")]
        if (b"sec-websocket-version", b"13") not in asked or len(_keys(asked)) != 1:
            self._refuse(400, _NO_HANDSHAKE)
            return
        self._upgraded, self._due = True, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.connections.discard(self)
        protocol = cast("type[WebSocketProtocol]", self.ws_protocol_class)(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.take_over(self.transport, self.url, self.headers)
        self.transport.set_protocol(protocol)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is not a valid HTTP/1.1 request.")

    def _size_of_headers(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _take_host_from_url(self) -> None:
        """In `GET http://host/path` that host counts, not the header's (RFC 9112, 3.2.2)."""
        authority = self.url.partition(b"://")[2].partition(b"/")[0]
        self.headers[:] = [(b"host", authority), *(h for h in self.headers if h[0] != b"host")]

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_request(self) -> None:
        self._due = self.loop.time() + self._receive_timeout
        if self._timer is None:
            self._timer = self.loop.call_at(self._due, self._check_due)

    def _extend_due(self, size: int) -> None:
        """So many bytes of a request came."""
        if self._due is None:
            self._await_request()
        else:
            self._due += size / MIN_RATE

    def _check_due(self) -> None:
        self._timer = None
        if self._due is None or self.transport.is_closing():
            return
        if self.flow.read_paused or (self._in_body and self.cycle.waiting_for_100_continue):
            self._await_request()
        elif self.loop.time() < self._due:
            self._timer = self.loop.call_at(self._due, self._check_due)
        elif self._begun:
            self._refuse(408, "The request did not arrive in time.")
        else:
            self._close()

    def _refuse_head(self) -> None:
        self._refuse(431, f"The request's headers are larger than {MAX_HEAD:,} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing() or self._last_words:
            return
        if self._in_body and self.pipeline:
            self.pipeline.popleft()
            self._refuse_later(status, message)
        elif self._in_body or self._is_idle():
            self._writer.flush()
            if self._may_answer():
                self.transport.write(_refusal(status, message))
            self._writer.close()
        else:
            self._refuse_later(status, message)

    def _refuse_later(self, status: int, message: str) -> None:
        """Answer what is under way, then refuse and close; what comes meanwhile is read and means nothing.

        It is read because a client that leaves could not be noticed otherwise.
        """
        self._last_words = _refusal(status, message)
        self._begun = self._in_body = False
        self._due = None
        self.parser = cast("Any", _IgnoringParser())

    def _may_answer(self) -> bool:
        """Would an answer now be the one to the request that is coming in, not land inside another?"""
        if self._in_body:
            return not self.pipeline and not self.cycle.response_started
        return self._is_idle()

    def _close(self) -> None:
        if self.transport.get_write_buffer_size():
            # A client that does not read would keep the connection for as long as it likes.
            self.transport.abort()
        else:
            self.transport.close()


class _IgnoringParser:
    """In place of a parser, where nothing more of a connection counts."""

    def feed_data(self, data: bytes) -> None:
        """Nothing."""


class Cycle(RequestResponseCycle):
    """uvicorn's side of one request; what it says when the app said nothing is in the envelope too."""

    async def send(self, message: Any) -> None:
        """As uvicorn does; a piece of a stream that is under way takes the short way, for most messages are such."""
        is_ready = not (self.disconnected or self.flow.write_paused or self.response_complete)
        if self.chunked_encoding and is_ready and message.get("more_body"):
            if body := message["body"]:
                self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            await super().send(message)

    async def send_500_response(self) -> None:
        error = ToolwayError("Toolway itself failed at this request; its log says why.")
        scope = cast("Any", self.scope)
        if scope["extensions"][STOP].is_set:
            error = stop_error()
        await send_error(scope, cast("Any", self.send), error, [DO_NOT_RETRY])


class _OldCycle(Cycle):
    """For HTTP/1.0, which knows no chunks: a body without a length ends with the connection (RFC 9112, 6.3)."""

    _ends_with_connection = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if not any(name == b"content-length" for name, _ in message.get("headers", ())):
                self._ends_with_connection, self.chunked_encoding = True, False
        elif self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _WriteBatch:
    """The transport for answers: what is written in one iteration of the event loop goes out together, at its end.

    A write costs a tenth of a small request; a head and its body are two, and so are the last words and the end.
    A whole answer waits too, unless it is the only one under way: it goes out beside those of other connections,
    and their reader is woken once.
    """

    def __init__(self, transport: Any, loop: Any, send_timer: _SendTimeout) -> None:
        self._transport = transport
        self._loop = loop
        self._send_timer = send_timer
        self._waiting = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._waiting = data
            self._loop.call_soon(self.flush)
            return
        self._waiting += data
        if len(self._waiting) > MAX_BATCH:
            self.flush()

    def write_now(self, data: bytes) -> None:
        """Write what need not wait for others."""
        self.flush()
        if not self.is_closing():
            self._transport.write(data)

    def flush(self) -> None:
        if self._waiting:
            data, self._waiting = self._waiting, b""
            if not self.is_closing():
                self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()
        self._send_timer.watch()  # the end of a connection waits for what is still to be sent


class _SendTimeout:
    """Aborts a connection whose client takes nothing of what is written to it for `seconds`.

    Watched only while something waits to be taken, and looked at four times in that period.
    """

    def __init__(self, transport: Any, loop: Any, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._timer: TimerHandle | None = None
        self._left = 0
        """Bytes that waited when we looked last."""
        self._due = 0.0
        """When there must be fewer (loop time)."""

    def watch(self) -> None:
        """Begin to watch, if something waits."""
        if self._transport.get_write_buffer_size() and self._timer is None:
            self._left = self._untaken()
            self._due = self._loop.time() + self._seconds
            self._timer = self._loop.call_later(self._seconds / 4, self._look)

    def stop(self) -> None:
        """Enough was taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._transport.get_write_buffer_size():
            return
        left, now = self._untaken(), self._loop.time()
        if left < self._left:
            self._due = now + self._seconds
        self._left = left
        if now < self._due:
            self._timer = self._loop.call_later(self._seconds / 4, self._look)
        else:
            log.info("a client took nothing for %g s; its connection is cut", self._seconds)
            self._transport.abort()

    def _untaken(self) -> int:
        """Bytes that the client has not confirmed, if the system tells; else those that the system has not taken."""
        waiting: int = self._transport.get_write_buffer_size()
        if sys.platform != "win32":
            with suppress(OSError, ValueError):
                answer = fcntl.ioctl(self._transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
                waiting += int.from_bytes(answer, sys.byteorder)
        return waiting


class _IgnoredTrailers(list[tuple[bytes, bytes]]):
    def append(self, header: tuple[bytes, bytes]) -> None:
        pass


def _keys(headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    return [value for name, value in headers if name == b"sec-websocket-key" and _KEY.fullmatch(value)]


def _refusal(status: int, message: str) -> bytes:
    body = orjson.dumps(openai_envelope(InvalidRequest(message)))
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    return STATUS_LINE[status] + head + body
