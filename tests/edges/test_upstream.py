"""The edge to the model server: when a request may be sent again, and what its failures are called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.raw import raw_server
from toolway.config import load_settings
from toolway.errors import UpstreamError
from toolway.upstream import Upstream

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

    async with raw_server(serve) as port:
        settings = load_settings({}, None, openai_base_url=f"http://127.0.0.1:{port}/v1")
        async with Upstream.connect(settings) as upstream:
            yield upstream, connections


async def post(upstream: Upstream, *, repeatable: bool) -> bytes:
    async with upstream.request("POST", "/x", body=b"{}", repeatable=repeatable) as answer:
        return await answer.read(100)


async def test_a_request_that_meets_the_closing_of_a_used_connection_is_sent_again():
    async with hangs_up_after(1) as (upstream, connections):
        assert await post(upstream, repeatable=True) == b"{}"
        assert await post(upstream, repeatable=True) == b"{}"
        assert connections == [2, 1]


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
