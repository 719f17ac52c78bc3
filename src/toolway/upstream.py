"""The model server: one pool of connections, answers as they come, every failure an UpstreamError."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any
from weakref import WeakSet

import aiohttp
import anyio
import yarl
from aiohttp.connector import Connection

from toolway.config import Settings
from toolway.errors import UpstreamError, UpstreamTimeout

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that belong to one connection (RFC 9110, 7.6.1) and are never passed on."""

MAX_IDLE = 4.0
"""Seconds that a connection is kept unused; most servers close it after five, and a request should not cross that."""

_on_used_connection: ContextVar[bool] = ContextVar("_on_used_connection", default=False)


class Answer:
    """An upstream answer whose head has come. `headers` are lower-case and end-to-end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.status = response.status
        self.headers = _end_to_end((name.lower(), value) for name, value in response.raw_headers)
        self._response = response

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")

    async def receive(self) -> bytes:
        """What the next network read brings, still compressed if the server did that; nothing at the end.

        Raises UpstreamError when the connection breaks, UpstreamTimeout when it is silent too long.
        """
        try:
            return await self._response.content.readany()
        except _FAILURES as error:
            raise _translated(error) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, one `receive` after the other."""
        while chunk := await self.receive():
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The whole body, decompressed. Raises UpstreamError when it is larger than `limit` bytes."""
        inflate = self.inflater()
        parts, size = [], 0
        while chunk := await self.receive():
            for part in inflate(chunk):
                size += len(part)
                if size > limit:
                    raise UpstreamError(f"The model server's answer is larger than {limit:,} bytes.")
                parts.append(part)
        return b"".join(parts)

    def inflater(self) -> Callable[[bytes], Iterable[bytes]]:
        """A function that decompresses this body piece by piece, each of its parts at most 1 MiB.

        Nobody asked for compression, but some reverse proxies compress all the same.
        """
        encoding = self.header(b"content-encoding").lower()
        if encoding in (b"", b"identity"):
            return lambda chunk: (chunk,)
        if encoding in (b"gzip", b"x-gzip", b"deflate"):
            return partial(_inflate, zlib.decompressobj(wbits=47))
        raise UpstreamError(
            f"The model server's answer has an unknown encoding, {encoding.decode('latin-1')}."
        )

    async def drain(self, seconds: float = 0.2) -> None:
        """Read what may still come after the last event, so that the connection can be used again."""
        if self._response.content.at_eof():
            return
        with anyio.move_on_after(seconds):
            while not self._response.content.at_eof() and await self.receive():
                pass


class Upstream:
    """Connections to the model server. Made by `Upstream.connect`, which also closes them."""

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self._session = session
        self._base = settings.openai_base_url.rstrip("/")
        self._root = self._base.removesuffix("/v1")
        self._urls: dict[str, yarl.URL] = {}

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: Settings) -> AsyncIterator[Upstream]:
        """Open the pool; no connection is made before the first request."""
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=settings.upstream_connect_timeout,
            sock_read=settings.upstream_silence_timeout,
        )
        async with aiohttp.ClientSession(
            connector=_Connector(limit=0, ttl_dns_cache=300, keepalive_timeout=MAX_IDLE),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=65536,
            max_field_size=65536,
        ) as session:
            yield cls(session, settings)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: bytes = b"",
        headers: Sequence[Header] = (),
        body: bytes | AsyncIterator[bytes] | None = None,
        repeatable: bool = False,
        root: bool = False,
    ) -> AsyncIterator[Answer]:
        """Send a request and yield the answer when its head is there, whatever its status.

        `path` is raw and below the base URL, "/chat/completions"; with `root` below that URL without its /v1.
        Leaving the block before the body was read closes the connection, so the server stops. A `repeatable`
        request is sent again when it met the server closing a connection that had been used before. Raises
        UpstreamError, UpstreamTimeout.
        """
        url = yarl.URL(self._root + path, encoded=True) if root else self._url(path, query)
        decoded = [(name.decode("latin-1"), _text(value)) for name, value in headers]
        response = await self._send(method, url, decoded, body, repeatable)
        try:
            yield Answer(response)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _send(
        self, method: str, url: yarl.URL, headers: list[tuple[str, str]], body: Any, repeatable: bool
    ) -> aiohttp.ClientResponse:
        while True:
            try:
                return await self._session.request(
                    method, url, headers=headers, data=body, allow_redirects=False
                )
            except _FAILURES as error:
                lost = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError)
                if not (lost and repeatable and _on_used_connection.get()):
                    raise _translated(error) from error

    def _url(self, path: str, query: bytes) -> yarl.URL:
        if query:
            return yarl.URL(f"{self._base}{path}?{query.decode('latin-1')}", encoded=True)
        if path not in self._urls and len(self._urls) < 64:
            self._urls[path] = yarl.URL(self._base + path, encoded=True)
        return self._urls.get(path) or yarl.URL(self._base + path, encoded=True)


class _Connector(aiohttp.TCPConnector):
    """Remembers which connections were used before: only on those is a lost request the server's good right.

    llama.cpp closes some right after an answer, just when the next round is sent.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: WeakSet[Any] = WeakSet()

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Connection:  # noqa: ASYNC109 - aiohttp's
        connection = await super().connect(req, traces, timeout)
        _on_used_connection.set(connection.protocol in self._used)
        self._used.add(connection.protocol)
        return connection


def _text(value: bytes) -> str:
    """A header's value for aiohttp, which writes UTF-8: valid UTF-8 goes through it unchanged."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _end_to_end(headers: Iterator[Header]) -> list[Header]:
    kept = [(name, value) for name, value in headers if name not in HOP_BY_HOP or name == b"connection"]
    named = {
        token.strip().lower() for name, value in kept if name == b"connection" for token in value.split(b",")
    }
    return [(name, value) for name, value in kept if name != b"connection" and name not in named]


def _inflate(decompressor: Any, chunk: bytes) -> Iterator[bytes]:
    try:
        while chunk:
            yield decompressor.decompress(chunk, 2**20)
            chunk = decompressor.unconsumed_tail
    except zlib.error as error:
        raise UpstreamError("The model server's compressed answer is broken.") from error


_FAILURES = (aiohttp.ClientError, OSError, ValueError)


def _translated(error: Exception) -> UpstreamError:
    """aiohttp's exceptions as ours. The messages name no address: clients see them."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamTimeout("The model server did not accept the connection in time.")
        case aiohttp.ServerTimeoutError():
            return UpstreamTimeout("The model server was silent for too long; the request was given up.")
        case aiohttp.ClientConnectorError():
            return UpstreamError(
                "The model server cannot be reached; check that it runs and that OPENAI_BASE_URL points at it.",
                code="upstream_unreachable",
            )
        case aiohttp.InvalidURL():
            return UpstreamError("OPENAI_BASE_URL is not a usable URL.", code="upstream_unreachable")
        case _:
            return UpstreamError(
                f"The connection to the model server broke ({type(error).__name__}).", code="upstream_broken"
            )
