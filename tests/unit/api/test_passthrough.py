"""What goes through Toolway untouched: real sockets on both sides, compared byte for byte."""

from __future__ import annotations

import gzip
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.servers import free_port, running, running_server, until
from toolway.api.passthrough import Passthrough
from toolway.server.auth import AuthMiddleware
from toolway.server.process import server_config
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings
from toolway.upstream.client import Upstream

BAD_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense"
BINARY = bytes(range(256)) * 64


@dataclass
class Recorded:
    """A model server that notes what it is asked, and answers as it is told."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=lambda: [b"ok"])
    requests: list[tuple[str, bytes, bytes, list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    before_part: Callable[[int], Any] = lambda number: None
    left: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left.set()
                return
            body += event["body"]
            more = event["more_body"]
        self.requests.append(
            (scope["method"], scope["raw_path"], scope["query_string"], scope["headers"], body)
        )
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                assert (await receive())["type"] == "http.disconnect"
                self.left.set()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            for number, part in enumerate(self.parts):
                await anyio.to_thread.run_sync(self.before_part, number, abandon_on_cancel=True)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            group.cancel_scope.cancel()

    @property
    def asked(self) -> tuple[str, bytes, bytes, dict[bytes, bytes], bytes]:
        method, path, query, headers, body = self.requests[-1]
        return method, path, query, dict(headers), body


class Front:
    """The guard and the passthrough alone, in front of one upstream."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        async with Upstream.connect(self._settings.upstream) as upstream:
            self._app = AuthMiddleware(Passthrough(upstream, self._settings.upstream), self._settings.server)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def front_of(upstream_url: str, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[str]:
    chosen = load_settings({}, None, openai_base_url=f"{upstream_url}/base/v1", **settings)
    config = server_config(Front(chosen), chosen.server, timeout_graceful_shutdown=1, **(options or {}))
    with running_server(config) as url:
        yield url


@contextmanager
def through(upstream: Any, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[str]:
    """Toolway's URL, with this ASGI app as its model server."""
    with (
        running(upstream, lifespan="off", date_header=False, server_header=False) as url,
        front_of(url, options, **settings) as front,
    ):
        yield front


@contextmanager
def raw_upstream(*replies: bytes, hold: bool = False) -> Iterator[tuple[str, threading.Event]]:
    """A model server that reads a request and writes these bytes, then hangs up, or holds until it is left."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = threading.Event()

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer = listener.accept()[0]
                with peer:
                    peer.recv(65536)
                    for reply in replies:
                        peer.sendall(reply)
                    while hold and peer.recv(65536):
                        pass
                    left.set()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", left
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)


def to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(65536):
        received += part
    return received


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_method_path_query_and_body_go_along(method: str) -> None:
    upstream = Recorded()
    with through(upstream) as url:
        answer = httpx2.request(method, f"{url}/v1/files/a?x=1&x=2&y=%20%2F", content=BINARY)
    assert answer.content == b"ok"
    assert upstream.asked[:3] == (method, b"/base/v1/files/a", b"x=1&x=2&y=%20%2F")
    assert upstream.asked[4] == BINARY


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/a%2Fb%20c%C3%A9",
        b"/v1/models/meta-llama%2fLlama:free@x,y;z=(1)~!*'$&+",
        b"/v1/double//slash/",
        b"/v1/",
        b"/v1/models?",
        b"/v1/a%00b%0d%0aX:%20y",
        b"/v1/...",
        b"/v1/.hidden",
        b"/v1/%252e%252e/x",
    ],
)
def test_the_raw_path_stays_as_it_is(path: bytes) -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in until(client, b"ok")
    assert upstream.asked[1] == b"/base" + path.partition(b"?")[0]


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../x",
        b"/v1/..",
        b"/v1/./x",
        b"/v1/%2e%2e/x",
        b"/v1/.%2E/x",
        b"/v1/a%2f..%2fb",
        b"/v1/a\\..\\b",
        b"/v1/a%5c..%5cb",
        b"/v1/x/%2e",
    ],
)
def test_dot_segments_are_refused(path: bytes) -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 400 " in client.recv(65536)
    assert upstream.requests == []


def test_an_encoded_prefix_leads_nowhere() -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        client.sendall(b"GET /%76%31/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 404 " in client.recv(65536)
    assert upstream.requests == []


def test_headers_go_along_but_those_of_the_connection() -> None:
    upstream = Recorded()
    with through(upstream, openai_api_key="sk-up") as url, connect(url) as client:
        client.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Twice: 1\r\nx-twice: 2\r\nConnection: X-Hop\r\n"
            b"X-Hop: 1\r\nTE: trailers\r\nUser-Agent: me\r\nAccept-Encoding: br\r\n\r\n"
        )
        until(client, b"ok")
    _, _, _, headers, _ = upstream.requests[0]
    host = [value for name, value in headers if name == b"host"]
    assert len(host) == 1
    assert host[0] != b"localhost"
    assert [h for h in headers if h[0] != b"host"] == [
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"user-agent", b"me"),
        (b"accept-encoding", b"br"),
        (b"authorization", b"Bearer sk-up"),
    ]


@pytest.mark.parametrize(
    "name", ["Content-Type", "Authorization", "X-Request-Id", "Traceparent", "Idempotency-Key", "User-Agent"]
)
def test_a_header_that_a_request_may_have_once_goes_along_once(name: str) -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        twice = f"{name}: first\r\n{name.lower()}: last\r\n".encode()
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + twice + b"\r\n")
        until(client, b"ok")
    _, _, _, headers, _ = upstream.requests[0]
    assert [value for known, value in headers if known == name.lower().encode()] == [b"last"]


def test_nothing_is_added_to_a_bare_request() -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        client.sendall(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
        until(client, b"ok")
    assert {name for name, _ in upstream.requests[0][3]} == {b"host", b"content-length"}


def test_the_key_for_toolway_is_replaced_and_the_clients_own_is_passed_on() -> None:
    upstream = Recorded()
    with through(upstream, openai_api_key="sk-up", api_keys=("ours",)) as url:
        httpx2.get(f"{url}/v1/models", headers={"authorization": "Bearer ours"})
        assert upstream.asked[3][b"authorization"] == b"Bearer sk-up"
        httpx2.get(f"{url}/v1/models", headers={"authorization": "Bearer theirs", "x-api-key": "ours"})
        assert upstream.asked[3][b"authorization"] == b"Bearer theirs"
        assert b"x-api-key" not in upstream.asked[3]
        assert httpx2.get(f"{url}/v1/models").status_code == 401
    assert len(upstream.requests) == 2


def test_an_answer_comes_back_as_it_is() -> None:
    compressed = gzip.compress(BINARY)
    upstream = Recorded(
        status=429,
        headers=[
            (b"content-type", b"audio/mpeg"),
            (b"content-encoding", b"gzip"),
            (b"content-length", str(len(compressed)).encode()),
            (b"retry-after", b"7"),
            (b"x-request-id", b"req-1"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (b"access-control-allow-origin", b""),
            (b"access-control-allow-methods", b"*"),
        ],
        parts=[compressed],
    )
    with through(upstream) as url, httpx2.stream("GET", f"{url}/v1/x") as answer:
        assert answer.status_code == 429
        assert b"".join(answer.iter_raw()) == compressed
        assert [(k.lower(), v) for k, v in answer.headers.raw] == upstream.headers[:-2]


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_answers_without_a_body(status: int) -> None:
    upstream = Recorded(status=status, headers=[(b"etag", b"x")], parts=[])
    with through(upstream) as url, httpx2.Client() as client:
        for _ in range(2):
            answer = client.get(f"{url}/v1/x")
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (status, b"", "x")


def test_head_tells_the_length_and_sends_nothing() -> None:
    upstream = Recorded(headers=[(b"content-length", b"12345")], parts=[])
    with through(upstream) as url, httpx2.Client() as client:
        for _ in range(2):
            answer = client.head(f"{url}/v1/files/a")
            assert (answer.headers["content-length"], answer.content) == ("12345", b"")
    assert upstream.asked[0] == "HEAD"


def test_redirects_are_the_clients_to_follow() -> None:
    upstream = Recorded(status=302, headers=[(b"location", b"http://elsewhere.example/")])
    with through(upstream) as url:
        answer = httpx2.get(f"{url}/v1/x", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (302, "http://elsewhere.example/")


def test_a_multipart_upload_arrives_byte_for_byte() -> None:
    upstream = Recorded()
    image = os.urandom(300_000)
    with through(upstream) as url:
        request = httpx2.Request(
            "POST",
            f"{url}/v1/images/edits",
            files={"image": ("a.png", image, "image/png")},
            data={"prompt": "ü"},
        )
        sent = request.read()
        with httpx2.Client() as client:
            client.send(request)
    assert upstream.asked[4] == sent
    assert upstream.asked[3][b"content-type"].decode() == request.headers["content-type"]
    assert upstream.asked[3][b"content-length"] == str(len(sent)).encode()


def test_a_chunked_upload_streams_and_starts_before_it_ends() -> None:
    arrived = threading.Event()
    received: list[bytes] = []

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        assert (b"transfer-encoding", b"chunked") in scope["headers"]
        more = True
        while more:
            event = await receive()
            received.append(event["body"])
            more = event["more_body"]
            if event["body"]:
                arrived.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    with through(upstream) as url, connect(url) as client:
        client.sendall(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"5\r\nfirst\r\n")
        assert arrived.wait(60)
        assert b"".join(received) == b"first"
        client.sendall(b"4\r\nlast\r\n0\r\n\r\n")
        until(client, b"ok")
    assert b"".join(received) == b"firstlast"


def test_a_client_that_waits_for_100_continue_is_told_to() -> None:
    upstream = Recorded()
    with through(upstream) as url, connect(url) as client:
        client.sendall(
            b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hi")
        assert b" 200 " in until(client, b"ok")
    assert upstream.asked[4] == b"hi"
    assert b"expect" not in upstream.asked[3]


def test_events_come_one_by_one() -> None:
    parts = [b"data: %d\n\n" % number for number in range(5)]
    ready = [threading.Event() for _ in parts]
    upstream = Recorded(
        headers=[(b"content-type", b"text/event-stream")],
        parts=parts,
        before_part=lambda number: ready[number].wait(60),
    )
    with through(upstream) as url, httpx2.stream("POST", f"{url}/v1/completions", content=b"{}") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        stream = answer.iter_raw()
        for number, part in enumerate(parts):
            ready[number].set()
            assert next(stream) == part


ANY_SERVER = pytest.mark.parametrize("options", [{}, {"http": "httptools"}, {"http": "h11"}])
"""Our own server, and others that do not say when a client leaves."""


@ANY_SERVER
def test_a_client_that_leaves_ends_the_upstream_request(options: dict[str, Any]) -> None:
    gate = threading.Event()
    upstream = Recorded(parts=[b"one", b"two"], before_part=lambda number: number and gate.wait(60))
    with through(upstream, options) as url:
        with connect(url) as client:
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until(client, b"one")
        assert upstream.left.wait(60)
        gate.set()


@ANY_SERVER
def test_a_client_that_leaves_before_the_answer_ends_the_upstream_request(options: dict[str, Any]) -> None:
    with raw_upstream(hold=True) as (upstream, left), front_of(upstream, options) as url:
        with connect(url) as client:
            client.sendall(b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
            assert not left.wait(0.3)
        assert left.wait(60)


@ANY_SERVER
def test_a_client_that_leaves_inside_its_upload_ends_the_upstream_request(options: dict[str, Any]) -> None:
    with raw_upstream(hold=True) as (upstream, left), front_of(upstream, options) as url:
        with connect(url) as client:
            client.sendall(
                b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + b"x" * 99
            )
            assert not left.wait(0.3)
        assert left.wait(60)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ],
)
def test_an_upstream_that_breaks_off_cuts_the_client(reply: bytes) -> None:
    with raw_upstream(reply) as (upstream, _), front_of(upstream) as url:
        with connect(url) as client:
            client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = to_end(client)
        assert b"half" in received
        assert not received.endswith(b"0\r\n\r\n")


def test_an_upstream_without_a_length_ends_where_it_closes() -> None:
    with raw_upstream(b"HTTP/1.0 200 OK\r\n\r\nall of it") as (upstream, _), front_of(upstream) as url:
        assert httpx2.get(f"{url}/v1/x").content == b"all of it"


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert found["type"] == "upstream_error"
    return found


def test_an_upstream_that_is_down_is_a_502() -> None:
    with front_of(f"http://127.0.0.1:{free_port()}") as url:
        answer = httpx2.post(f"{url}/v1/embeddings", content=b"{}")
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_unreachable"


def test_an_upstream_that_is_silent_is_a_504() -> None:
    with raw_upstream(hold=True) as (upstream, left), front_of(upstream, upstream_silence_timeout=0.2) as url:
        answer = httpx2.post(f"{url}/v1/embeddings", content=b"{}")
        assert left.wait(60)
    assert answer.status_code == 504
    assert error_of(answer)


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nBad", BAD_CHUNK])
def test_an_upstream_that_speaks_no_http_is_a_502(reply: bytes) -> None:
    with raw_upstream(reply) as (upstream, _), front_of(upstream) as url:
        answer = httpx2.post(f"{url}/v1/embeddings", content=b"{}")
    assert answer.status_code == 502
    assert error_of(answer)


def test_bodies_of_any_size_pass_without_being_held() -> None:
    size, piece = 192 * 2**20, bytes(2**20)
    asked = threading.Event()
    counted = [0]

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            event = await receive()
            counted[0] += len(event["body"])
            more = event["more_body"]
        asked.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(size // len(piece)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def upload() -> Iterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    with (
        through(upstream, max_body_bytes=1000) as url,
        httpx2.stream("POST", f"{url}/v1/files", content=upload()) as answer,
    ):
        assert asked.wait(60)
        assert counted[0] == size
        assert sum(len(part) for part in answer.iter_raw()) == size


def test_a_client_that_does_not_read_stops_the_upstream() -> None:
    size = 256 * 2**20
    sent = [0]
    stalled = threading.Event()

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        piece = bytes(2**18)
        while sent[0] < size:
            with anyio.move_on_after(0.5) as scope:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if scope.cancelled_caught:
                stalled.set()
                await anyio.sleep_forever()
            sent[0] += len(piece)

    with through(upstream) as url, connect(url) as client:
        client.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(client, b"\r\n\r\n")
        assert stalled.wait(60)
        assert sent[0] < size / 4


def test_many_at_once_do_not_mix() -> None:
    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["raw_path"] + body})

    async def ask(client: httpx2.AsyncClient, url: str, number: int) -> None:
        answer = await client.post(f"{url}/v1/{number}", content=str(number))
        assert answer.text == f"/base/v1/{number}{number}"

    async def ask_all(url: str) -> None:
        async with httpx2.AsyncClient() as client, anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(ask, client, url, number)

    with through(upstream) as url:
        anyio.run(ask_all, url)
