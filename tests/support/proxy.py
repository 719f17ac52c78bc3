"""A real proxy: it lets CONNECT through, plain requests if it is told to, and knows names that nobody else does."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tests.support.raw import raw_server, request_head


@dataclass
class ForwardProxy:
    """`hosts` are names that it leads to ports of this machine."""

    hosts: Mapping[str, int]
    user: str | None = None
    """NAME:PASSWORD that it asks for."""
    connect_only: bool = True
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    """The request lines that came."""

    @property
    def url(self) -> str:
        return f"http://{self.user + '@' if self.user else ''}127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await request_head(reader)
        line = head.partition(b"\r\n")[0]
        self.requests.append(line)
        method, target, _ = line.split(b" ")
        is_connect = method == b"CONNECT"
        if self.user and b"Basic " + base64.b64encode(self.user.encode()) not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        elif self.connect_only and not is_connect:
            writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        else:
            name = target.removeprefix(b"http://").partition(b"/")[0].partition(b":")[0].decode()
            server_reader, server = await asyncio.open_connection("127.0.0.1", self.hosts[name])
            try:
                if is_connect:
                    writer.write(b"HTTP/1.1 200 Connection established\r\nx: y\r\n\r\n")
                else:
                    server.write(head.replace(b" http://" + name.encode(), b" ", 1))
                await asyncio.gather(_pump(reader, server), _pump(server_reader, writer))
            finally:
                server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def forward_proxy(hosts: Mapping[str, int], **options: object) -> AsyncIterator[ForwardProxy]:
    """The proxy, for as long as the block lasts."""
    proxy = ForwardProxy(hosts, **options)  # type: ignore[arg-type]
    async with raw_server(proxy.serve) as proxy.port:
        yield proxy
