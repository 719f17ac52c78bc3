"""The lane's place in front of the HTTP parser: whole requests are offered to it before they become ASGI.

What the lane does not take goes to the parser byte for byte as it came, so that the ordinary way knows nothing of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from http import HTTPStatus
from typing import Any, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from toolway.net.known_head import KnownHead
from toolway.server.http_protocol import MAX_HEAD, Cycle, HttpProtocol
from toolway.types import JSON, Header
from toolway.wire.sse import KEEP_ALIVE, STREAM_END, encode

log = logging.getLogger("toolway.http")

LANE = "toolway.lane"
"""Where the app puts the `Lane` of this process into its lifespan's state."""

UNDER_WAY = "toolway.lane.under_way"
"""Where the protocols keep which of them have a request in the lane."""

HANDOVER = "toolway.handover"
"""Where `scope["extensions"]` has what the lane did for a request that goes the ordinary way."""

PARSED_BODY = "toolway.parsed"
"""Where it has the JSON object of a body that the lane read and did not take."""

MAX_SIZE = 2**20
"""Bytes of a request that the lane may have; a larger one goes to the parser as it comes."""

MAX_BEHIND = HIGH_WATER_LIMIT
"""Bytes that are taken from a client behind a request that is not answered."""


class Closeable(Protocol):
    """What the lane did for a request that it does not answer."""

    def close(self) -> None:
        """Give back what it holds; the ordinary way has ended."""


class PendingRequest(Protocol):
    """A request that the lane took and has not answered.

    Its last act is to call one method of the `HttpResponder`, unless the client left.
    """

    def hand_over(self) -> None:
        """Leave it to the ordinary way now: there is no more time."""

    def client_left(self) -> None:
        """Stop: nobody waits for the answer any more."""


class HttpResponder(Protocol):
    """The HTTP side of an answer: writes it to the client of a request that the lane took."""

    @property
    def is_blocked(self) -> bool:
        """Whether the client is behind with reading."""

    def answer(self, headers: bytes, body: bytes) -> None:
        """Answer with a 200 and these `header_lines`; the length is told here."""

    def start(self, headers: bytes) -> None:
        """Begin to answer with a 200, these `header_lines` and a stream of events."""

    def write(self, events: bytes) -> None:
        """More of a stream."""

    def end(self, events: bytes) -> None:
        """The last of a stream."""

    def take_over(self, handover: Closeable) -> None:
        """Have the request go the ordinary way; what that answers goes on behind what of a stream was written."""

    def run_detached(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what must be done behind a client that left; the server waits for it when it stops."""


class Lane(Protocol):
    """Answers requests to one path by callbacks, without a task and without ASGI."""

    path: str
    max_bytes: int
    """How long the body of a request may be."""

    def find_sender(self, scope: Scope) -> Any | None:
        """Who sends requests with this head, if the lane may be asked to answer them; else None."""

    def begin(self, sender: Any, body: bytes, responder: HttpResponder) -> PendingRequest | JSON | None:
        """Take a request of a sender that was found; else its body, if it was parsed, or None."""

    def route(self, sender: Any, *, begun: bool) -> tuple[ASGIApp, Scope]:
        """The route behind authentication that answers a sender's requests where the lane does not; its scope.

        Of an answer that has `begun` the client has the head.
        """


class LaneProtocol(HttpProtocol):
    """`HttpProtocol` with a lane in front of its parser.

    A request is offered to the lane when nothing else is under way on its connection, it came whole with nothing
    behind it, and the lane finds a sender for its head. All else happens as if there were no lane.
    """

    def __init__(self, receive_timeout: float, send_timeout: float, keep_alive: float, **given: Any) -> None:
        """`keep_alive` is after how many seconds of silence a stream is written a comment."""
        super().__init__(receive_timeout, send_timeout, **given)
        self._keep_alive = keep_alive
        self._lane: Lane | None = self.app_state.get(LANE)
        self._line = f"POST {self._lane.path} HTTP/1.1\r\n".encode() if self._lane else b""
        self._head: _LaneHead | None = None
        """The last one that was read: clients send one head again and again."""
        self._most = min(MAX_SIZE, self._lane.max_bytes) if self._lane else 0
        self._held = b""
        """What came behind the request that is under way in the lane."""
        self._partial: _PartialRequest | None = None
        """A request that is not whole."""
        self._sender: Any = None
        """Who sent the request that is under way in the lane."""
        self._pending: PendingRequest | None = None
        self._under_way: set[LaneProtocol] = self.app_state.setdefault(UNDER_WAY, set())
        """The connections of this process that have a request in the lane."""
        self._lane_cycle: Any = _LaneCycle()
        self._idle_since = 0.0
        """When the lane gave its last answer (loop time)."""
        self._is_streaming = False
        """Whether the client has the head of a stream from the lane."""
        self._written = 0.0
        """When something of a stream was written last (loop time)."""
        self._pulse: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._pending is not None:
            self._held += data
            self._look_behind(self._pending)
        elif self._held:
            self._held += data
        elif self._partial is not None:
            self._go_on_with(self._partial, data)
        elif self._lane is None or self._begun or not self._is_idle():
            super().data_received(data)
        else:
            self._offer(data)

    def _look_behind(self, pending: PendingRequest) -> None:
        """Read on only while what stands behind the request is no head: who does not read notices no client's end."""
        behind = self._held.lstrip(b"\r\n")
        is_head = b"\r\n\r\n" in behind
        if is_head and behind.startswith(self._line):
            self.flow.pause_reading()
        elif is_head or len(self._held) > MAX_BEHIND:
            pending.hand_over()  # the parser reads it now; what it refuses it reads to its end

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        pending = self._pending
        self._leave_lane()
        self._held, self._partial = b"", None
        if self._pulse is not None:
            self._pulse.cancel()
        if pending is not None:
            pending.client_left()

    def shutdown(self) -> None:
        if self._pending is None:
            self._parse_held()
        elif self._held:
            self._pending.hand_over()  # the ordinary way answers what stands behind it too
        self._stop.add_callback(self._end_lane)  # not before: it leads back here
        super().shutdown()

    @property
    def is_blocked(self) -> bool:
        """As `HttpResponder`."""
        return self.flow.write_paused

    def answer(self, headers: bytes, body: bytes) -> None:
        """As `HttpResponder`."""
        # As uvicorn writes it, like the head of a stream.
        close = b"" if self._lane_cycle.keep_alive else _CLOSE
        answer = b"%b%bcontent-length: %d\r\n%b\r\n%b" % (_OK, headers, len(body), close, body)
        if len(self._under_way) == 1 and not self.tasks:  # no others whose answers could go out with this one
            self._writer.write_now(answer)
        else:
            self._writer.write(answer)
        self._end_answer()

    def start(self, headers: bytes) -> None:
        """As `HttpResponder`."""
        self._is_streaming = True
        close = b"" if self._lane_cycle.keep_alive else _CLOSE
        self._writer.write(b"%b%b%btransfer-encoding: chunked\r\n\r\n" % (_OK, headers, close))
        self._written = self.loop.time()
        if self._pulse is None:
            self._pulse = self.loop.call_later(self._keep_alive, self._write_pulse)

    def write(self, events: bytes) -> None:
        """As `HttpResponder`."""
        if events:
            self._writer.write(b"%x\r\n%b\r\n" % (len(events), events))
            self._written = self.loop.time()

    def end(self, events: bytes) -> None:
        """As `HttpResponder`."""
        self._writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(events), events))
        self._is_streaming = False
        self._end_answer()

    def _end_answer(self) -> None:
        self._leave_lane()
        self.server_state.total_requests += 1
        if not self._lane_cycle.keep_alive:
            self._writer.close()
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_after(self.timeout_keep_alive)
        if self._held:
            self.loop.call_soon(self._take_held)  # when the lane is done with this one

    def _take_held(self) -> None:
        """Take what came behind a request that is answered."""
        if self._held and not self.transport.is_closing():
            self.flow.resume_reading()
            data, self._held = self._held, b""
            self.data_received(data)

    def _leave_lane(self) -> None:
        """The lane has no request of this connection any more."""
        self._pending = self._sender = None
        self._under_way.discard(self)
        self._lane_cycle.response_complete = True

    def _write_pulse(self) -> None:
        """Write to a stream that is silent. One timer serves those of a connection: it looks when one may be due."""
        self._pulse = None
        if not self._is_streaming:
            return
        if (rest := self._written + self._keep_alive - self.loop.time()) <= 0:
            self.write(KEEP_ALIVE)
            rest = self._keep_alive
        self._pulse = self.loop.call_later(rest, self._write_pulse)

    def timeout_keep_alive_handler(self) -> None:
        """One timer serves many answers of the lane: it looks when the last of them may have been long ago."""
        self.timeout_keep_alive_task = None
        rest = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if self._pending is not None or self._partial is not None or self._held:
            return  # the answer begins it anew
        if rest > 0:
            self._close_after(rest)
        else:
            super().timeout_keep_alive_handler()

    def _close_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def take_over(self, handover: Closeable) -> None:
        """As `HttpResponder`: the route gets the request now, and the parser what stands behind it."""
        sender = self._sender
        self._leave_lane()
        begun, self._is_streaming = self._is_streaming, False
        task = self._run_route(sender, HANDOVER, handover, begun=begun)
        # Also that of a task which is cancelled before its first step.
        task.add_done_callback(lambda _: handover.close())
        if self._held:
            self.flow.resume_reading()
            self._parse_held()

    def _run_route(
        self, sender: Any, extension: str, value: Any, *, body: bytes = b"", begun: bool = False
    ) -> asyncio.Task[None]:
        """Have the route answer a request, as uvicorn does when its parser has read one.

        The route reads the `body`, unless the extension says all of it.
        """
        assert self._lane is not None  # noqa: S101
        app, scope = self._lane.route(sender, begun=begun)
        self.cycle = cycle = Cycle(
            scope=cast("Any", {**scope, "extensions": {**self._extensions, extension: value}}),
            transport=cast("Any", self._writer),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=self._lane_cycle.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body, cycle.more_body = bytearray(body), False
        cycle.message_event.set()
        self._due = None
        self._unset_keepalive_if_required()
        if begun:
            app = _behind_head(app)
            cycle.response_started = cycle.chunked_encoding = True
        return self._begin_task(cycle.run_asgi(cast("Any", app)))

    def run_detached(self, work: Coroutine[Any, Any, None]) -> None:
        """As `HttpResponder`."""
        self._begin_task(work)

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _offer(self, data: bytes) -> None:
        """Have the lane take the request in `data`, or wait for its end, or parse it."""
        head = self._head
        place = head.body_in(data) if head is not None else None
        if place is None and data.startswith(self._line):
            head = self._head = self._read_lane_head(data)
            place = head.body_in(data) if head is not None else None
        if head is None or place is None or not head.takes(place[1], self._most) or len(data) > place[1]:
            super().data_received(data)
        elif len(data) == place[1]:
            self._begin(head, (data,), data[place[0] :])
        else:
            self._partial = _PartialRequest(head, data, *place)
            self._extend_due(len(data))

    def _go_on_with(self, partial: _PartialRequest, data: bytes) -> None:
        """More of a request came, or what stands behind it."""
        partial.add(data)
        if partial.missing > 0:
            self._extend_due(len(data))
            return
        if partial.missing < 0:
            self._parse_held()
            return
        self._partial = None
        head, body = partial.whole()
        self._begin(partial.head, (head, body), body)

    def _begin(self, head: _LaneHead, parts: Sequence[bytes], body: bytes) -> None:
        """Have the lane take a request that is whole, or parse it."""
        assert self._lane is not None  # noqa: S101
        result = None
        try:
            if not self.flow.write_paused:
                result = self._lane.begin(head.sender, body, self)
        except Exception:  # the border of the lane: the ordinary way can do all that it can
            log.exception("a bug in the fast lane")
        if result is None:
            self._parse(parts)
        elif isinstance(result, dict):
            if len(body) > MAX_BEHIND:
                head.refused_long()
            self._run_route(head.sender, PARSED_BODY, result, body=body)
        else:
            self._pending, self._sender = result, head.sender
            self._under_way.add(self)
            self._lane_cycle.response_complete = False
            self.cycle = self._lane_cycle
            self._due = None

    def _parse(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            super().data_received(part)

    def _read_lane_head(self, data: bytes) -> _LaneHead | None:
        assert self._lane is not None  # noqa: S101
        if (found := _read_head(data)) is None:
            return None
        head, headers = found
        scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": self.scheme,
            "root_path": self.root_path,
            "path": self._lane.path,
            "raw_path": self._lane.path.encode(),
            "query_string": b"",
            # It is that of this one request, and the next ones have others.
            "headers": [header for header in headers if header[0] != b"content-length"],
            "server": self.server,
            "client": self.client,
            "extensions": self._extensions,
        }
        return _LaneHead(head, self._lane.find_sender(scope))

    def _parse_held(self) -> None:
        data, partial, self._held, self._partial = self._held, self._partial, b"", None
        self._parse(partial.parts if partial is not None else [data] if data else ())

    def _check_due(self) -> None:
        if self._partial is not None:
            due = self._due
            self._parse_held()  # so that the ordinary way ends it
            self._due = due
        super()._check_due()

    def _end_lane(self) -> None:
        """Have the ordinary way tell the client that the server stops."""
        if self._pending is not None:
            self._pending.hand_over()


class _LaneCycle:
    """What uvicorn takes for the cycle of a request while the lane has it."""

    response_complete = keep_alive = True
    disconnected = False
    message_event = asyncio.Event()


class _LaneHead:
    """A head that the lane was asked about, and who sends it."""

    def __init__(self, head: KnownHead, sender: Any | None) -> None:
        self.body_in = head.body_in
        self.sender = sender
        """None: the lane found none."""
        self._passed_by = 0

    def refused_long(self) -> None:
        """The lane did not take a long request: an agent with tools of its own sends many such."""
        self._passed_by = LONG_PASSED_BY

    def takes(self, size: int, most: int) -> bool:
        """Whether a request of this size had better be offered to the lane than go to the parser as it comes."""
        if self.sender is None or size > most:
            return False
        if size > MAX_BEHIND and self._passed_by:
            self._passed_by -= 1
            return False
        return True


class _PartialRequest:
    """A request of which not all has come; it begins with a known head."""

    def __init__(self, head: _LaneHead, data: bytes, start: int, end: int) -> None:
        self.head = head
        self.parts = [data]
        self.missing = end - len(data)
        """Bytes; less than none when something came behind it."""
        self._start = start

    def add(self, data: bytes) -> None:
        """More of it came."""
        self.missing -= len(data)
        if len(self.parts[-1]) < SMALL_PART:  # so that many small ones take no more than their bytes
            self.parts[-1] += data
        else:
            self.parts.append(data)

    def whole(self) -> tuple[bytes, bytes]:
        """Its head and its body."""
        first, *rest = self.parts
        return first[: self._start], b"".join([memoryview(first)[self._start :], *rest])


SMALL_PART = 4096

LONG_PASSED_BY = 15
"""Long requests that are parsed as they come after one that the lane did not take."""

_NOT_PLAIN = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding", b"trailer"})
_OK = STATUS_LINE[200]
_CLOSE = b"connection: close\r\n"


def header_lines(headers: Iterable[Header]) -> bytes:
    """Headers as they stand on the wire, each with the end of its line."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def _read_head(data: bytes) -> tuple[KnownHead, list[Header]] | None:
    """The head of a request and its headers, read by uvicorn's parser.

    None for a head that is not whole, or asks for more than an answer on a connection that stays.
    """
    size = data.find(b"\r\n\r\n") + 4
    if not 4 <= size <= MAX_HEAD:
        return None
    reader = _HeadReader()
    parser = HttpRequestParser(reader)
    try:
        parser.feed_data(data[:size])
    except (HttpParserError, HttpParserUpgrade):
        return None
    names = {name for name, _ in reader.headers}
    if not (reader.is_whole and parser.should_keep_alive()) or names & _NOT_PLAIN:
        return None
    head = KnownHead.of(data)
    return None if head is None else (head, reader.headers)


class _HeadReader:
    """Takes what the parser finds in a head."""

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_whole = True


def _behind_head(app: ASGIApp) -> ASGIApp:
    """`app` for a client that has the head of a stream: without its own head, and an error as the last event."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        is_error = False

        async def send_behind(message: Message) -> None:
            nonlocal is_error
            if message["type"] == "http.response.start":
                is_error = message["status"] != HTTPStatus.OK
            elif is_error:
                await send({**message, "body": encode(message["body"]) + STREAM_END})
            elif message["body"] or not message.get("more_body"):  # for nothing no slow client is waited for
                await send(message)

        await app(scope, receive, send_behind)

    return answer
