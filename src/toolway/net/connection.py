"""One HTTP/1.1 connection: a request out, its answer in, and nothing else."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from toolway.net.errors import Fault, HttpError, connect_error
from toolway.net.known_head import KnownHead
from toolway.types import Header

MAX_HEAD = 64 * 1024
"""Bytes of an answer's head; also of what follows a chunked body."""

MAX_UNKNOWN = 8
"""So many heads in a row that differ from the one before, and no more are looked for on a connection."""

MAX_BUFFERED = 256 * 1024
"""Bytes of a body that wait for their reader before the server is made to wait."""


RECENT = 0.25
"""Seconds in which no server closes a connection for being idle."""

STALE_SECONDS = 1.0
"""A used connection that is closed unanswered so soon after a request was sent was being closed when that was sent.

The two cross on the wire, so that the server never began. One that closes later has had the request, and may have
worked on it: it fell over, or somebody between us gave up, and to send it again would have the work done twice.
"""

_TLS_ALERT = b"\x15\x03"
_LENGTH = b"content-length"
_FRAMING = frozenset({_LENGTH, b"transfer-encoding"})


class Response:
    """The bytes of one answer after the other -> its status, headers and pieces of body. Does no I/O.

    Strict (RFC 9112), but for a line end without CR and spaces behind a chunk's size, which handwritten
    servers send. Interim answers (1xx) are skipped, trailers ignored.
    """

    on_status = on_chunk_header = on_chunk_complete = None
    """What the parser need not tell, and would look for."""

    def __init__(self, method: str) -> None:
        self.parts: list[bytes] = []
        """What came of the body and was not taken yet."""
        self._parser: Any = None
        self._last: KnownHeaders | None = None
        """Those of the last answer whose head may come again."""
        self._unknown = 0
        """Heads in a row that were not the known one."""
        self.begin(method)

    def begin(self, method: str) -> None:
        """Read the answer to a request with this method. The one before was whole, and its body was taken."""
        self.status = 0
        """0 until the head is there."""
        self.known: KnownHeaders | None = None
        """Those of this answer, if it has the head of an earlier one."""
        self.length = 0
        """Bytes of its body then."""
        self._headers: list[Header] = []
        self.begun = self.complete = self.keeps_alive = False
        self._is_framed = False
        self._stray = 0
        """Bytes since the last piece of body."""
        self._has_body = has_body = method != "HEAD"
        if self._parser is None or not has_body:
            self.on_body = self.parts.append if has_body else _reject_body
            self._parser = HttpResponseParser(self)
            self._parser.set_dangerous_leniencies(
                lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )

    @property
    def headers(self) -> list[Header]:
        """Lower-case names, values byte for byte."""
        if self.known is not None and not self._headers:
            self._headers = self.known.with_length(self.length)
        return self._headers

    def close(self) -> None:
        """Read no more. This and its parser would keep each other alive until the garbage collector comes."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Take what one read brought. Raises HttpError when it is no answer."""
        is_first, self.begun = not self.begun, True
        if is_first and self._last is not None and self._take_known(self._last, data):
            return
        if self.complete:
            self.keeps_alive = False
            return
        self._stray += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if data.startswith(_TLS_ALERT):
                raise HttpError(
                    Fault.UNTRUSTED, "speaks TLS at this port; try https:// in place of http://"
                ) from error
            if not self.complete:
                raise _not_http() from error
            self.keeps_alive = False
        if self.complete:
            if not self._has_body:
                self.close()  # It would wait for what the head announced.
            elif is_first and self.keeps_alive and self._unknown < MAX_UNKNOWN:
                self._unknown += 1
                self._last = KnownHeaders.of(data, self)
        elif self.parts:
            self._stray = 0
        elif self._stray > MAX_HEAD:
            raise _not_http()

    def _take_known(self, known: KnownHeaders, data: bytes) -> bool:
        """Take an answer that came whole with this head, and that its parser need not see."""
        place = known.head.body_in(data)
        if place is None or place[1] != len(data) or not self._has_body:
            return False
        begin, end = place
        self.status, self.known, self.length = known.status, known, end - begin
        self.parts.append(data[begin:])
        self.complete = self.keeps_alive = self._is_framed = True
        self._unknown = 0
        return True

    def end(self) -> None:
        """The server closed the connection. Raises HttpError if it should have sent more."""
        if not self.begun:
            raise HttpError(Fault.UNANSWERED, "the server closed it before it had answered")
        if self.status and not self._is_framed:
            self.complete = True
        elif not self.complete:
            raise _cut(self, "the server closed it inside its answer")

    def on_message_begin(self) -> None:
        if self.complete:
            raise _not_http()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if (
            self._stray > MAX_HEAD
            and sum(len(name) + len(value) + 4 for name, value in self._headers) > MAX_HEAD
        ):
            raise _not_http()
        for name, value in self._headers:
            if name in _FRAMING:
                self._is_framed = True
                if name == b"transfer-encoding" and value.rstrip().lower() != b"chunked":
                    raise _not_http()
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._headers.clear()
            self._is_framed = False
            return
        if not 200 <= status < 600:
            raise _not_http()
        self.status = status
        if not self._has_body:
            self._finish()

    def on_message_complete(self) -> None:
        if self.status and not self.complete:
            self._finish()

    def _finish(self) -> None:
        self.complete = True
        self.keeps_alive = self._parser.should_keep_alive()


class KnownHeaders:
    """The status and headers that the parser found in a head: it finds them again when that comes again.

    Only the length of the body is another each time.
    """

    def __init__(self, head: KnownHead, status: int, headers: Sequence[Header]) -> None:
        self.head = head
        self.status = status
        place = next(n for n, (name, _) in enumerate(headers) if name == _LENGTH)
        self._before, self._behind = headers[:place], headers[place + 1 :]
        self.without_length = [*self._before, *self._behind]
        self.derived: Any = None
        """What their reader made of them, kept here so that it need not be made for each answer."""

    @classmethod
    def of(cls, data: bytes, response: Response) -> KnownHeaders | None:
        """Those of the answer that came whole in `data`, if one with the same head can be known."""
        head = KnownHead.of(data)
        place = head.body_in(data) if head is not None else None
        if head is None or place is None or place[1] != len(data):
            return None
        if b"".join(response.parts) != data[place[0] :]:  # it is the head of an interim answer
            return None
        return cls(head, response.status, response.headers)

    def with_length(self, length: int) -> list[Header]:
        """The headers of an answer whose body has so many bytes."""
        return [*self._before, (_LENGTH, b"%d" % length), *self._behind]


class Connection(asyncio.Protocol):
    """Carries one exchange after the other. Whatever fails is raised by `head` or `receive`."""

    def __init__(self, silence: float) -> None:
        self.closed = False
        self.response: Response
        """The answer under way, or the last one."""
        self._is_idle = True
        """Is no answer under way?"""
        self.is_used = False
        """Was there an exchange before this one?"""
        self.is_stale = False
        """Was it closed before the server can have begun with the request that was sent last?"""
        self.idle_since = 0.0
        self._sent_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._unsent: Sequence[bytes] = ()
        """The pieces of a request, or its head, until they are written."""
        self._error: Exception | None = None
        """Why we closed the connection."""
        self._loss: Exception | None = None
        """Why its closing by the server is an error."""
        self._buffered = 0
        self._is_paused = self._is_uploading = False
        self._wake: Callable[[], None] | None = None
        """What somebody who waits for the answer is woken by."""
        self._writable: asyncio.Future[None] | None = None
        """While the server does not read: resolved when it does again."""
        self._silence = silence
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send(
        self, method: str, request: Sequence[bytes], *, uploads: bool = False, is_alone: bool = False
    ) -> None:
        """Begin an exchange with the pieces of a whole request, or with the head of one whose body `upload` sends.

        It is written when the event loop comes round, together with those of others: to wake a server costs more
        than all else about a small request, and one that is awake takes several. Also, what a server says that
        closes an idle connection is read before. One that `is_alone` is written now, if there was another just before.
        """
        self._is_idle, self._is_uploading = False, uploads
        self._unsent = request
        self._sent_at = self._loop.time()
        if is_alone and self._sent_at - self.idle_since < RECENT:
            self._write_first()
        else:
            self._loop.call_soon(self._write_first)
        self.response.begin(method)

    async def upload(self, body: AsyncIterator[bytes], length: int | None) -> None:
        """Send a body piece by piece as fast as the server takes it; chunked if its `length` is not known."""
        try:
            await self._write_all(body, length)
        except Exception as error:
            self.fail(error)

    async def head(self) -> None:
        """Wait until `response` has a status. Raises HttpError."""
        while not self.has_head:
            self._raise_failure()
            await self._wait()

    async def receive(self) -> bytes:
        """What of the body came since the last time, at least a byte; nothing at its end.

        Raises HttpError.
        """
        response = self.response
        while not response.parts:
            if response.complete:
                return b""
            self._raise_failure()
            await self._wait()
        return self.take()

    def take(self) -> bytes:
        """What of the body came since the last time, without waiting."""
        return b"".join(self.take_pieces())

    def take_pieces(self) -> list[bytes]:
        """The same in the pieces that the server made of it, or the network."""
        parts = self.response.parts
        pieces = parts.copy()
        parts.clear()
        self._buffered = 0
        if self._is_paused and not self.closed:
            self._is_paused = False
            self._transport.resume_reading()
        return pieces

    def put_back(self, data: bytes) -> None:
        """Have what was taken last received once more."""
        self.response.parts.insert(0, data)

    @property
    def is_complete(self) -> bool:
        """Is the whole answer here?"""
        return self.response.complete

    @property
    def has_head(self) -> bool:
        """Is its head here?

        An answer that is already known to be broken is none; one that is only cut is given as far as it came.
        """
        return self._error is None and self.response.status > 0

    @property
    def is_read(self) -> bool:
        """Was the whole body received?"""
        return self.response.complete and not self.response.parts

    def end_exchange(self) -> bool:
        """End the exchange; False if no other may follow on this connection."""
        self._is_idle = self.is_used = True
        response = self.response
        return (
            response.complete
            and response.keeps_alive
            and not (response.parts or self._is_uploading or self.closed)
            and not self._transport.get_write_buffer_size()
        )

    def fail(self, error: Exception) -> None:
        """Close the connection; whoever waits for the answer gets the error."""
        if self._error is None:
            self._error = _anew(error) if isinstance(error, HttpError) else error
        self.abort()
        self._wake_reader()

    def call_back(self, wake: Callable[[], None] | None) -> None:
        """Have `wake` called once, when something happens: more of the answer is there, or there will be no more.

        It takes the place of the one before; None: nobody waits.
        """
        # One timer serves all waits: it looks when the last of them has to end.
        self._due = self._loop.time() + self._silence
        if self._timer is None and self._due < math.inf:
            self._timer = self._loop.call_at(self._due, self._check_silence)
        self._wake = wake

    @property
    def is_coming(self) -> bool:
        """Whether more of the answer comes by itself, without being taken."""
        return not (self._is_paused or self._error or self._loss)

    def abort(self) -> None:
        """Close the connection at once; what was not sent yet is not sent."""
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.response = Response("GET")

    def data_received(self, data: bytes) -> None:
        response = self.response
        if self._is_idle or self._unsent:  # nobody asked
            self.abort()
            return
        try:
            response.feed(data)
        except HttpError as error:
            self.fail(error)
            return
        self._buffered += len(data)
        if self._buffered > MAX_BUFFERED and response.parts and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_idle and self._error is None:  # else its end is ours, and no end of an answer
            self._loss = _loss(self.response, exc)
            soon = self._loop.time() - self._sent_at <= STALE_SECONDS
            self.is_stale = self.is_used and soon and not self.response.begun
        self.response.close()
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _write_first(self) -> None:
        request, self._unsent = self._unsent, ()
        if not self.closed:
            # A body with many tools is large: uvloop, and asyncio since 3.12, copy it not behind its head.
            self._transport.writelines(request)

    async def _write_all(self, body: AsyncIterator[bytes], length: int | None) -> None:
        sent = 0
        async for piece in body:
            sent += len(piece)
            if length is not None and sent > length:
                raise HttpError(Fault.WRONG_LENGTH, "the request's body is longer than it says")
            if self.closed:
                return
            if piece:
                await self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if length is None else piece)
        if length is None:
            await self._write(b"0\r\n\r\n")
        elif sent < length:
            raise HttpError(Fault.WRONG_LENGTH, "the request's body is shorter than it says")
        self._is_uploading = False

    async def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._due = self._loop.time() + self._silence
        if self._writable is not None:
            await self._writable

    async def _wait(self) -> None:
        """Until something happens."""
        something: asyncio.Future[None] = self._loop.create_future()
        self.call_back(partial(_resolve, something))
        try:
            await something
        finally:
            self._wake = None

    def _raise_failure(self) -> None:
        error = self._error or self._loss
        if error is None:
            return
        if isinstance(error, HttpError):
            raise _anew(error)
        self._error = HttpError(Fault.WRONG_LENGTH, "the request's body broke off")
        raise error

    def _wake_reader(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _check_silence(self) -> None:
        self._timer = None
        if self._wake is None:
            return
        if self._is_uploading and self._writable is None:
            # It is the client who is slow.
            self._due = self._loop.time() + self._silence
        if self._loop.time() < self._due:
            self._timer = self._loop.call_at(self._due, self._check_silence)
        else:
            self.fail(HttpError(Fault.SILENT, "the server was silent for too long"))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _anew(error: HttpError) -> HttpError:
    """The same error without what it came through and from: frames that hold the connection, which holds the error."""
    return HttpError(error.fault, str(error))


def _reject_body(_: bytes) -> None:
    raise _not_http()


def _loss(response: Response, cause: Exception | None) -> HttpError | None:
    """What the end of the connection means for this answer; None: it was its end."""
    try:
        if isinstance(cause, ssl.SSLError) and not response.begun:
            return connect_error(cause)  # In TLS 1.3 a client certificate is judged behind the handshake.
        if cause is not None and response.begun and not response.complete:
            return _cut(response, type(cause).__name__)
        response.end()
    except HttpError as error:
        return _anew(error)
    return None


def _cut(response: Response, reason: str) -> HttpError:
    return HttpError(Fault.CUT_BODY if response.status else Fault.CUT_HEAD, reason)


def _not_http() -> HttpError:
    return HttpError(Fault.NOT_HTTP, "what it sent is not an HTTP/1.1 answer")
