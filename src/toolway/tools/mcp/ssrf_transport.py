"""HTTP to a server that nobody vouches for: only to judged addresses, no redirects away, every body bounded."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpcore2
import httpx2

from toolway.net.ssrf import SsrfGuard

# Their lines hold URLs and headers of answers, and those hold keys.
logging.getLogger("httpx2").setLevel(logging.WARNING)
logging.getLogger("httpcore2").setLevel(logging.WARNING)

MAX_CONNECTIONS = 100
"""At once to one server; each call under way takes one."""

MAX_ADDRESSES = 4
"""Addresses of one host that are tried; they share the time for connecting."""

_TROUBLES = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Speaks HTTP/1.1 to one place. Proxies of the environment play no part.

    An answer over `limit` bytes breaks off, but for event streams, whose reader bounds each event. Compressed answers
    are refused: a few kilobytes of them can stand for gigabytes.
    """

    def __init__(self, egress: SsrfGuard, *, tls: ssl.SSLContext, limit: int) -> None:
        self._limit = limit
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Network(egress),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises httpx2.TransportError."""
        request.headers["accept-encoding"] = "identity"
        url = request.url
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=cast(AsyncIterable[bytes], request.stream),
            extensions=request.extensions,
        )
        with _translated():
            answer = await self._pool.handle_async_request(sent)
        headers = httpx2.Headers(answer.headers)
        body = _Body(answer.stream, None if _is_events(headers) else self._limit)
        if trouble := _trouble(request.url, answer.status, headers):
            await body.aclose()
            raise httpx2.RemoteProtocolError(trouble)
        return httpx2.Response(answer.status, headers=headers, stream=body, extensions=answer.extensions)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


class _Network(httpcore2.AsyncNetworkBackend):
    """Opens sockets to the addresses that the egress gives out, and to nothing else."""

    def __init__(self, egress: SsrfGuard) -> None:
        self._egress = egress
        self._sockets = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's own
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to one of the addresses. Raises httpcore2.ConnectError, without naming any of them."""
        try:
            addresses = (await self._egress.addresses(host, port))[:MAX_ADDRESSES]
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from None
        return await self._first_of(addresses, port, socket_options, within=timeout)

    async def _first_of(
        self,
        addresses: Sequence[str],
        port: int,
        options: Iterable[httpcore2.SOCKET_OPTION] | None,
        *,
        within: float | None,
    ) -> httpcore2.AsyncNetworkStream:
        each = None if within is None else within / len(addresses)
        for address in addresses:
            try:
                return await self._sockets.connect_tcp(address, port, each, socket_options=options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        raise httpcore2.ConnectError("nothing answers there")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._sockets.sleep(seconds)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, limit: int | None) -> None:
        self._inner = inner
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        with _translated():
            async for data in self._inner:
                size += len(data)
                if self._limit is not None and size > self._limit:
                    raise httpx2.RemoteProtocolError(
                        f"the answer is over the limit of {self._limit / 2**20:.0f} MiB"
                    )
                yield data

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _TROUBLES as error:
        raise getattr(httpx2, type(error).__name__)(str(error)) from error


def _is_events(headers: httpx2.Headers) -> bool:
    return headers.get("content-type", "").lower().startswith("text/event-stream")


def _trouble(url: httpx2.URL, status: int, headers: httpx2.Headers) -> str | None:
    """Why an answer is not taken. A redirect within the origin is: the SDK follows it, over the same egress."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        return "the answer is compressed although that was not asked for"
    if status // 100 == 3 and (location := headers.get("location")) and not _is_within(url, location):
        return "it redirects to another place, which is not followed"
    return None


def _is_within(url: httpx2.URL, location: str) -> bool:
    try:
        target = url.join(location)
    except httpx2.InvalidURL:
        return False
    return (target.scheme, target.raw_host, target.port) == (url.scheme, url.raw_host, url.port)
