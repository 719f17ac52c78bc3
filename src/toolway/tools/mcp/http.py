"""Streamable HTTP and legacy SSE servers as message streams; a fault of one request stays with it.

A server that nobody vouches for is reached at judged addresses alone, without redirects, every body bounded.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

import anyio
import httpcore2
import httpx2
import orjson
from anyio.abc import ObjectReceiveStream, ObjectSendStream, TaskStatus
from mcp.client.streamable_http import StreamableHTTPTransport
from mcp_types import ErrorData, JSONRPCError, JSONRPCRequest

from toolway.net.client import ClientCertificate, tls_context
from toolway.net.errors import connect_error_behind
from toolway.net.proxy import Proxy, proxy_for
from toolway.net.ssrf import UNKNOWN_NAME, SsrfGuard
from toolway.settings.mcp_server import RemoteServerConfig
from toolway.tools.mcp.errors import HTTP_TROUBLE, RpcError
from toolway.tools.mcp.messages import RequestId, RpcResponse, correlated, error, parse, parse_answer
from toolway.tools.mcp.options import ConnectOptions
from toolway.tools.mcp.posts import (
    CONNECT_TIMEOUT,
    MAX_ERROR_BODY,
    OwnClient,
    Posts,
    Sink,
    http_error,
    request_failed,
)
from toolway.tools.mcp.sdk import (
    ReadStream,
    ServerMessageMetadata,
    SessionMessage,
    WriteStream,
    create_context_streams,
)

DELETE_TIMEOUT = 2.0
"""Seconds for the DELETE that ends a session."""

_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)

Streams = tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage], Posts | None]
"""What a server says, what is said to it, and how a request goes there beside the streams, if it can."""


def _tls(certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    return tls_context(ssl.get_default_verify_paths(), certificate)


def http_client(
    headers: Mapping[str, str], options: ConnectOptions, *, isolate: bool = True
) -> httpx2.AsyncClient:
    """A client that waits as long as its caller does: a call's deadline is held by whoever makes the call.

    With `options.egress` it reaches that place alone, and not through the environment's proxy.
    """
    egress, limit = options.egress, options.max_result_bytes
    inner: httpx2.AsyncBaseTransport = OpenTransport(options.certificate)
    if egress is not None:
        inner = GuardedTransport(egress, tls=_tls(), limit=limit)
    transport = Isolating(inner, limit) if isolate else inner
    return httpx2.AsyncClient(
        transport=transport,
        headers=dict(headers),
        auth=options.auth(transport) if options.auth else None,
        timeout=httpx2.Timeout(CONNECT_TIMEOUT, read=None),
        trust_env=False,
    )


class OpenTransport(httpx2.AsyncBaseTransport):
    """Reaches any server, through the proxy that the environment names for it."""

    def __init__(self, certificate: ClientCertificate | None = None) -> None:
        self._certificate = certificate
        self._by_proxy: dict[Proxy | None, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        try:
            proxy = proxy_for(str(request.url))
        except ValueError as error:
            raise httpx2.UnsupportedProtocol(str(error)) from error
        transport = self._by_proxy.get(proxy) or self._by_proxy.setdefault(proxy, self._open(proxy))
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in self._by_proxy.values():
            await transport.aclose()

    def _open(self, proxy: Proxy | None) -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        through = None if proxy is None else httpx2.Proxy(str(proxy), auth=proxy.credentials)
        return httpx2.AsyncHTTPTransport(
            verify=_tls(self._certificate), limits=limits, proxy=through, trust_env=False
        )


class Isolating(httpx2.AsyncBaseTransport):
    """Turns what goes wrong with one POST into a JSON-RPC error of that POST.

    The SDK ends the whole client on a dropped connection (python-sdk issues 3522 and 3560), and forgets the
    status and headers of an error; here they travel in the error's `data`.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; a POST has an answer whatever happens."""
        if request.method == "DELETE":
            request.extensions["timeout"] = dict.fromkeys(
                ("connect", "read", "write", "pool"), DELETE_TIMEOUT
            )
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        is_message = "text/event-stream" in request.headers.get("accept", "")
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            return (
                _broken(request, error)
                if is_message
                else httpx2.Response(503, text=f"the server {_words(error)}")
            )
        if not is_message:
            return response  # of an authorization server
        if response.status_code >= 400:
            return await _error_answer(request, response)
        response.stream = _Body(cast(httpx2.AsyncByteStream, response.stream), self._limit)
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            response.headers["content-type"] = "application/json"  # whatever it is called, it is read as that
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _Body(httpx2.AsyncByteStream):
    """A body whose troubles are of the one kind that the SDK pins on the request: `StreamError`."""

    def __init__(self, inner: httpx2.AsyncByteStream, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for data in self._inner:
                size += len(data)
                if size > self._limit:
                    raise httpx2.StreamError(f"the answer is over the limit of {self._limit / 2**20:.0f} MiB")
                yield data
        except httpx2.TransportError as error:
            raise httpx2.StreamError(f"the server {_words(error)}") from None

    async def aclose(self) -> None:
        await self._inner.aclose()


def _broken(request: httpx2.Request, error: httpx2.TransportError) -> httpx2.Response:
    return _answer(request, 502, _failure(error))


def _failure(error: httpx2.TransportError) -> ErrorData:
    is_unsent, is_down = isinstance(error, _UNSENT), isinstance(error, httpx2.ConnectError)
    return request_failed(_words(error), is_unsent=is_unsent, is_down=is_down)


async def _error_answer(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    body = await _read(response)
    in_session = "mcp-session-id" in request.headers
    error = http_error(response.status_code, response.headers, body, in_session=in_session)
    return _answer(request, response.status_code, error)


async def _read(response: httpx2.Response) -> bytes:
    body = b""
    try:
        async for data in response.aiter_bytes():
            body += data
            if len(body) > MAX_ERROR_BODY:
                break
    except (httpx2.TransportError, httpx2.DecodingError):
        pass
    await response.aclose()
    return body


def _answer(request: httpx2.Request, status: int, trouble: ErrorData) -> httpx2.Response:
    content = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": trouble.model_dump()})
    headers = {"content-type": "application/json"}
    if challenge := trouble.data[HTTP_TROUBLE].get("authenticate"):
        headers["www-authenticate"] = challenge
    return httpx2.Response(status, headers=headers, content=content, request=request)


_WORDS: Sequence[tuple[type[httpx2.TransportError], str]] = (
    (httpx2.ConnectTimeout, f"took no connection within {CONNECT_TIMEOUT:g} s"),
    (httpx2.TimeoutException, "neither sent nor took anything for too long"),
    (httpx2.ProxyError, "cannot be reached through its proxy"),
    (httpx2.ConnectError, "cannot be reached: it refuses connections"),
    (httpx2.NetworkError, "closed the connection in the middle of an exchange"),
    (
        httpx2.RemoteProtocolError,
        "closed the connection before it had answered, or sent something that is not HTTP",
    ),
    (httpx2.TransportError, "cannot be asked: its URL or a header is not valid"),
)
"""What happened, as the rest of a sentence that begins with the server's name, by the first kind that fits."""


def _own_words(error: httpx2.TransportError) -> str:
    """What was rejected on this side (by the guard of servers that requests bring along, or by our reading), or ""."""
    behind: BaseException | None = error
    while behind is not None:
        is_rejected = isinstance(behind, PermissionError) and behind.errno is None
        if is_rejected or str(behind) == UNKNOWN_NAME:
            return str(behind)
        behind = behind.__cause__ or behind.__context__
    is_mapped = type(error.__cause__ or error.__context__).__module__.startswith("httpcore2")
    return "" if is_mapped else str(error)


def _words(error: httpx2.TransportError) -> str:
    if behind := connect_error_behind(error):
        return behind.words
    if own := _own_words(error):
        return f"cannot be used: {own}"
    return next(words for kind, words in _WORDS if isinstance(error, kind))


class HttpTransport(StreamableHTTPTransport):
    """The SDK's streamable HTTP, reading answers as every other transport here does.

    The SDK's own reading loses an answer under another id (its call waits for ever), and shows pages of its
    validator's text.
    """

    async def _handle_json_response(
        self, response: httpx2.Response, read_stream_writer: Sink, *, request_id: RequestId
    ) -> None:
        try:
            messages = parse_answer(await response.aread(), request_id)
        except httpx2.StreamError as fault:
            messages = [error(request_id, str(fault))]
        for message in messages:
            await read_stream_writer.send(SessionMessage(message))

    async def _handle_sse_event(
        self,
        sse: httpx2.ServerSentEvent,
        read_stream_writer: Sink,
        original_request_id: RequestId | None = None,
        resumption_callback: Callable[[str], Awaitable[None]] | None = None,
    ) -> bool:
        """Pass the messages of one event on; True when the request is answered."""
        if sse.event != "message" or not sse.data:
            return False
        data = sse.data.encode()
        messages = parse(data)
        if original_request_id is not None:
            messages = [
                correlated(message, original_request_id) if isinstance(message, RpcResponse) else message
                for message in messages
            ]
            if not messages and data.lstrip().startswith((b"{", b"[")):
                messages = parse_answer(data, original_request_id)
        about = ServerMessageMetadata(related_request_id=original_request_id)
        for message in messages:
            await read_stream_writer.send(SessionMessage(message, metadata=about))
        return any(isinstance(message, RpcResponse) for message in messages)


@asynccontextmanager
async def open_http(config: RemoteServerConfig, options: ConnectOptions) -> AsyncIterator[Streams]:
    """Streamable HTTP, protocol 2025-03-26 and newer."""
    transport = HttpTransport(config.url, max_sse_event_size=options.max_result_bytes)
    inbound, read = create_context_streams[SessionMessage | Exception](0)
    write, outbound = create_context_streams[SessionMessage](0)
    own = OwnClient.of(config, options)
    async with (
        http_client(config.headers, options) as client,
        inbound,
        read,
        write,
        outbound,
        anyio.create_task_group() as tasks,
    ):

        def listen() -> None:
            tasks.start_soon(transport.handle_get_stream, client, inbound)

        tasks.start_soon(transport.post_writer, client, outbound, inbound, write, listen, tasks)
        try:
            yield read, write, Posts(transport, client, inbound, own, lambda: _is_needed(client.auth))
        finally:
            if own is not None:
                own.close()
            await transport.terminate_session(client)
            tasks.cancel_scope.cancel()


def _is_needed(auth: Any) -> bool:
    """Whether requests are authenticated now."""
    return auth is not None and bool(getattr(auth, "is_needed", True))


@asynccontextmanager
async def open_sse(config: RemoteServerConfig, options: ConnectOptions) -> AsyncIterator[Streams]:
    """HTTP+SSE as of protocol 2024-11-05: one stream of events, and a POST for each message.

    The SDK's client for it ends at events over 1 MiB and at the first POST that fails; this one does not.

    Raises:
        httpx2.HTTPError: The stream cannot be opened.
    """
    inbound, read = anyio.create_memory_object_stream[SessionMessage | Exception](256)
    write, outbound = anyio.create_memory_object_stream[SessionMessage](0)
    async with (
        http_client(config.headers, options, isolate=False) as client,
        anyio.create_task_group() as tasks,
        inbound,
        outbound,
        read,
        write,
    ):
        target = await tasks.start(
            partial(_receive_events, client, config.url, inbound, options.max_result_bytes)
        )
        tasks.start_soon(_send_messages, client, target, outbound, inbound)
        yield read, write, None
        tasks.cancel_scope.cancel()


async def _receive_events(
    client: httpx2.AsyncClient,
    url: str,
    inbound: ObjectSendStream[SessionMessage | Exception],
    limit: int,
    *,
    task_status: TaskStatus[str],
) -> None:
    """Read events into `inbound` until the stream ends; the first one says where messages are posted to."""
    accept = {"accept": "text/event-stream", "cache-control": "no-store"}
    async with client.stream("GET", url, headers=accept) as response, inbound:
        if response.status_code >= 400:
            error = http_error(
                response.status_code, response.headers, await _read(response), in_session=False
            )
            raise RpcError(error.code, error.message, error.data)
        knows_endpoint = False
        try:
            async for event in httpx2.EventSource(response, max_event_size=limit):
                if event.event == "endpoint" and not knows_endpoint:
                    task_status.started(_same_origin(url, event.data))
                    knows_endpoint = True
                elif event.event == "message":
                    for message in parse(event.data.encode()):
                        await inbound.send(SessionMessage(message))
        except (httpx2.HTTPError, httpx2.StreamError, anyio.BrokenResourceError):
            if not knows_endpoint:
                raise
        if not knows_endpoint:
            raise httpx2.RemoteProtocolError("the event stream ended before it named an endpoint")


def _same_origin(url: str, endpoint: str) -> str:
    target = urljoin(url, endpoint)
    if urlsplit(target)[:2] != urlsplit(url)[:2]:
        raise httpx2.RemoteProtocolError(f"the server sends its messages elsewhere, to {target}")
    return target


async def _send_messages(
    client: httpx2.AsyncClient,
    target: str,
    outbound: ObjectReceiveStream[SessionMessage],
    inbound: ObjectSendStream[SessionMessage | Exception],
) -> None:
    async for item in outbound:
        content = item.message.model_dump_json(by_alias=True, exclude_unset=True)
        trouble = await _post(client, target, content)
        if trouble is not None and isinstance(item.message, JSONRPCRequest):
            response = JSONRPCError(jsonrpc="2.0", id=item.message.id, error=trouble)
            await inbound.send(SessionMessage(response))


async def _post(client: httpx2.AsyncClient, target: str, content: str) -> ErrorData | None:
    """What went wrong, if anything: the answer itself comes with the events."""
    try:
        response = await client.post(
            target, content=content, headers={"content-type": "application/json"}, timeout=CONNECT_TIMEOUT
        )
    except httpx2.TransportError as error:
        return _failure(error)
    if response.status_code < 400:
        return None
    return http_error(response.status_code, response.headers, response.content, in_session=True)


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
    are rejected: a few kilobytes of them can stand for gigabytes.
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
        body = _GuardedBody(answer.stream, None if _is_events(headers) else self._limit)
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


class _GuardedBody(httpx2.AsyncByteStream):
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
