"""The HTTP client against servers that write raw bytes: what it takes, refuses, keeps and closes."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw import Serve, raw_server, request_head, split
from toolway.net import client as http_client_module
from toolway.net import connection as connection_module
from toolway.net.client import HttpClient, Origin
from toolway.net.connection import MAX_BUFFERED, MAX_HEAD, Connection, Response
from toolway.net.errors import Fault, HttpError
from toolway.types import Header

OK = b"HTTP/1.1 200 OK\r\n"
WHOLE = OK + b"content-length: 2\r\n\r\nhi"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def client_of(serve: Serve, *, silence: float = 20, prefix: str = "/v1") -> AsyncIterator[HttpClient]:
    async with raw_server(serve) as port:
        client = HttpClient(Origin.of(f"http://127.0.0.1:{port}{prefix}"), connect=20, silence=silence)
        try:
            yield client
        finally:
            client.close()
        assert client.under_way == 0, "an exchange that ended is counted still"


class Answers:
    """Serves one of these answers for each request without a body, in turn; counts connections, keeps the heads."""

    def __init__(self, *answers: bytes | Sequence[bytes], hang_up: bool = False) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.closed = asyncio.Event()
        self._answers = list(answers)
        self._hang_up = hang_up

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await request_head(reader))
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if self._hang_up:
                    return
        finally:
            self.closed.set()


async def get(client: HttpClient, method: str = "GET", **options: object) -> tuple[int, list[Header], bytes]:
    async with client.request(method, b"/x", **options) as connection:  # type: ignore[arg-type]
        assert connection.response is not None
        body = b""
        while part := await connection.receive():
            body += part
        return connection.response.status, connection.response.headers, body


async def bodies(serve: Serve, times: int = 2, method: str = "GET") -> list[bytes]:
    async with client_of(serve) as client:
        return [(await get(client, method))[2] for _ in range(times)]


# Answers


BODIES = {
    "with a length": (WHOLE, b"hi"),
    "empty": (OK + b"content-length: 0\r\n\r\n", b""),
    "chunked": (CHUNKED + b"2\r\nhi\r\n6;a=b\r\n there\r\n0\r\n\r\n", b"hi there"),
    "chunked in other words": (OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\n!\r\n0\r\n\r\n", b"!"),
    "with trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n", b"hi"),
    "with spaces behind a size": (CHUNKED + b"2  \r\nhi\r\n0\r\n\r\n", b"hi"),
    "behind interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE,
        b"hi",
    ),
    "without a reason": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", b"hi"),
    "with bare line feeds": (b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi", b"hi"),
    "that offers an upgrade": (
        OK + b"upgrade: h2\r\nconnection: upgrade, keep-alive\r\ncontent-length: 2\r\n\r\nhi",
        b"hi",
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "no content but a length": (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "of an old server that keeps alive": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi",
        b"hi",
    ),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_is_read_and_the_connection_used_again(name: str):
    answer, body = BODIES[name]
    serve = Answers(answer)
    assert await bodies(serve) == [body, body]
    assert serve.connections == 1


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_comes_byte_by_byte_is_the_same(name: str):
    answer, body = BODIES[name]
    assert await bodies(Answers([bytes([byte]) for byte in answer])) == [body, body]


CLOSING = {
    "says so": OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi",
    "says so among other things": OK + b"connection: x, Close\r\ncontent-length: 2\r\n\r\nhi",
    "is old": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("name", CLOSING)
async def test_a_server_that_means_to_close_is_asked_on_a_new_connection(name: str):
    serve = Answers(CLOSING[name])
    assert await bodies(serve) == [b"hi", b"hi"]
    assert serve.connections == 2


@pytest.mark.parametrize("head", [OK, b"HTTP/1.0 200 OK\r\nx: y\r\n"])
async def test_a_body_without_a_length_ends_with_its_connection(head: bytes):
    serve = Answers([head + b"\r\n", b"all ", b"of it"], hang_up=True)
    assert await bodies(serve) == [b"all of it"] * 2
    assert serve.connections == 2


@pytest.mark.parametrize("head", [b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n"])
async def test_a_head_has_no_body_whatever_it_says(head: bytes):
    serve = Answers(OK + head + b"\r\n")
    assert await bodies(serve, method="HEAD") == [b"", b""]
    assert serve.connections == 1


async def test_a_body_of_a_head_is_not_taken_for_an_answer():
    serve = Answers(WHOLE)
    assert await bodies(serve, method="HEAD") == [b"", b""]
    assert serve.connections == 2


@pytest.mark.parametrize("more", [WHOLE, b"HTTP", b"x", b"\r\nx"])
async def test_bytes_behind_an_answer_end_the_connection(more: bytes):
    serve = Answers(WHOLE + more)
    assert await bodies(serve) == [b"hi", b"hi"]
    assert serve.connections == 2


async def test_headers_come_byte_for_byte_with_lower_case_names():
    serve = Answers(
        OK + b"X-Odd:  \xff\xe9 \xc3\xa9  \r\nSet-Cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n"
    )
    async with client_of(serve) as client:
        _, headers, _ = await get(client)
    assert headers == [
        (b"x-odd", b"\xff\xe9 \xc3\xa9"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"content-length", b"0"),
    ]


async def test_headers_of_interim_answers_are_not_those_of_the_answer():
    async with client_of(Answers(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + WHOLE)) as client:
        assert (await get(client))[1] == [(b"content-length", b"2")]


BROKEN = {
    "nothing": b"",
    "half a head": OK + b"x: y\r\n",
    "half a line": b"HTTP/1.1 20",
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n",
    "a shorter body": OK + b"content-length: 3\r\n\r\nhi",
    "chunks without an end": CHUNKED + b"2\r\nhi\r\n",
    "half a chunk": CHUNKED + b"5\r\nhi",
    "a chunk of no size": CHUNKED + b"2\r\nhi\r\nzz\r\n",
    "no end of the trailers": CHUNKED + b"0\r\nx: y\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhi",
    "a switch that nobody offered": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
    "a status above all": b"HTTP/1.1 600 High\r\ncontent-length: 0\r\n\r\n",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
    "a length and chunks": OK
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a negative length": OK + b"content-length: -2\r\n\r\nhi",
    "another transfer encoding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a folded header": OK + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "a control character": OK + b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "a head without end": OK + b"x: y\r\n" * MAX_HEAD,
    "a header without end": OK + b"x: " + b"y" * MAX_HEAD * 2,
    "a large head that ends": OK + b"x: y\r\n" * (MAX_HEAD // 4) + b"\r\n",
    "interim answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * MAX_HEAD,
    "trailers without end": CHUNKED + b"0\r\n" + b"x: y\r\n" * MAX_HEAD,
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_whole_answer_is_an_error(name: str):
    async with client_of(Answers(BROKEN[name], hang_up=True)) as client:
        with pytest.raises(HttpError) as raised:
            await get(client)
    assert raised.value.fault in (Fault.UNANSWERED, Fault.CUT_HEAD, Fault.CUT_BODY, Fault.NOT_HTTP)
    assert "127.0.0.1" not in str(raised.value)


async def test_what_came_before_a_break_is_delivered():
    async with (
        client_of(Answers(OK + b"content-length: 9\r\n\r\nhi", hang_up=True)) as client,
        client.request("GET", b"/") as connection,
    ):
        assert await connection.receive() == b"hi"
        for _ in range(2):
            with pytest.raises(HttpError):
                await connection.receive()


async def test_a_reset_inside_a_body_without_length_is_no_end():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(OK + b"\r\npart")
        await reader.read(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by reset

    async with client_of(serve) as client, client.request("GET", b"/") as connection:
        assert await connection.receive() == b"part"
        connection._transport.write(b"x")  # the server's cue
        with pytest.raises(HttpError):
            await connection.receive()


async def test_what_one_read_brought_comes_joined():
    pieces = [b"1\r\n%d\r\n" % number for number in range(9)]
    answer = Answers(CHUNKED + b"".join(pieces))
    async with client_of(answer) as client, client.request("GET", b"/") as connection:
        assert await connection.receive() == b"012345678"


# Requests


async def test_a_request_is_written_as_it_should_be():
    serve = Answers(WHOLE)
    headers = [
        (b"host", b"evil"),
        (b"x-odd", b"\xff \xc3\xa9"),
        (b"expect", b"100-continue"),
        (b"connection", b"close"),
        (b"transfer-encoding", b"gzip"),
        (b"content-length", b"99"),
        (b"x-odd", b""),
    ]
    async with client_of(serve) as client:
        await get(client, headers=headers)
        authority = client._origin.authority
    assert (
        serve.heads[0]
        == b"GET /x HTTP/1.1\r\nhost: " + authority + b"\r\nx-odd: \xff \xc3\xa9\r\nx-odd: \r\n\r\n"
    )


@pytest.mark.parametrize(
    ("method", "body", "line"),
    [
        ("GET", None, None),
        ("POST", None, b"0"),
        ("DELETE", None, None),
        ("GET", b"", b"0"),
        ("POST", b"", b"0"),
        ("PATCH", b"four", b"4"),
    ],
)
async def test_the_length_of_a_body_is_told(method: str, body: bytes | None, line: bytes | None):
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_head(reader))
        assert await reader.readexactly(len(body or b"")) == (body or b"")
        writer.write(WHOLE)

    async with client_of(serve) as client:
        await get(client, method, body=body)
    lines = [
        part.partition(b": ")[2] for part in heads[0].split(b"\r\n") if part.startswith(b"content-length")
    ]
    assert lines == ([] if line is None else [line])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*sorted(http_client_module._ONCE), b"x-vendor", b"accept", b"openai-beta"]),
            st.sampled_from([b"one", b"two", b"application/json"]),
        ),
        max_size=12,
    )
)
def test_a_header_that_a_request_may_have_once_is_sent_once(headers: list[Header]):
    head = http_client_module._header_lines(b"host", tuple(headers))
    sent = [tuple(line.split(b": ", 1)) for line in head.removesuffix(b"\r\n").split(b"\r\n")[1:]]
    lists = [header for header in headers if header[0] not in http_client_module._ONCE]
    assert [header for header in sent if header in lists] == lists
    assert dict(sent) == dict(headers)
    assert len(sent) - len(lists) == len({name for name, _ in headers} & http_client_module._ONCE)


@pytest.mark.parametrize("bad", [b"a\rb", b"a\nb", b"a\r\nb: c", b"a\0b"])
async def test_line_breaks_and_nul_are_refused(bad: bytes):
    serve = Answers(WHOLE)
    async with client_of(serve) as client:
        for options in ({"headers": [(b"x", bad)]}, {"headers": [(bad, b"x")]}):
            with pytest.raises(HttpError):
                await get(client, **options)
        for target in (b"/" + bad, b"/a b", b"/a HTTP/1.1\r\n"):
            with pytest.raises(HttpError):
                async with client.request("GET", target):
                    pass
    assert serve.connections == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost", ("localhost", 80, False, b"localhost", b"")),
        ("https://api.openai.com/v1/", ("api.openai.com", 443, True, b"api.openai.com", b"/v1")),
        ("http://h:443/v1", ("h", 443, False, b"h:443", b"/v1")),
        ("https://h:8443/a/b%20c", ("h", 8443, True, b"h:8443", b"/a/b%20c")),
        ("http://[::1]:1234/v1", ("::1", 1234, False, b"[::1]:1234", b"/v1")),
        ("http://[::1]/ä ", ("::1", 80, False, b"[::1]", b"/%C3%A4")),
        ("HTTPS://Bücher.example/v1", ("xn--bcher-kva.example", 443, True, b"xn--bcher-kva.example", b"/v1")),
    ],
)
def test_where_a_base_url_leads(url: str, expected: tuple[str, int, bool, bytes, bytes]):
    origin = Origin.of(url.strip())
    assert (origin.host, origin.port, origin.tls, origin.authority, origin.prefix) == expected


@pytest.mark.parametrize("url", ["http://", "http:///v1", "http://a..b/v1", "http://h:99999/"])
def test_a_base_url_without_a_host_leads_nowhere(url: str):
    with pytest.raises(ValueError, match=r"."):
        Origin.of(url)


# Uploads


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


def collect(received: list[bytes], size: int, answer: bytes = WHOLE) -> Serve:
    """A server that reads a head and `size` bytes, then answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            received.append(await request_head(reader))
            received.append(await reader.readexactly(size))
            writer.write(answer)

    return serve


async def test_a_body_in_pieces_goes_out_chunked():
    received: list[bytes] = []
    sent = b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    async with client_of(collect(received, len(sent))) as client:
        for _ in range(2):
            assert (await get(client, "POST", body=pieces_of(b"one", b"", b"two")))[2] == b"hi"
    assert b"\r\ntransfer-encoding: chunked\r\n" in received[0]
    assert b"content-length" not in received[0]
    assert received[1::2] == [sent, sent]


async def test_a_body_in_pieces_keeps_its_length():
    received: list[bytes] = []
    async with client_of(collect(received, 6)) as client:
        headers = [(b"content-length", b"6")]
        assert (await get(client, "POST", headers=headers, body=pieces_of(b"one", b"two")))[2] == b"hi"
    assert received[0].endswith(b"\r\ncontent-length: 6\r\n\r\n")
    assert received[1] == b"onetwo"


@pytest.mark.parametrize("length", [b"5", b"7"])
async def test_a_body_that_is_not_as_long_as_it_says_is_not_sent_as_one(length: bytes):
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        body = await reader.read()
        assert len(body) < int(length)
        left.set()

    async with client_of(serve) as client:
        headers = [(b"content-length", length)]
        with pytest.raises(HttpError):
            await get(client, "POST", headers=headers, body=pieces_of(b"one", b"two"))
        await asyncio.wait_for(left.wait(), 60)


async def test_what_a_body_raises_is_raised_by_the_request():
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()

    left = asyncio.Event()

    async with client_of(serve) as client:
        with pytest.raises(LookupError):
            await get(client, "POST", body=body())
        await asyncio.wait_for(left.wait(), 60)


async def test_an_answer_before_the_upload_is_complete_is_delivered_and_ends_the_connection():
    stuck, ended = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"start"
            await stuck.wait()
        finally:
            ended.set()

    refusal = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"
    serve = Answers(refusal, refusal)
    async with client_of(serve) as client:
        assert (await get(client, "POST", body=body()))[::2] == (413, b"no")
        assert ended.is_set()
        await asyncio.wait_for(serve.closed.wait(), 60)
        await get(client)
    assert serve.connections == 2


async def test_an_upload_goes_on_while_its_answer_comes():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(CHUNKED)
        while (line := await reader.readline()) != b"0\r\n":
            piece = await reader.readexactly(int(line, 16) + 2)
            writer.write(line + piece)
        writer.write(b"0\r\n\r\n")

    turn = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"ping"
        await turn.wait()
        yield b"pong"

    async with client_of(serve) as client, client.request("POST", b"/", body=body()) as connection:
        assert await connection.receive() == b"ping"
        turn.set()
        assert await connection.receive() == b"pong"
        assert await connection.receive() == b""


async def test_a_server_that_does_not_read_stops_the_upload():
    taken, go_on = 0, asyncio.Event()
    stalled = asyncio.Event()
    size = 64 * 2**20

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < size:
            taken += 2**16
            loop.call_later(0.3, note_stall, taken)
            yield bytes(2**16)

    def note_stall(seen: int) -> None:
        if seen == taken:
            stalled.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await go_on.wait()
        left = size
        while left:
            left -= len(await reader.read(2**20))
        writer.write(WHOLE)

    loop = asyncio.get_running_loop()
    async with client_of(serve) as client, asyncio.TaskGroup() as group:
        headers = [(b"content-length", str(size).encode())]
        answer = group.create_task(get(client, "POST", headers=headers, body=body()))
        await asyncio.wait_for(stalled.wait(), 60)
        assert taken < size / 2
        go_on.set()
        assert (await answer)[2] == b"hi"


# Backpressure


async def test_a_reader_that_does_not_read_stops_the_server():
    size, sent = 64 * 2**20, 0
    stalled = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_head(reader)
        writer.write(OK + b"content-length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(bytes(2**16))
            sent += 2**16
            try:
                await asyncio.wait_for(asyncio.shield(drain := asyncio.ensure_future(writer.drain())), 0.3)
            except TimeoutError:
                stalled.set()
                await drain

    async with client_of(serve) as client, client.request("GET", b"/") as connection:
        await asyncio.wait_for(stalled.wait(), 60)
        assert sent < size / 2
        assert sum(map(len, connection.response.parts)) <= MAX_BUFFERED + 2**18
        received = 0
        while part := await connection.receive():
            received += len(part)
        assert received == size


# Connections


async def test_the_connection_that_was_used_last_is_used_next():
    serve = Answers(WHOLE)
    async with client_of(serve) as client:
        async with client.request("GET", b"/") as first, client.request("GET", b"/") as second:
            assert first is not second
            for connection in (first, second):
                while await connection.receive():
                    pass
        # `second` was released first.
        async with client.request("GET", b"/") as third:
            assert third is first
    assert serve.connections == 2


async def test_leaving_before_the_end_of_a_body_closes_the_connection():
    serve = Answers(OK + b"content-length: 9\r\n\r\npart")
    async with client_of(serve) as client:
        async with client.request("GET", b"/") as connection:
            assert await connection.receive() == b"part"
        await asyncio.wait_for(serve.closed.wait(), 60)


async def test_leaving_a_whole_body_unread_closes_the_connection():
    serve = Answers(WHOLE)
    async with client_of(serve) as client:
        async with client.request("GET", b"/"):
            pass
        await asyncio.wait_for(serve.closed.wait(), 60)


@pytest.mark.parametrize("answer", [b"", OK, OK + b"content-length: 9\r\n\r\npart"])
async def test_cancelling_closes_the_connection(answer: bytes):
    serve = Answers(answer)
    async with client_of(serve) as client:
        with anyio.move_on_after(0.1) as scope:
            await get(client)
        assert scope.cancelled_caught
        await asyncio.wait_for(serve.closed.wait(), 60)
        assert not client._idle


async def test_cancelling_an_upload_ends_its_body():
    arrived, ended, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            arrived.set()
        closed.set()

    async with client_of(serve) as client, aclosing(body()) as endless:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(get, client, "POST", body=endless))
            await asyncio.wait_for(arrived.wait(), 60)
            tasks.cancel_scope.cancel()
        await asyncio.wait_for(closed.wait(), 60)
    assert ended.is_set()


@pytest.mark.parametrize(
    ("unasked", "closes"),
    [
        (b"", True),
        (b"HTTP/1.1 408 Request Timeout\r\n\r\n", True),
        (WHOLE[:9], False),  # its rest may come when the next request is under way
    ],
)
async def test_a_connection_that_ends_or_brings_something_unasked_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch, unasked: bytes, closes: bool
):
    monkeypatch.setattr(http_client_module, "MAX_IDLE", 60.0)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request_head(reader)
        writer.write(WHOLE)
        await writer.drain()
        await go_on.wait()
        writer.write(unasked)
        await writer.drain()
        ended.set()
        if not closes:
            await reader.read()

    go_on, ended = asyncio.Event(), asyncio.Event()
    async with client_of(serve) as client:
        await get(client)
        connection = client._idle[-1]
        go_on.set()
        await asyncio.wait_for(ended.wait(), 60)
        async with asyncio.timeout(20):
            while not connection.closed:  # noqa: ASYNC110 - its news is on the way through the loop
                await asyncio.sleep(0)
        assert (await get(client))[2] == b"hi"
    assert connections == 2


async def test_what_comes_before_a_request_is_written_is_no_answer_to_it(
    anyio_backend: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection_module, "RECENT", 0.0)
    if not anyio_backend[1]["use_uvloop"]:
        pytest.skip("asyncio itself writes before it reads")
    is_idle, is_sent = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        for last_words in (b"HTTP/1.1 408 Timeout\r\ncontent-length: 0\r\n\r\n", b""):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(WHOLE)
                is_idle.wait(60)
                connection.sendall(last_words)
                is_sent.set()
                connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        client = HttpClient(Origin.of(f"http://127.0.0.1:{port}"), connect=20, silence=20)
        assert (await get(client))[2] == b"hi"
        is_idle.set()
        is_sent.wait(60)  # meanwhile nothing is read
        assert (await get(client, repeatable=True))[0] == 200
        client.close()
        await anyio.to_thread.run_sync(thread.join)


async def test_connections_are_kept_for_a_while_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_client_module, "MAX_IDLE", 0.2)
    serve = Answers(WHOLE)
    async with client_of(serve) as client:
        await get(client)
        await get(client)
        assert serve.connections == 1
        await asyncio.wait_for(serve.closed.wait(), 60)
        assert not client._idle
        await get(client)
    assert serve.connections == 2


async def test_there_are_as_many_connections_as_requests():
    arrived, go_on = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await request_head(reader)
        arrived += 1
        if arrived == 150:
            go_on.set()
        await go_on.wait()
        writer.write(WHOLE)

    async with client_of(serve) as client, asyncio.TaskGroup() as group:
        for _ in range(150):
            group.create_task(get(client))


async def test_an_exchange_leaves_nothing_to_the_garbage_collector():
    async with client_of(Answers(WHOLE)) as client:
        await get(client)
        gc.collect()
        gc.disable()
        try:
            before = sum(isinstance(thing, Response) for thing in gc.get_objects())
            for _ in range(10):
                await get(client)
            assert sum(isinstance(thing, Response) for thing in gc.get_objects()) == before
        finally:
            gc.enable()


@pytest.mark.parametrize(
    "name", ["another protocol", "a chunk of no size", "a shorter body", "a head without end"]
)
async def test_an_exchange_that_fails_leaves_nothing_to_the_garbage_collector(name: str):
    def count() -> int:
        return sum(isinstance(thing, Connection | Response) for thing in gc.get_objects())

    async with client_of(Answers(BROKEN[name], hang_up=True)) as client:
        await refuse(get(client))
        gc.collect()
        gc.disable()
        try:
            before = count()
            for _ in range(5):
                with suppress(HttpError):  # `pytest.raises` would keep its frames
                    await get(client)
            with anyio.fail_after(20):
                while count() > before:  # noqa: ASYNC110 - the event loop tells the last one of its end
                    await anyio.sleep(0.01)
        finally:
            gc.enable()


class Wakes:
    """Stands for a connection's event loop, and counts what waits for it to come round."""

    def __init__(self, connection: Any) -> None:
        self.count = 0
        self._loop = connection._loop
        connection._loop = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon(self, *given: Any) -> Any:
        self.count += 1
        return self._loop.call_soon(*given)


async def test_only_a_request_beside_others_waits_for_them():
    async with client_of(Answers(WHOLE)) as client:
        await get(client)
        first, second = await client.acquire(), await client.acquire()
        wakes = [Wakes(first), Wakes(second)]
        request = (client.head("GET", b"/v1/x", []) + b"\r\n",)
        client.begin(first, "GET", request)
        client.begin(second, "GET", request)
        assert [each.count for each in wakes] == [0, 1]
        for connection in (first, second):
            await connection.head()
            assert await connection.receive() == b"hi"
            client.release(connection)
        await get(client)
        assert [each.count for each in wakes] == [0, 1]


# Deadlines


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_silence_before_the_answer_ends_the_request():
    async with client_of(hold, silence=0.1) as client:
        with pytest.raises(HttpError, match="silent"):
            await get(client)


@pytest.mark.parametrize("length", [b"content-length: 9\r\n", b"transfer-encoding: chunked\r\n", b""])
async def test_silence_inside_the_body_ends_the_request(length: bytes):
    part = b"4\r\npart\r\n" if b"chunked" in length else b"part"
    serve = Answers(OK + length + b"\r\n" + part)
    async with client_of(serve, silence=0.5) as client, client.request("GET", b"/") as connection:
        assert await connection.receive() == b"part"
        with pytest.raises(HttpError, match="silent"):
            await connection.receive()


async def slowly(pieces: Sequence[bytes], write: Callable[[bytes], object]) -> None:
    for piece in pieces:
        await asyncio.sleep(0.1)
        write(piece)


async def test_a_slow_server_is_not_silent():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        letters = [b"%c" % letter for letter in b"very slow"]
        await slowly([OK, b"content-length: 9\r\n\r\n", *letters], writer.write)

    async with client_of(serve, silence=0.8) as client:
        assert (await get(client))[2] == b"very slow"


async def test_a_slow_reader_makes_no_server_silent():
    serve = Answers(OK + b"content-length: 6\r\n\r\npart")
    async with client_of(serve, silence=0.5) as client, client.request("GET", b"/") as connection:
        await asyncio.sleep(0.8)
        assert await connection.receive() == b"part"


async def test_a_slow_upload_makes_no_server_silent():
    async def body() -> AsyncIterator[bytes]:
        for _ in range(6):
            await asyncio.sleep(0.15)
            yield b"x"

    async with client_of(collect([], 6), silence=0.7) as client:
        headers = [(b"content-length", b"6")]
        assert (await get(client, "POST", headers=headers, body=body()))[2] == b"hi"


async def test_a_server_that_takes_no_upload_is_silent():
    async def body() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**20)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with client_of(serve, silence=0.3) as client:
        with pytest.raises(HttpError, match="silent"):
            await get(client, "POST", body=body())


async def refuse(awaitable: Awaitable[object]) -> HttpError:
    with pytest.raises(HttpError) as raised:
        await awaitable
    return raised.value


async def test_a_host_without_a_name_cannot_be_reached():
    client = HttpClient(Origin.of("http://no-such-host.invalid/v1"), connect=20, silence=20)
    error = await refuse(get(client))
    assert error.fault is Fault.UNKNOWN_HOST
    assert "no-such-host" not in str(error)


async def test_a_connection_that_nobody_accepts_is_given_up():
    # A queue of one that is full answers no more connections.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(address)
        client = HttpClient(Origin.of(f"http://127.0.0.1:{address[1]}"), connect=0.2, silence=20)
        error = await refuse(get(client))
        for one in filling:
            one.close()
    assert error.fault is Fault.NOT_ACCEPTED


# Properties


def read_all(answer: Sequence[bytes], *, closes: bool = False) -> bytes:
    response = Response("GET")
    for piece in answer:
        response.feed(piece)
    if closes:
        response.end()
    assert response.complete
    return b"".join(response.parts)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 9999), max_size=12))
def test_any_split_of_a_chunked_answer_gives_the_same_body(parts: list[bytes], places: list[int]):
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + chunks + b"0\r\nx: y\r\n\r\n"
    assert read_all(split(answer, places)) == b"".join(parts)


@given(st.binary(max_size=200), st.lists(st.integers(0, 9999), max_size=12), st.booleans())
def test_any_split_of_any_other_answer_gives_the_same_body(body: bytes, places: list[int], closes: bool):
    length = b"" if closes else b"content-length: %d\r\n" % len(body)
    assert read_all(split(OK + length + b"\r\n" + body, places), closes=closes) == body


@given(st.sampled_from(sorted(BODIES)), st.data())
@settings(max_examples=200)
def test_any_cut_of_an_answer_is_an_error(name: str, data: st.DataObject):
    answer, body = BODIES[name]
    response = Response("GET")
    end = data.draw(st.integers(0, len(answer) - 1))
    with pytest.raises(HttpError):
        response.feed(answer[:end]) if end else None
        response.end()
        assert b"".join(response.parts) == body  # an empty line may be missing behind nothing
        raise HttpError(Fault.CUT_BODY, "")


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda head, rest: OK + head + b"\r\n\r\n" + rest, st.binary(max_size=60), st.binary(max_size=60)
    ),
    st.builds(lambda rest: CHUNKED + rest, st.binary(max_size=100)),
    st.builds(
        lambda answer, place, noise: answer[: place % len(answer)] + noise + answer[place % len(answer) :],
        st.sampled_from([answer for answer, _ in BODIES.values()]),
        st.integers(0, 9999),
        st.binary(max_size=4),
    ),
)


@given(GARBAGE, st.lists(st.integers(0, 9999), max_size=6))
@settings(max_examples=500)
def test_garbage_raises_nothing_but_http_errors(garbage: bytes, places: list[int]):
    response = Response("GET")
    try:
        for piece in split(garbage, places):
            response.feed(piece)
        response.end()
    except HttpError:
        return
    assert response.complete
