"""Exchanges with tool servers: whom they reach and by which name, what is kept open, and what failures are called."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from yarl import URL

from tests.support.raw import Serve, raw_server, request_head
from tests.support.servers import free_port
from tests.unit.net.test_client_tls import LOOPBACK, Authority
from toolway.errors import SourceError
from toolway.tools.openapi import transport
from toolway.tools.openapi.build_request import Request
from toolway.tools.openapi.transport import Connections, HttpResponse

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Heads:
    """Answers every request without a body, so many on each connection, and keeps the heads of all."""

    def __init__(self, *, each: int = 100) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()
        self._each = each

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(self._each):
                self.heads.append(await request_head(reader))
                writer.write(OK)
            await request_head(reader)
        finally:
            self.closed.set()


@asynccontextmanager
async def connections_to(
    serve: Serve, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Connections, str]]:
    """Connections, and the URL of a server that runs `serve` for each of them."""
    async with raw_server(serve, tls=tls) as port:
        with closing(Connections()) as connections:
            yield connections, f"http{'s' if tls else ''}://127.0.0.1:{port}/x"


async def ask(connections: Connections, url: str, method: str = "GET", **headers: str) -> HttpResponse:
    request = Request(method=method, url=URL(url), headers=headers)
    with anyio.fail_after(60):
        return await connections.exchange(request, max_bytes=1000)


async def trouble(url: str, **headers: str) -> tuple[str, str]:
    """The stage and the words of the failure."""
    with closing(Connections()) as connections, pytest.raises(SourceError) as raised:
        await ask(connections, url, **headers)
    return raised.value.stage, raised.value.message


async def test_a_connection_is_used_again_and_closed_at_the_end():
    serve = Heads()
    async with connections_to(serve) as (connections, url):
        for _ in range(3):
            assert (await ask(connections, url)).body == b"hi"
        assert serve.connections == 1
        connections.close()
        await asyncio.wait_for(serve.closed.wait(), 60)


async def test_an_exchange_that_outlives_its_source_closes_its_connection():
    arrived, go_on, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        arrived.set()
        await go_on.wait()
        writer.write(OK)
        assert await reader.read() == b""
        closed.set()

    async with connections_to(serve) as (connections, url), asyncio.TaskGroup() as group:
        asked = group.create_task(ask(connections, url))
        await asyncio.wait_for(arrived.wait(), 60)
        connections.close()
        go_on.set()
        await asyncio.wait_for(closed.wait(), 60)
        assert (await asked).body == b"hi"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_a_request_without_a_second_effect_is_sent_again_when_a_used_connection_closes(method: str):
    serve = Heads(each=1)
    async with connections_to(serve) as (connections, url):
        for _ in range(2):
            assert (await ask(connections, url, method)).status == 200
    assert (serve.connections, len(serve.heads)) == (2, 2)


async def test_a_request_with_an_effect_is_not_sent_twice():
    serve = Heads(each=1)
    async with connections_to(serve) as (connections, url):
        await ask(connections, url)
        with pytest.raises(SourceError, match="before it had answered"):
            await ask(connections, url, "POST")
    assert serve.connections == 1


async def test_a_server_is_asked_by_the_name_in_a_configured_host_header():
    serve = Heads()
    async with connections_to(serve) as (connections, url):
        await ask(connections, url, Host="shop.internal")
        await ask(connections, url)
    named, plain = (head.lower() for head in serve.heads)
    assert named.count(b"host: ") == plain.count(b"host: ") == 1
    assert b"host: shop.internal\r\n" in named
    assert b"host: 127.0.0.1:" in plain


async def test_user_and_password_of_a_url_are_sent_but_not_in_place_of_a_header():
    serve = Heads()
    async with connections_to(serve) as (connections, url):
        known = url.replace("//", "//me:s%20t@")
        await ask(connections, known)
        await ask(connections, known, Authorization="Bearer k")
    assert b"authorization: Basic " + base64.b64encode(b"me:s t") in serve.heads[0]
    assert b"authorization: Bearer k" in serve.heads[1]
    assert b"Basic" not in serve.heads[1]


async def test_the_first_of_several_headers_with_one_name_counts():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nETag: a\xe9\r\netag: b\r\ncontent-length: 0\r\n\r\n")

    async with connections_to(serve) as (connections, url):
        tag = (await ask(connections, url)).header(b"etag")
    again = Heads()
    async with connections_to(again) as (connections, url):
        await ask(connections, url, **{"If-None-Match": tag})
    assert b"if-none-match: a\xe9\r\n" in again.heads[0]


async def test_a_host_that_does_not_exist_is_not_found():
    assert await trouble("http://no-such-host.invalid/") == (
        "connect",
        "cannot be found: its host name is unknown",
    )


async def test_a_port_where_nobody_listens_is_said_to_refuse():
    assert await trouble(f"http://127.0.0.1:{free_port()}/") == (
        "connect",
        "cannot be reached: it refuses connections",
    )


@pytest.mark.parametrize("knows_it", [True, False])
async def test_a_server_with_a_certificate_of_somebody_else_is_not_trusted(
    knows_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    authority = Authority(tmp_path)
    if knows_it:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    names = x509.DNSName("elsewhere.example") if knows_it else LOOPBACK
    async with connections_to(Heads(), tls=authority.server(names)) as (_, url):
        stage, words = await trouble(url)
    reason = "its certificate is for another" if knows_it else "nobody known here has signed its certificate"
    assert (stage, words.startswith(f"cannot be trusted: {reason}")) == ("connect", True), words


async def test_a_server_with_a_right_certificate_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    async with connections_to(Heads(), tls=authority.server(LOOPBACK)) as (connections, url):
        assert (await ask(connections, url)).body == b"hi"


async def test_a_server_that_accepts_no_connection_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transport, "CONNECT_SECONDS", 0.2)
    # A queue of one that is full answers no more connections.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(address)
        found = await trouble(f"http://127.0.0.1:{address[1]}/")
        for one in filling:
            one.close()
    assert found == ("connect", "took no connection within 10 s")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "file:///etc/hosts", "/x"])
async def test_what_is_no_http_url_is_not_asked(url: str):
    assert await trouble(url) == ("connect", "cannot be asked: its URL or a header is not valid")


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\0b", "\ud800"])
async def test_a_header_that_would_be_two_is_not_sent(value: str):
    async with connections_to(Heads()) as (_, url):
        assert await trouble(url, key=value) == (
            "connect",
            "cannot be asked: its URL or a header is not valid",
        )


@pytest.mark.parametrize(
    ("sent", "stage", "words"),
    [
        (b"", "connect", "closed the connection before it had answered"),
        (b"HTTP/1.1 200 OK\r\nx: ", "connect", "closed the connection before it had answered"),
        (OK[:-1], "fetch", "broke off in the middle of its answer"),
        (b"hello\r\n", "fetch", "sent something that is not HTTP"),
    ],
)
async def test_an_answer_that_is_none_is_told_apart(sent: bytes, stage: str, words: str):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(sent)

    async with connections_to(serve) as (_, url):
        assert await trouble(url) == (stage, words)
