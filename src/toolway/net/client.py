"""A small HTTP/1.1 client for one server: connections that are kept, and requests that go over them."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import string
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

import aiohappyeyeballs

from toolway.net.connection import Connection
from toolway.net.errors import Fault, HttpError, connect_error
from toolway.net.proxy import Proxy
from toolway.types import Header

MAX_IDLE = 4.0
"""Seconds that a connection is kept unused; most servers close it after five, and a request should not cross that."""

_SECOND_ADDRESS_AFTER = 0.25
"""Seconds that an address of the server may take before the next is tried beside it (RFC 8305)."""

_OWN_HEADERS = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"expect"}
)
_ONCE = frozenset(
    b"anthropic-version api-key authorization content-location content-range content-type cookie date from"
    b" idempotency-key if-modified-since if-range if-unmodified-since last-event-id max-forwards mcp-method mcp-name"
    b" mcp-protocol-version mcp-session-id openai-organization openai-project origin proxy-authorization range referer"
    b" traceparent user-agent x-api-key x-client-request-id x-goog-api-key x-request-id".split()
)
"""Headers of a request whose value is no list (RFC 9110, 5.3): two of one name contradict each other."""
_MAX_PROXY_HEAD = 16 * 1024
_NEED_A_LENGTH = frozenset({"POST", "PUT", "PATCH"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a base URL leads: `http(s)://host[:port]/prefix`, the host a name, an IPv4 or an [IPv6] address."""

    host: str
    port: int
    tls: bool
    authority: bytes
    """What the Host header says; without the scheme's own port."""
    prefix: bytes
    """The path, without a slash at its end; what stands in front of every request's own."""

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises ValueError for a URL without a host, or with one that is no name."""
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        tls = parts.scheme == "https"
        usual = 443 if tls else 80
        port = parts.port or usual
        if not host:
            raise ValueError("the URL names no host")
        authority = (f"[{host}]" if ":" in host else host) + (f":{port}" if port != usual else "")
        prefix = quote(parts.path.rstrip("/"), safe=string.punctuation)
        return cls(host=host, port=port, tls=tls, authority=authority.encode(), prefix=prefix.encode())


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """Files in PEM by which this side of a TLS connection says who it is."""

    cert: str
    key: str | None = None
    """None: it stands in the first file too."""


def client_certificate(cert: str | None, key: str | None) -> ClientCertificate | None:
    """The certificate in these files, if any is named."""
    return ClientCertificate(cert=cert, key=key) if cert else None


class HttpClient:
    """Requests to one origin. There are as many connections as requests at a time.

    Times are seconds: `connect` for the connection with its TLS handshake, `silence` for each wait for the
    server (for ever, if the caller has a deadline of its own). Redirects are not followed, nothing is decompressed.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        connect: float,
        silence: float = math.inf,
        proxy: Proxy | None = None,
        certificate: ClientCertificate | None = None,
    ) -> None:
        self._origin = origin
        self._proxy = proxy
        self._certificate = certificate
        self._connect = connect
        self._silence = silence
        self._idle: deque[Connection] = deque()
        """The one that was used last is at the right, and is the next to be used."""
        self.under_way = 0
        """Exchanges that have begun and not ended."""
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None
        self._is_closed = False

    def request(
        self,
        method: str,
        target: bytes,
        *,
        headers: Sequence[Header] = (),
        body: bytes | AsyncIterator[bytes] | None = None,
        repeatable: bool = False,
    ) -> Exchange:
        """A request that is sent when the exchange is entered (`async with`).

        `target` is HTTP's request target: the whole path with its query. Names of `headers` are lower-case; those
        that belong to the connection are left out, but a content-length says how long an iterated body is; it is
        sent chunked without one. Such a body is sent while the block runs: the answer may come first. A
        `repeatable` request with its whole body is sent again when it met the closing of a used connection.
        Raises HttpError for a request that cannot be written.
        """
        if body is None or isinstance(body, bytes):
            request = whole_request(method, self.head(method, target, headers), body)
            return Exchange(self, method, request, repeatable=repeatable)
        length = _length_in(headers)
        line = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        head = self.head(method, target, headers) + line + b"\r\n\r\n"
        return Exchange(self, method, (head,), body=body, length=length)

    def head(self, method: str, target: bytes, headers: Sequence[Header]) -> bytes:
        """The request line and all headers but those that tell of the body.

        Raises HttpError when one of them would be two, or none.
        """
        if self._proxy is not None and not self._origin.tls:
            target = b"http://" + self._origin.authority + target
            if self._proxy.authorization:
                headers = [*headers, (b"proxy-authorization", self._proxy.authorization)]
        return _request_line(method, target) + _header_lines(self._origin.authority, tuple(headers))

    def close(self) -> None:
        """Drop the idle connections; the others end with their requests."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.pop().abort()

    def take_idle(self) -> Connection | None:
        """A connection that is there, to carry one exchange."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def acquire(self) -> Connection:
        """A connection to carry one exchange. Raises HttpError."""
        if connection := self.take_idle():
            return connection
        try:
            async with asyncio.timeout(self._connect):
                return await self._open()
        except TimeoutError as error:
            raise HttpError(Fault.NOT_ACCEPTED, "the server did not accept it in time") from error
        except (OSError, UnicodeError) as error:
            raise connect_error(error) or error from error

    async def _open(self) -> Connection:
        loop, origin = asyncio.get_running_loop(), self._origin
        if origin.tls and self._tls is None:
            self._tls = await asyncio.to_thread(
                tls_context, ssl.get_default_verify_paths(), self._certificate
            )
        if self._proxy is None:
            connected = await _connect(origin.host, origin.port)
        else:
            connected = await _connect_through(self._proxy, origin)
        _, connection = await loop.create_connection(
            lambda: Connection(self._silence),
            sock=connected,
            ssl=self._tls,
            server_hostname=origin.host if origin.tls else None,
        )
        return connection

    def begin(
        self, connection: Connection, method: str, request: Sequence[bytes], *, uploads: bool = False
    ) -> None:
        """Send a request over a connection that was acquired, until it is released."""
        self.under_way += 1
        connection.send(method, request, uploads=uploads, is_alone=self.under_way == 1)

    def release(self, connection: Connection) -> None:
        """End an exchange: keep the connection for another one if it can carry that, else close it."""
        self.under_way -= 1
        if not connection.end_exchange() or self._is_closed:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_at(connection.idle_since + MAX_IDLE, self._drop_idle)

    def _drop_idle(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and (self._idle[0].closed or self._idle[0].idle_since + MAX_IDLE <= loop.time()):
            self._idle.popleft().abort()
        self._sweep = (
            loop.call_at(self._idle[0].idle_since + MAX_IDLE, self._drop_idle) if self._idle else None
        )


class Exchange:
    """A request and its answer. Entered, it yields the connection when the answer's head is in its `response`.

    Leaving it before the body was read closes the connection. Entering raises HttpError,
    and what an iterated body raises.
    """

    # A class, since an asynccontextmanager costs ten microseconds.

    def __init__(
        self,
        client: HttpClient,
        method: str,
        request: Sequence[bytes],
        *,
        repeatable: bool = False,
        body: AsyncIterator[bytes] | None = None,
        length: int | None = None,
        sent: Connection | None = None,
    ) -> None:
        self._client = client
        self._method = method
        self._request = request
        self._repeatable = repeatable
        self._body = body
        self._length = length
        self._upload: asyncio.Task[None] | None = None
        self._sent = sent
        """The connection over which it was sent before it is entered."""
        self._connection: Connection

    async def __aenter__(self) -> Connection:
        while True:
            if self._sent is None:
                self._connection = connection = await self._client.acquire()
                self._send()
            else:
                self._connection = connection = self._sent
                self._sent = None
            try:
                await connection.head()
            except BaseException as error:
                await self._end()
                if not (self._repeatable and connection.is_stale and _is_unanswered(error)):
                    raise
            else:
                self._request = ()  # With many tools it is large, and a stream may last for minutes.
                return connection

    def _send(self) -> None:
        uploads = self._body is not None
        self._client.begin(self._connection, self._method, self._request, uploads=uploads)
        if self._body is not None:
            self._upload = asyncio.create_task(self._connection.upload(self._body, self._length))

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        self._client.release(self._connection)
        if self._upload is not None:
            self._upload.cancel()
            await asyncio.wait([self._upload])


def _is_unanswered(error: BaseException) -> bool:
    return isinstance(error, HttpError) and error.fault is Fault.UNANSWERED


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=_SECOND_ADDRESS_AFTER, interleave=1, loop=loop
    )


async def _connect_through(proxy: Proxy, origin: Origin) -> socket.socket:
    """A socket to the proxy, behind which is the origin where that speaks TLS. Raises HttpError."""
    try:
        connected = await _connect(proxy.host, proxy.port)
    except (OSError, UnicodeError) as error:
        raise HttpError(Fault.PROXY, f"cannot be reached: its proxy {proxy} does not answer") from error
    if origin.tls:
        try:
            await _open_tunnel(connected, proxy, origin)
        except BaseException:
            connected.close()
            raise
    return connected


async def _open_tunnel(connected: socket.socket, proxy: Proxy, origin: Origin) -> None:
    """Ask the proxy with CONNECT (RFC 9110, 9.3.6)."""
    loop = asyncio.get_running_loop()
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}".encode()
    lines = [b"CONNECT " + place + b" HTTP/1.1", b"host: " + place]
    if proxy.authorization:
        lines.append(b"proxy-authorization: " + proxy.authorization)
    await loop.sock_sendall(connected, b"\r\n".join([*lines, b"", b""]))
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MAX_PROXY_HEAD:
        part = await loop.sock_recv(connected, 1)  # What comes behind the head is not ours to read.
        if not part:
            break
        answer += part
    status = answer[:15].split(b" ")[1:2]
    if not (answer.startswith(b"HTTP/1.") and status and status[0].startswith(b"2")):
        status_line = answer.partition(b"\r\n")[0][:100].decode("latin-1") or "nothing"
        wants = "; put a user name and password into HTTPS_PROXY" if status == [b"407"] else ""
        raise HttpError(Fault.PROXY, f"cannot be reached: its proxy {proxy} answered {status_line!r}{wants}")


@lru_cache(maxsize=16)
def tls_context(_: ssl.DefaultVerifyPaths, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """Whom the system trusts, or SSL_CERT_FILE; shared, since it takes tens of milliseconds and most of a megabyte."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(certificate.cert, certificate.key)
    return context


@lru_cache(maxsize=128)
def _request_line(method: str, target: bytes) -> bytes:
    line = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)
    if line.count(b" ") != 2:
        raise _unsendable()
    _check_lines(line, 1)
    return line


@lru_cache(maxsize=128)
def _header_lines(authority: bytes, headers: Sequence[Header]) -> bytes:
    """The headers as they are sent, each with the end of its line. Kept, since one client sends the same again."""
    once = [name for name, _ in headers if name in _ONCE]
    if len(once) != len(set(once)):
        headers = _last_of_each(headers)
    lines = [name + b": " + value for name, value in headers if name not in _OWN_HEADERS]
    text = b"\r\n".join([b"host: " + authority, *lines, b""])
    _check_lines(text, len(lines) + 1)
    return text


def _check_lines(text: bytes, count: int) -> None:
    if text.count(b"\r") != count or text.count(b"\n") != count or b"\0" in text:
        raise _unsendable()


def _unsendable() -> HttpError:
    return HttpError(
        Fault.UNSENDABLE, "the request has a line break, a NUL or a space where HTTP allows none"
    )


def _last_of_each(headers: Sequence[Header]) -> list[Header]:
    """The headers without those that a later one of their name replaces."""
    last = {name: place for place, (name, _) in enumerate(headers)}
    return [
        header for place, header in enumerate(headers) if header[0] not in _ONCE or last[header[0]] == place
    ]


def whole_request(method: str, head: bytes, body: bytes | None) -> tuple[bytes, ...]:
    """A whole request in the pieces that are sent; `head` is what `HttpClient.head` made."""
    if body is None and method not in _NEED_A_LENGTH:
        return (head + b"\r\n",)
    head = b"%bcontent-length: %d\r\n\r\n" % (head, len(body or b""))
    return (head, body) if body else (head,)


def _length_in(headers: Sequence[Header]) -> int | None:
    return next((int(value) for name, value in headers if name == b"content-length"), None)
