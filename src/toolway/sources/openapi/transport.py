"""One exchange with a server over aiohttp: same origin only, bounded in size, its failures in plain words."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from toolway.errors import SourceError
from toolway.sources.openapi.request import Request

CONNECT_SECONDS = 10.0
MAX_REDIRECTS = 5

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A complete answer; `body` is decompressed, `url` where it finally came from."""

    status: int
    reason: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    url: str

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")


async def exchange(session: aiohttp.ClientSession, request: Request, *, max_bytes: int) -> Answer:
    """Send a request and read the whole answer, at most `max_bytes` of it when decompressed.

    A redirect is followed within the same origin, and only for GET and HEAD. Raises SourceError (stage "connect" or
    "fetch") with a message that follows the server's name and holds no URL. The caller holds the deadline.
    """
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = await _once(session, request, max_bytes)
            target = answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308) or target is None:
                return answer
            request = replace(request, url=_next_url(request, target, answer.status))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _in_plain_words(error) from error
    raise SourceError(f"redirects more than {MAX_REDIRECTS} times", stage="fetch")


async def _once(session: aiohttp.ClientSession, request: Request, max_bytes: int) -> Answer:
    async with session.request(
        request.method,
        request.url,
        headers=request.headers,
        data=request.body,
        skip_auto_headers=("Content-Type",),
        allow_redirects=False,
        auto_decompress=False,
        timeout=_TIMEOUT,
    ) as response:
        return Answer(
            status=response.status,
            reason=response.reason or "",
            headers=response.headers,
            body=await _read(response, max_bytes),
            url=str(request.url),
        )


def _next_url(request: Request, target: str, status: int) -> URL:
    if request.method not in ("GET", "HEAD"):
        raise SourceError(f"answered {status}, a redirect, which is followed for GET only", stage="fetch")
    try:
        url = URL(urljoin(str(request.url), target)).with_fragment(None)
        same = url.origin() == request.url.origin()
    except ValueError as error:
        raise SourceError(f"answered {status} with a redirect to nowhere", stage="fetch") from error
    if not same:
        raise SourceError(
            f"answered {status}, a redirect to another host, which is not followed", stage="fetch"
        )
    return url


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    inflate = _inflater(response.headers.get("Content-Encoding", ""))
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += inflate.feed(chunk, max_bytes + 1 - len(body)) if inflate else chunk
        if len(body) > max_bytes:
            raise SourceError(f"answered more than {max_bytes:,} bytes", stage="fetch")
    return bytes(body)


def _inflater(encoding: str) -> _Inflater | None:
    names = [name.strip().lower() for name in encoding.split(",")]
    wanted = [name for name in names if name not in ("", "identity")]
    if not wanted:
        return None
    if len(wanted) > 1 or wanted[0] not in ("gzip", "x-gzip", "deflate"):
        raise SourceError(f"answered in an encoding that was not asked for ({encoding[:40]})", stage="fetch")
    return _Inflater()


class _Inflater:
    """gzip, zlib and (for servers that mean it by `deflate`) raw deflate, never more than asked for at once."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._begun = False

    def feed(self, chunk: bytes, limit: int) -> bytes:
        try:
            return self._feed(chunk, limit)
        except zlib.error as error:
            raise SourceError("sent compressed data that is broken", stage="fetch") from error

    def _feed(self, chunk: bytes, limit: int) -> bytes:
        try:
            inflated = self._stream.decompress(chunk, limit)
        except zlib.error:
            if self._begun:
                raise
            self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
            inflated = self._stream.decompress(chunk, limit)
        self._begun = True
        return inflated


_WORDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    (aiohttp.ClientConnectorDNSError, "connect", "cannot be found: its host name is unknown"),
    ((aiohttp.ClientSSLError, ssl.SSLError), "connect", "cannot be trusted: the TLS connection failed"),
    (aiohttp.ClientConnectorError, "connect", "cannot be reached: it refuses connections"),
    (TimeoutError, "connect", f"took no connection within {CONNECT_SECONDS:.0f} s"),
    ((aiohttp.ServerDisconnectedError, OSError), "connect", "closed the connection before it had answered"),
    (ValueError, "connect", "cannot be asked: its URL or a header is not valid"),
    (aiohttp.ClientPayloadError, "fetch", "broke off in the middle of its answer"),
    (aiohttp.ClientError, "fetch", "sent something that is not HTTP"),
)
"""The first that fits wins; the one place that knows aiohttp's exceptions."""


def _in_plain_words(error: Exception) -> SourceError:
    """What a person or a model can act on. It follows the server's name and holds no URL."""
    stage, message = next((stage, words) for kind, stage, words in _WORDS if isinstance(error, kind))
    return SourceError(message, stage=stage)
