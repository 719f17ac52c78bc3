"""Slow, huge, broken and smuggled requests, on raw sockets against a real server."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest

from tests.support.servers import running, until
from toolway.server.cancellation import cancel_on_disconnect
from toolway.server.http_protocol import MAX_BATCH, MAX_HEAD, HttpProtocol, _SendTimeout, _WriteBatch
from toolway.server.lane_protocol import LANE, UNDER_WAY, LaneProtocol

TIMEOUT = 0.8
"""The receive timeout of the servers here, in seconds."""

MOUND = 32 * 2**20
"""Bytes; more than all buffers between here and there take."""

GET = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


class App:
    """Answers with what it was sent; on /stream it writes one part, waits to be told, and writes another.

    /flood never ends, and /mound is much at once.
    """

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.go_on = threading.Event()
        self.waits = threading.Event()
        self.requests: list[tuple[str, bytes]] = []
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] == "/wait":
            self.waits.set()
            await anyio.to_thread.run_sync(self.go_on.wait)
        if scope["path"] == "/flood":
            await cancel_on_disconnect(scope, receive, partial(self.flood, send))
            return
        body, more = b"", scope["path"] not in ("/stream", "/mound")
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event["body"]
            more = event["more_body"]
        self.requests.append((scope["method"], body))
        self.headers += scope["headers"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first " + body[:9], "more_body": True})
        if scope["path"] == "/stream":
            await anyio.to_thread.run_sync(self.go_on.wait)
        if scope["path"] == "/mound":
            await send({"type": "http.response.body", "body": bytes(MOUND), "more_body": True})
            return
        await send({"type": "http.response.body", "body": b" last"})

    async def flood(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class DecliningLane:
    """Looks at every request, and takes none."""

    path = "/v1/chat/completions"
    max_bytes = 10_000_000

    def find_sender(self, scope: Any) -> Any:
        return scope

    def begin(self, sender: Any, body: bytes, responder: Any) -> None:
        return None


KEEP_ALIVE = 15.0
"""Seconds of silence in a stream."""


class WithLane(LaneProtocol):
    def __init__(self, *timeouts: float, **given: Any) -> None:
        super().__init__(*timeouts, KEEP_ALIVE, **{**given, "app_state": {LANE: DecliningLane()}})


@pytest.fixture(autouse=True, params=[HttpProtocol, WithLane], ids=["no lane", "lane"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds of the protocol holds with a lane in front of its parser."""
    monkeypatch.setattr(sys.modules[__name__], "PROTOCOL", request.param)


PROTOCOL: type[HttpProtocol] = HttpProtocol


@contextmanager
def served(
    timeout: float = TIMEOUT,
    send_timeout: float = 60,
    *,
    app: App | None = None,
    protocol: type[HttpProtocol] | None = None,
    **config: Any,
) -> Iterator[tuple[App, socket.socket]]:
    app = app or App()
    http = partial(protocol or PROTOCOL, timeout, send_timeout)
    with running(app, http=http, lifespan="off", log_level="error", **config) as url:
        try:
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60) as client:
                yield app, client
        finally:
            app.go_on.set()


def to_end(client: socket.socket, seconds: float = 60) -> bytes:
    """All that comes until the server closes; fails when it does not."""
    client.settimeout(seconds)
    received = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            received += part
    return received


def silent(client: socket.socket, seconds: float) -> bool:
    """Nothing comes, and the connection stays open, for so long."""
    client.settimeout(seconds)
    try:
        return bool(client.recv(1)) and False
    except TimeoutError:
        return True
    finally:
        client.settimeout(20)


def drip(client: socket.socket, piece: bytes, pace: float) -> bytes:
    """Send `piece` at a pace until the server closes; its last words."""
    received = b""
    for _ in range(200):
        try:
            client.sendall(piece)
            if not silent(client, pace):
                return received + to_end(client)
        except OSError:
            return received
    raise AssertionError("the server listens to this for ever")


@pytest.mark.parametrize(
    "half",
    [
        b"G",
        POST + b"X-A: ",
        POST + b'Content-Length: 100\r\n\r\n{"a":',
        CHUNKED + b"\r\n5\r\nhel",
        GET + POST,
    ],
)
def test_half_a_request_ends_at_the_deadline(half: bytes) -> None:
    with served() as (_, client):
        client.sendall(half)
        received = to_end(client)
        assert b"HTTP/1.1 408 " in received
        assert b'"type":"invalid_request_error"' in received


@pytest.mark.parametrize("first", [b"", b"\r\n"])
def test_a_connection_that_asks_nothing_is_closed_without_a_word(first: bytes) -> None:
    with served() as (_, client):
        client.sendall(first)
        assert b"HTTP/1.1 200" not in to_end(client)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (POST, b"X-A: b\r\n"),
        (POST + b"Content-Length: 100000\r\n\r\n", b"x"),
        (CHUNKED + b"\r\n", b"1\r\nx\r\n"),
        (b"", b"\r\n"),
    ],
)
def test_dripping_earns_no_time(start: bytes, piece: bytes) -> None:
    with served() as (app, client):
        client.sendall(start)
        drip(client, piece, TIMEOUT / 10)
        assert app.requests == []


def test_dripping_after_an_answer_earns_no_time_either() -> None:
    with served(timeout_keep_alive=30) as (_, client):
        client.sendall(GET)
        until(client, b"0\r\n\r\n")
        drip(client, b"\r\n", TIMEOUT / 10)


def test_a_big_honest_upload_may_take_longer_than_the_deadline() -> None:
    piece, pieces = b"x" * 32768, 12
    with served() as (app, client):
        client.sendall(POST + b"Content-Length: %d\r\n\r\n" % (len(piece) * pieces))
        for _ in range(pieces - 1):
            client.sendall(piece)
            assert silent(client, TIMEOUT / 4)
        client.sendall(piece)
        until(client, b"0\r\n\r\n")
        assert app.requests == [("POST", piece * pieces)]


def test_the_clock_stands_while_the_app_does_not_read() -> None:
    size = 32 * 2**20
    with served() as (app, client):
        client.sendall(POST.replace(b"/v1/chat/completions", b"/wait") + b"Content-Length: %d\r\n\r\n" % size)
        sender = threading.Thread(target=client.sendall, args=(bytes(size),))
        sender.start()
        assert silent(client, TIMEOUT * 3)
        app.go_on.set()
        until(client, b"0\r\n\r\n")
        sender.join()
        assert len(app.requests[0][1]) == size


def test_a_client_that_waits_for_100_continue_is_not_slow() -> None:
    with served() as (app, client):
        client.sendall(
            POST.replace(b"/v1/chat/completions", b"/wait")
            + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert silent(client, TIMEOUT * 2)
        app.go_on.set()
        assert until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hi")
        assert b"first hi" in until(client, b"0\r\n\r\n")


def test_a_long_answer_goes_on_after_the_deadline() -> None:
    with served() as (app, client):
        client.sendall(GET.replace(b"/v1/models", b"/stream"))
        until(client, b"first \r\n")
        assert silent(client, TIMEOUT * 2)
        app.go_on.set()
        assert b" last" in until(client, b"0\r\n\r\n")


def test_keep_alive_goes_on_after_the_deadline() -> None:
    with served(timeout_keep_alive=30) as (app, client):
        for _ in range(20):
            client.sendall(GET)
            until(client, b"0\r\n\r\n")
        assert silent(client, TIMEOUT * 2)
        client.sendall(POST + b"Content-Length: 2\r\n\r\nhi")
        until(client, b"0\r\n\r\n")
        assert len(app.requests) == 21


def test_an_unused_kept_connection_is_closed_after_the_idle_time() -> None:
    with served(timeout_keep_alive=0.1) as (_, client):
        client.sendall(GET)
        assert to_end(client).endswith(b"0\r\n\r\n")


FLOOD = GET.replace(b"/v1/models", b"/flood")


def test_a_client_that_takes_nothing_is_cut_off_and_its_work_cancelled() -> None:
    with served(send_timeout=0.4) as (app, client):
        client.sendall(FLOOD)
        assert app.cancelled.wait(60)
        assert not to_end(client).endswith(b"0\r\n\r\n")


def test_a_client_that_takes_its_time_is_not_cut_off() -> None:
    with served(send_timeout=2) as (app, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(FLOOD)
        for _ in range(15):
            assert client.recv(2**20)
            assert not app.cancelled.wait(0.2)


def test_a_client_that_does_not_take_the_end_of_its_answer_is_cut_off() -> None:
    with served(send_timeout=0.4) as (_, client):
        client.sendall(GET.replace(b"/v1/models", b"/mound"))
        until(client, b"first ")
        with pytest.raises(ConnectionResetError):
            for _ in range(400):  # nothing tells us, since we do not read
                client.sendall(b"\r\n")
                threading.Event().wait(0.05)


@pytest.mark.parametrize("size", [MAX_HEAD + 1000, 300_000, 2_000_000])
def test_a_huge_head_is_refused(size: int) -> None:
    with served() as (app, client):
        with suppress(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * size + b"\r\n\r\n")
        received = to_end(client)
        assert received == b"" or received.startswith(b"HTTP/1.1 431 ")
        assert app.requests == []


def test_many_small_headers_are_a_huge_head_too() -> None:
    with served() as (app, client):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n")
        assert to_end(client).startswith(b"HTTP/1.1 431 ")
        assert app.requests == []


def test_a_large_head_with_a_large_body_is_fine() -> None:
    with served() as (app, client):
        body = b"x" * 200_000
        head = POST + b"X-Big: " + b"a" * (MAX_HEAD - 1000) + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        until(client, b"0\r\n\r\n")
        assert app.requests == [("POST", body)]


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}" + SMUGGLED,
        POST + b"Content-Length: +2\r\n\r\n{}" + SMUGGLED,
        POST + b"Content-Length: 0x2\r\n\r\n{}" + SMUGGLED,
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"\r\n5 \r\nhello\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"\r\n-1\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
        b"GET /v1/models HTTP/1.1\nHost: x\n\n" + SMUGGLED,
        b"GET /v1/models HTTP/1.1\r\nHost : x\r\n\r\n" + SMUGGLED,
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\r\n folded\x00\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nX\x00Y: a\r\n\r\n",
        b"CONNECT evil:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
    ],
)
def test_an_ambiguous_or_broken_request_is_refused_and_nothing_behind_it_runs(request_: bytes) -> None:
    with served() as (app, client):
        client.sendall(request_)
        assert to_end(client).startswith(b"HTTP/1.1 400 ")
        assert app.requests == []


def test_the_host_of_an_absolute_url_counts() -> None:
    with served() as (app, client):
        client.sendall(b"GET http://evil.example:80/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(client, b"0\r\n\r\n")
        assert app.headers == [(b"host", b"evil.example:80")]


BEHIND = {
    "garbage": (b"XX\x00\r\n\r\n", 400),
    "a smuggled byte": (b"}", 400),
    "a body that is none": (CHUNKED + b"\r\nzz\r\n", 400),
    "a huge head": (GET[:-2] + b"X: " + b"a" * 16 * MAX_HEAD, 431),
}


@pytest.mark.parametrize("path", [b"/stream", b"/wait"])
@pytest.mark.parametrize("what", BEHIND)
@pytest.mark.parametrize("pieces", [1, 2])
def test_what_is_refused_behind_a_request_is_refused_behind_its_answer(
    what: str, pieces: int, path: bytes
) -> None:
    with served() as (app, client):
        request, (more, status) = GET.replace(b"/v1/models", path), BEHIND[what]
        if pieces == 1:
            client.sendall(request + more)
        received = b""
        if pieces == 2:
            client.sendall(request)
        if path == b"/wait":
            assert app.waits.wait(60)
        else:
            received += until(client, b"first ")
        if pieces == 2:
            client.sendall(more + b"more of it")
            client.sendall(GET)
        assert not app.cancelled.is_set()
        app.go_on.set()
        answer, _, refusal = (received + to_end(client)).partition(b"5\r\n last\r\n0\r\n\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert refusal.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close\r\n" in refusal
        assert len(app.requests) == 1


def test_requests_before_one_that_is_broken_are_all_answered() -> None:
    with served() as (app, client):
        client.sendall(GET * 3 + CHUNKED + b"\r\nzz\r\n" + GET)
        received = to_end(client)
        assert received.count(b"HTTP/1.1 200 ") == 3
        assert received.rpartition(b"0\r\n\r\n")[2].startswith(b"HTTP/1.1 400 ")
        assert len(app.requests) == 3


def test_pipelined_requests_are_answered_in_order() -> None:
    with served() as (app, client):
        client.sendall(GET + POST + b"Content-Length: 2\r\n\r\nhi" + GET)
        received = b""
        while received.count(b"0\r\n\r\n") < 3:
            received += client.recv(65536)
        assert [method for method, _ in app.requests] == ["GET", "POST", "GET"]


def test_an_offer_of_http2_is_declined_and_the_body_is_kept() -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    with served() as (app, client):
        for _ in range(2):
            client.sendall(POST + upgrade + b"Content-Length: 2\r\n\r\nhi")
            assert b"HTTP/1.1 200" in until(client, b"0\r\n\r\n")
        assert app.requests == [("POST", b"hi")] * 2


def test_an_offer_of_websocket_is_answered_like_any_request() -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with served() as (app, client):
        client.sendall(GET[:-2] + upgrade + GET)
        received = b""
        while received.count(b"0\r\n\r\n") < 2:
            received += client.recv(65536)
        assert b"101" not in received
        assert len(app.requests) == 2


def test_a_trailer_is_no_header() -> None:
    with served() as (app, client):
        client.sendall(CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Api-Key: x\r\nHost: evil\r\n\r\n" + GET)
        received = b""
        while received.count(b"0\r\n\r\n") < 2:
            received += client.recv(65536)
        assert app.requests == [("POST", b"hi"), ("GET", b"")]
        assert [value for name, value in app.headers if name == b"host"] == [b"x", b"x"]
        assert b"x-api-key" not in dict(app.headers)


def test_huge_trailers_are_refused() -> None:
    with served() as (_, client):
        with suppress(OSError):
            client.sendall(CHUNKED + b"\r\n2\r\nhi\r\n0\r\nX-Big: ")
            for _ in range(40):
                client.sendall(b"a" * 65536)
        assert b" 200 " not in to_end(client)


class Written:
    """A transport that notes its writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


def gathering(written: Written) -> _WriteBatch:
    loop = asyncio.get_running_loop()
    return _WriteBatch(written, loop, _SendTimeout(written, loop, TIMEOUT))


def test_an_answer_that_ends_as_the_server_does_is_sent() -> None:
    begun: list[HttpProtocol] = []

    class Noted(HttpProtocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            begun.append(self)

    class Ending(App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/wait":
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"whole"})
            begun[1].shutdown()

    with served(protocol=Noted, app=Ending()) as (app, other):
        other.sendall(GET.replace(b"/v1/models", b"/wait"))
        assert app.waits.wait(60)
        with socket.create_connection(other.getpeername(), timeout=60) as client:
            client.sendall(GET)
            assert to_end(client).endswith(b"whole")


class Closed:
    """What a lane holds for a request that it hands over."""

    def __init__(self) -> None:
        self.is_closed = threading.Event()

    def close(self) -> None:
        self.is_closed.set()


class CancellingLane(DecliningLane):
    """Takes a request, hands it over, and has its task cancelled before that begins."""

    def __init__(self, held: Closed) -> None:
        self.held = held

    def begin(self, sender: Any, body: bytes, responder: Any) -> Any:
        responder.loop.call_soon(self.hand_over, responder)
        return object()

    def route(self, sender: Any, *, begun: bool) -> tuple[Any, Any]:
        return self.never_run, {}

    async def never_run(self, *_: Any) -> None:
        raise AssertionError("the task was to be cancelled before")

    def hand_over(self, responder: LaneProtocol) -> None:
        responder.take_over(self.held)
        for task in responder.tasks:
            task.cancel()


def test_what_a_lane_holds_is_given_back_by_a_task_that_never_begins() -> None:
    held = Closed()
    state: dict[str, Any] = {LANE: CancellingLane(held)}

    class WithCancellingLane(LaneProtocol):
        def __init__(self, *timeouts: float, **given: Any) -> None:
            super().__init__(*timeouts, KEEP_ALIVE, **{**given, "app_state": state})

    with served(protocol=WithCancellingLane) as (_, client):
        client.sendall(POST + b"Content-Length: 2\r\n\r\n{}")
        assert held.is_closed.wait(60)
    assert state[UNDER_WAY] == set()


async def test_what_is_written_in_one_iteration_of_the_loop_goes_out_together() -> None:
    written = Written()
    answer = gathering(written)
    for piece in (b"head ", b"body ", b"more"):
        answer.write(piece)
    answer.flush()
    await asyncio.sleep(0)
    assert written.writes == [b"head body more"]


async def test_much_does_not_wait_for_the_end_of_the_iteration() -> None:
    written = Written()
    answer = gathering(written)
    answer.write(b"head ")
    answer.write(bytes(MAX_BATCH))
    assert [len(data) for data in written.writes] == [5 + MAX_BATCH]


async def test_a_head_does_not_wait_for_a_late_body() -> None:
    written = Written()
    answer = gathering(written)
    answer.write(b"head")
    assert written.writes == []
    await asyncio.sleep(0)
    assert written.writes == [b"head"]
    answer.write(b"body")
    await asyncio.sleep(0)
    assert written.writes == [b"head", b"body"]


async def test_a_head_goes_out_before_the_connection_is_closed() -> None:
    written = Written()
    answer = gathering(written)
    answer.write(b"head")
    answer.close()
    await asyncio.sleep(0)
    assert (written.writes, written.closing) == ([b"head"], True)


async def test_a_head_is_not_written_to_a_client_that_left() -> None:
    written = Written()
    answer = gathering(written)
    answer.write(b"head")
    written.close()
    await asyncio.sleep(0)
    assert written.writes == []


class Failing(App):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("a bug")


def test_an_app_that_fails_is_told_in_the_envelope_and_not_to_be_repeated():
    with served(app=Failing()) as (_, client):
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = to_end(client)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"x-should-retry: false" in answer
    assert b'"type":"toolway_error"' in answer


class InPieces(App):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one ", b"", b"two ", b"three"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("version", "body"),
    [("1.0", b"one two three"), ("1.1", b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")],
)
def test_a_body_without_a_length_is_framed_as_the_clients_version_knows(version: str, body: bytes):
    with served(app=InPieces()) as (_, client):
        client.sendall(f"GET / HTTP/{version}\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        assert to_end(client).partition(b"\r\n\r\n")[2] == body
