"""The model server: one pool of connections, answers as they come, every failure an UpstreamError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from traceback import clear_frames
from types import TracebackType
from typing import NamedTuple

import anyio

from toolway.errors import ConfigError, UpstreamError, UpstreamStatus, UpstreamTimeout
from toolway.net.client import MAX_IDLE, Exchange, HttpClient, Origin, client_certificate, whole_request
from toolway.net.connection import Connection, Response
from toolway.net.decompress import (
    BrokenBody,
    Decompress,
    OversizedBody,
    UnknownEncoding,
    decompressor,
    read_body,
)
from toolway.net.errors import Fault, HttpError
from toolway.net.proxy import Proxy, proxy_for
from toolway.settings.settings import UpstreamSettings
from toolway.types import Header

__all__ = ["HOP_BY_HOP", "MAX_IDLE", "Header", "Upstream", "UpstreamResponse"]

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

CHAT_COMPLETIONS = "/chat/completions"
"""The endpoint of the model server, below its base URL, that every conversation asks."""

MAX_ERROR_BYTES = 2**20

DRAIN_SECONDS = 0.2
"""How long the end of a stream's body is waited for behind its last event."""

TRACE_HEADERS: ContextVar[Sequence[Header]] = ContextVar("trace_headers", default=())
"""The trace that the present task belongs to: headers for the model server, in place of the client's."""


class AnswerHead:
    """What the head of an answer says, but for the length of a whole body. `headers` are lower-case and end-to-end.

    It is the same object for the answers of one connection that differ in that length alone.
    """

    __slots__ = ("encoding", "headers", "is_success", "relayed", "status")

    def __init__(self, status: int, headers: Sequence[Header]) -> None:
        self.status = status
        self.headers = _end_to_end(headers)
        self.is_success = 200 <= status < 300
        """Is it a status that says that the request was served?"""
        self.encoding = _first(self.headers, b"content-encoding").decode("latin-1")
        """How the body is compressed, or nothing."""
        self.relayed: bytes | None = None
        """What clients are told of it, once somebody has written that."""

    @classmethod
    def of(cls, response: Response) -> AnswerHead:
        """The head of an answer, which may be known."""
        if (known := response.known) is None:
            return cls(response.status, response.headers)
        if known.derived is None:
            known.derived = cls(known.status, known.without_length)
        return known.derived  # type: ignore[no-any-return]


class UpstreamResponse:
    """An answer of the model server whose head has come."""

    def __init__(self, connection: Connection, max_bytes: int, *, has_path: bool) -> None:
        response = connection.response
        self.head = AnswerHead.of(response)
        self._known, self._length = response.known, response.length
        self._connection = connection
        self._max_bytes = max_bytes
        self._has_path = has_path
        """Has the base URL a path?"""

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self.head.status

    @property
    def headers(self) -> Sequence[Header]:
        """All that are end-to-end; names are lower-case."""
        if self._known is None:
            return self.head.headers
        return _end_to_end(self._known.with_length(self._length))

    @property
    def is_success(self) -> bool:
        """Is its status one that says that the request was served?"""
        return self.head.is_success

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or nothing."""
        return _first(self.headers, name)

    async def receive(self) -> bytes:
        """What the next network read brings, still compressed if the server did that; nothing at the end.

        Raises UpstreamError when the connection breaks, UpstreamTimeout when it is silent too long.
        """
        try:
            return await self._connection.receive()
        except HttpError as error:
            raise _upstream_error(error) from error

    def take(self) -> bytes | None:
        """The body of an answer that is whole; None where it is compressed, or larger than an answer may be."""
        if self.head.encoding:
            return None
        body = self._connection.take()
        if len(body) <= self._max_bytes:
            return body
        self.put_back(body)
        return None

    def put_back(self, body: bytes) -> None:
        """Have a body that was taken received once more."""
        self._connection.put_back(body)

    async def read(self, limit: int | None = None) -> bytes:
        """The whole body, decompressed. Raises UpstreamError when it is larger than `limit`, or than an answer may be.

        Nobody asked for compression, but some reverse proxies compress all the same.
        """
        most = self._max_bytes if limit is None else min(limit, self._max_bytes)
        try:
            return await read_body(self.receive, self.head.encoding, most)
        except OversizedBody as error:
            setting = " (the setting TOOLWAY_MAX_ANSWER_BYTES)" if most == self._max_bytes else ""
            raise UpstreamError(
                f"The model server's answer is larger than {error} bytes{setting}."
            ) from error
        except (BrokenBody, UnknownEncoding) as error:
            raise _unreadable(error) from error

    async def refusal(self) -> UpstreamError:
        """A status that is no success as the error that it means."""
        status, body = self.status, await self.read(MAX_ERROR_BYTES)
        hint = ""
        if 300 <= status < 400:
            hint = "It is a redirect, which is not followed; let OPENAI_BASE_URL name the place that it leads to."
        elif status == 404 and not self._has_path:
            hint = "OPENAI_BASE_URL has no /v1 at its end, which most model servers want."
        return UpstreamStatus(status if status != 304 else 502, self.headers, body, hint)

    @property
    def is_compressed(self) -> bool:
        """Does its head say so?"""
        return bool(self.head.encoding)

    def decompressor(self) -> Decompress | None:
        """A function that decompresses this body piece by piece, where it is compressed.

        Raises UpstreamError, as the function does.
        """
        if not self.head.encoding:
            return None
        try:
            return partial(_decompressed, decompressor(self.head.encoding))
        except UnknownEncoding as error:
            raise _unreadable(error) from error

    async def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Read what may still come after the last event, so that the connection can be used again.

        If it breaks instead, the answer is whole all the same.
        """
        if self._connection.is_read:
            return
        with suppress(UpstreamError), anyio.move_on_after(seconds):
            while await self.receive():
                pass


class Upstream:
    """Connections to the model server. Made by `Upstream.connect`, which also closes them."""

    def __init__(self, client: HttpClient, prefix: bytes, max_answer_bytes: int, query: bytes = b"") -> None:
        self._client = client
        self.max_answer_bytes = max_answer_bytes
        self._prefix = prefix
        self._root = prefix.removesuffix(b"/v1")
        self.has_path = bool(prefix)
        self._query = query
        """What goes along with every request."""
        self._begun: StartedRequest | None = None

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: UpstreamSettings) -> AsyncIterator[Upstream]:
        """Open the pool; no connection is made before the first request."""
        origin = Origin.of(settings.base_url)
        client = HttpClient(
            origin,
            connect=settings.connect_timeout,
            silence=settings.silence_timeout,
            proxy=proxy_of(settings),
            certificate=client_certificate(settings.client_cert, settings.client_key),
        )
        try:
            yield cls(client, origin.prefix, settings.max_answer_bytes, settings.query)
        finally:
            client.close()

    def with_query(self, query: bytes) -> Upstream:
        """The same connections for requests that carry this query too: an `api-version` that a client sent."""
        if not query:
            return self
        return Upstream(self._client, self._prefix, self.max_answer_bytes, query_with(self._query, query))

    def resuming(self, begun: StartedRequest) -> Upstream:
        """The same connections, where whoever first sends what was `begun` gets the answer to that.

        If something else is sent first, nobody will: then it ends.
        """
        behind = Upstream(self._client, self._prefix, self.max_answer_bytes, self._query)
        behind._begun = begun
        return behind

    def request(
        self,
        method: str,
        path: str,
        *,
        query: bytes = b"",
        headers: Sequence[Header] = (),
        body: bytes | AsyncIterator[bytes] | None = None,
        repeatable: bool = False,
        root: bool = False,
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """Send a request and yield the answer when its head is there, whatever its status.

        `path` is raw and below the base URL, as CHAT_COMPLETIONS; with `root` below that URL without its /v1.
        Leaving the block before the body was read closes the connection, so the server stops. A `repeatable`
        request is sent again when it met the server closing a connection that had been used before: llama.cpp
        closes some right after an answer, just when the next round is sent. Raises UpstreamError,
        UpstreamTimeout.
        """
        if trace := TRACE_HEADERS.get():
            names = {name for name, _ in trace}
            headers = [*(header for header in headers if header[0] not in names), *trace]
        if (begun := self._begun) is not None:
            if begun.matches(path, query, headers, body):
                return begun
            begun.close()
        target = self._target(path, query, root=root)
        try:
            exchange = self._client.request(method, target, headers=headers, body=body, repeatable=repeatable)
        except HttpError as error:
            raise _upstream_error(error) from error
        return _UpstreamExchange(exchange, self)

    def post_head(self, path: str, headers: Sequence[Header]) -> PostHead:
        """The head of a POST that is sent many times. Raises UpstreamError for one that cannot be sent."""
        try:
            lines = self._client.head("POST", self._target(path), headers)
        except HttpError as error:
            raise _upstream_error(error) from error
        return PostHead(path=path, headers=headers, lines=lines)

    def start(self, head: PostHead, body: bytes) -> StartedRequest | None:
        """Send a POST at once; None when no connection is idle."""
        if (connection := self._client.take_idle()) is None:
            return None
        self._client.begin(connection, "POST", whole_request("POST", head.lines, body))
        return StartedRequest(self, connection, head, body)

    def resume(
        self, connection: Connection, head: PostHead, body: bytes
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """The exchange with the server to which a POST was sent over this connection; it may be repeated."""
        request = whole_request("POST", head.lines, body)
        exchange = Exchange(self._client, "POST", request, repeatable=True, sent=connection)
        return _UpstreamExchange(exchange, self)

    def answer(self, connection: Connection) -> UpstreamResponse:
        """The answer whose head has come over this connection."""
        return UpstreamResponse(connection, self.max_answer_bytes, has_path=self.has_path)

    def release(self, connection: Connection) -> None:
        """End an exchange that was started."""
        self._client.release(connection)

    def _target(self, path: str, query: bytes = b"", *, root: bool = False) -> bytes:
        target = (self._root if root else self._prefix) + path.encode()
        query = query_with(self._query, query)
        return target + b"?" + query if query else target


class _UpstreamExchange(AbstractAsyncContextManager[UpstreamResponse]):
    """An exchange that is entered with its answer."""

    def __init__(self, exchange: Exchange, upstream: Upstream) -> None:
        self._exchange = exchange
        self._upstream = upstream

    async def __aenter__(self) -> UpstreamResponse:
        try:
            return self._upstream.answer(await self._exchange.__aenter__())
        except HttpError as error:
            raise _upstream_error(error) from error

    async def __aexit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        if trace is not None:
            # Whoever tells the error holds it in a reference cycle with its frames, and a large answer must not wait in
            # them until the garbage collector comes.
            clear_frames(trace)
        await self._exchange.__aexit__()


class PostHead(NamedTuple):
    """The head of a POST, and what it was made of."""

    path: str
    headers: Sequence[Header]
    lines: bytes
    """All but what tells of the body."""


class StartedRequest(AbstractAsyncContextManager[UpstreamResponse]):
    """A POST that was sent before it is known who reads the answer: entered, it gives that, or raises its error."""

    def __init__(self, upstream: Upstream, connection: Connection, head: PostHead, body: bytes) -> None:
        self.connection = connection
        self._upstream = upstream
        self._head = head
        self._body = body
        self._is_open = True
        """Nobody entered or closed it."""
        self._exchange: AbstractAsyncContextManager[UpstreamResponse]

    def answer(self) -> UpstreamResponse:
        """The answer, once its head is there."""
        return self._upstream.answer(self.connection)

    def matches(
        self,
        path: str,
        query: bytes,
        headers: Sequence[Header],
        body: bytes | AsyncIterator[bytes] | None,
    ) -> bool:
        """Whether this is the same request, for the first who asks."""
        own = (self._head.path, b"", tuple(self._head.headers), self._body)
        return self._is_open and own == (path, query, tuple(headers), body)

    async def __aenter__(self) -> UpstreamResponse:
        self._is_open = False
        self._exchange = self._upstream.resume(self.connection, self._head, self._body)
        return await self._exchange.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exchange.__aexit__(kind, error, trace)

    def close(self) -> None:
        """End the exchange, if nobody entered it."""
        if self._is_open:
            self._is_open = False
            self._upstream.release(self.connection)


def query_with(base: bytes, more: bytes) -> bytes:
    """Both queries, byte for byte; a name that stands in both has the second one's values."""
    if not (base and more):
        return base or more
    names = {pair.partition(b"=")[0] for pair in more.split(b"&")}
    kept = [pair for pair in base.split(b"&") if pair.partition(b"=")[0] not in names]
    return b"&".join([*kept, more])


def _upstream_error(error: HttpError) -> UpstreamError:
    """The one place that tells a client what has happened between us and the model server."""
    match error.fault:
        case Fault.REFUSED:
            return UpstreamError(
                "The model server cannot be reached; check that it runs and that OPENAI_BASE_URL points at it.",
                code="upstream_unreachable",
            )
        case Fault.UNKNOWN_HOST:
            return UpstreamError(
                "The model server cannot be found: the host name in OPENAI_BASE_URL is unknown.",
                code="upstream_unreachable",
            )
        case Fault.UNTRUSTED | Fault.PROXY | Fault.NO_FILES:
            return UpstreamError(f"The model server {error}.", code="upstream_unreachable")
        case Fault.NOT_ACCEPTED:
            return UpstreamTimeout("The model server did not accept the connection in time.")
        case Fault.SILENT:
            return UpstreamTimeout("The model server was silent for too long; the request was given up.")
        case Fault.UNSENDABLE:
            message = (
                "The request has a line break, a NUL or a space where HTTP allows none, and was not sent."
            )
        case Fault.UNANSWERED:
            message = "The connection to the model server broke before it had answered."
        case _:
            message = f"The connection to the model server broke: {error}."
    return UpstreamError(message, code="upstream_broken")


def proxy_of(settings: UpstreamSettings) -> Proxy | None:
    """The proxy on the way to the model server. Raises ConfigError."""
    try:
        return proxy_for(settings.base_url)
    except ValueError as error:
        raise ConfigError(f"OPENAI_BASE_URL: {error}.") from None


def credential(api_key: str | None) -> list[Header]:
    """The header by which Toolway itself is known to the model server; none without a key."""
    return [(b"authorization", f"Bearer {api_key}".encode())] if api_key else []


def _first(headers: Sequence[Header], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _end_to_end(headers: Sequence[Header]) -> list[Header]:
    names = dict(headers)
    if HOP_BY_HOP.isdisjoint(names):
        return [*headers]
    if b"connection" not in names:
        return [header for header in headers if header[0] not in HOP_BY_HOP]
    kept, named = [], b""
    for header in headers:
        if header[0] not in HOP_BY_HOP:
            kept.append(header)
        elif header[0] == b"connection":
            named += b"," + header[1].lower()
    if not named:
        return kept
    also = {token.strip() for token in named.split(b",")}
    return [header for header in kept if header[0] not in also]


def _decompressed(decompress: Decompress, piece: bytes) -> Iterator[bytes]:
    try:
        yield from decompress(piece)
    except BrokenBody as error:
        raise _unreadable(error) from error


def _unreadable(error: BrokenBody | UnknownEncoding) -> UpstreamError:
    if isinstance(error, BrokenBody):
        return UpstreamError("The model server's compressed answer is broken.")
    return UpstreamError(f"The model server's answer has an unknown encoding, {error}.")
