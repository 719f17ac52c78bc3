"""A server that says exactly the bytes it is told to, and what bytes can look like on their way."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Yield the port of a server that runs `serve(reader, writer)` for each connection, then closes it.

    What still runs at the end of the block is cancelled; every socket is closed before the block is left.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await serve(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(run(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0)
        _, unfinished = await asyncio.wait(tasks, timeout=0.5) if tasks else (set(), set())
        for task in unfinished:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, Exception)]
    assert not failures, failures


async def request_head(reader: asyncio.StreamReader) -> bytes:
    """The next request's line and headers."""
    return await reader.readuntil(b"\r\n\r\n")


def split(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data cut at these places, which may be any numbers."""
    cuts = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(cuts) if start < end]


def raw_deflate(data: bytes) -> bytes:
    """What some servers send as `deflate`: compressed, in no format around it."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()
