"""The edge to the model server: when a request may be sent again, and what its failures are called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest

from tests.support.raw import Serve, raw_server, request_head
from tests.support.servers import free_port
from toolway.errors import UpstreamError, UpstreamTimeout
from toolway.net import connection
from toolway.settings.load import load_settings
from toolway.upstream.client import Upstream

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def hangs_up_after(requests_on_one_connection: int) -> AsyncIterator[tuple[Upstream, list[int]]]:
    """A server that answers so many requests on a connection and closes it at the next one, unanswered.

    Yields an Upstream for it, and for each connection the number of requests that it brought.
    """
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = len(connections)
        connections.append(0)
        while await reader.readuntil(b"\r\n\r\n") and await reader.readexactly(2):
            connections[place] += 1
            if connections[place] > requests_on_one_connection:
                break
            writer.write(ANSWER)

    async with upstream_of(serve) as upstream:
        yield upstream, connections


@asynccontextmanager
async def upstream_of(serve: Serve, **settings: Any) -> AsyncIterator[Upstream]:
    """An Upstream for a server that runs `serve` for each connection."""
    async with (
        raw_server(serve) as port,
        upstream_at(f"http://127.0.0.1:{port}/v1", **settings) as upstream,
    ):
        yield upstream


def upstream_at(url: str, **settings: Any) -> AbstractAsyncContextManager[Upstream]:
    return Upstream.connect(load_settings({}, None, openai_base_url=url, **settings).upstream)


async def post(upstream: Upstream, *, repeatable: bool) -> bytes:
    async with upstream.request("POST", "/x", body=b"{}", repeatable=repeatable) as answer:
        return await answer.read(100)


async def test_a_started_request_ends_when_something_else_is_sent_in_its_place():
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n") and await reader.readexactly(2) == b"{}":
                writer.write(ANSWER)
            await reader.read()
        left.set()

    async with upstream_of(serve) as upstream, asyncio.timeout(20):
        await post(upstream, repeatable=True)
        started = upstream.start(upstream.post_head("/x", []), b"[]")
        assert started
        async with upstream.resuming(started).request("POST", "/x", body=b"{}") as answer:
            await left.wait()
            assert await answer.read(100) == b"{}"


async def test_a_request_that_meets_the_closing_of_a_used_connection_is_sent_again():
    async with hangs_up_after(1) as (upstream, connections):
        assert await post(upstream, repeatable=True) == b"{}"
        assert await post(upstream, repeatable=True) == b"{}"
        assert connections == [2, 1]


@pytest.mark.parametrize("is_started", [False, True])
async def test_a_request_that_the_server_had_for_a_while_is_not_sent_again(
    is_started: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "STALE_SECONDS", -1.0)  # as if it had taken longer
    async with hangs_up_after(1) as (upstream, connections):
        await post(upstream, repeatable=True)
        with pytest.raises(UpstreamError):
            if is_started:
                started = upstream.start(upstream.post_head("/x", []), b"{}")
                assert started is not None
                await started.__aenter__()
            else:
                await post(upstream, repeatable=True)
        assert connections == [2]


async def test_a_request_that_may_not_be_repeated_fails_there():
    async with hangs_up_after(1) as (upstream, connections):
        await post(upstream, repeatable=False)
        with pytest.raises(UpstreamError):
            await post(upstream, repeatable=False)
        assert connections == [2]


async def test_a_new_connection_that_is_closed_unanswered_is_a_failure_and_not_tried_again():
    async with hangs_up_after(0) as (upstream, connections):
        with pytest.raises(UpstreamError):
            await post(upstream, repeatable=True)
        assert connections == [1]


async def test_each_answer_of_a_connection_has_its_own_headers():
    given = [
        ("POST", b"one", 2),
        ("POST", b"one", 33),
        ("GET", b"one", 4),
        ("HEAD", b"one", 5),
        ("GET", b"one", 6),
    ]
    given += [
        ("POST", b"two", 2),
        ("HEAD", b"two", 3),
        ("POST", b"two", 2),
        ("POST", b"two", 44),
        ("POST", b"one", 2),
    ]
    head = (
        b"HTTP/1.1 200 OK\r\nx-hop: 1\r\ncontent-length: %d\r\nconnection: x-hop\r\nx-request-id: %b\r\n\r\n"
    )
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for method, request_id, length in given:
            await request_head(reader)
            writer.write(head % (length, request_id) + bytes(length if method != "HEAD" else 0))

    heads = []
    async with upstream_of(serve) as upstream, asyncio.timeout(20):
        for method, request_id, length in given:
            async with upstream.request(method, "/x") as answer:
                told = (b"content-length", b"%d" % length)
                assert answer.headers == [told, (b"x-request-id", request_id)]
                assert answer.header(b"content-length") == told[1]
                assert answer.head.headers[-1] == (b"x-request-id", request_id)
                assert len(await answer.read()) == (length if method != "HEAD" else 0)
                heads.append(answer.head)
    assert connections == 1
    assert heads[1] is heads[2] is heads[4]  # they are not made anew


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", " before it had answered."),
        (b"HTTP/1.1 200", ": the server closed it inside its answer."),
        (ANSWER[:-1], ": the server closed it inside its answer."),
        (b"hello\r\n", ": what it sent is not an HTTP/1.1 answer."),
    ],
)
async def test_a_connection_that_breaks_is_the_model_servers_and_says_how(sent: bytes, reason: str):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(sent)

    async with upstream_of(serve) as upstream:
        with pytest.raises(UpstreamError) as raised:
            await post(upstream, repeatable=False)
    assert raised.value.message == f"The connection to the model server broke{reason}"
    assert raised.value.code == "upstream_broken"


async def test_a_server_that_is_silent_for_too_long_is_a_timeout():
    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await request_head(reader)
        await reader.read()

    async with upstream_of(serve, upstream_silence_timeout=0.2) as upstream:
        with pytest.raises(UpstreamTimeout, match="The model server was silent for too long"):
            await post(upstream, repeatable=False)


async def test_a_server_that_is_not_there_cannot_be_reached():
    async with upstream_at(f"http://127.0.0.1:{free_port()}/v1") as upstream:
        with pytest.raises(UpstreamError, match="check that it runs and that OPENAI_BASE_URL") as raised:
            await post(upstream, repeatable=False)
    assert raised.value.code == "upstream_unreachable"


async def test_a_server_whose_name_is_unknown_cannot_be_found():
    async with upstream_at("http://no-such-host.invalid/v1") as upstream:
        with pytest.raises(UpstreamError, match="host name in OPENAI_BASE_URL is unknown") as raised:
            await post(upstream, repeatable=False)
    assert raised.value.code == "upstream_unreachable"


async def test_a_request_that_would_be_two_is_not_sent():
    async with upstream_at("http://no-such-host.invalid/v1") as upstream:
        with pytest.raises(UpstreamError, match="has a line break, a NUL or a space") as raised:
            upstream.request("GET", "/x", headers=[(b"a", b"b\r\nc: d")])
    assert raised.value.code == "upstream_broken"
