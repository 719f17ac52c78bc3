"""Calls over streamable HTTP, each sent and its answer read in the task of its caller.

Over the SDK's streams a call takes a task of its own and passes through two others; its HTTP client takes more
than that again. What HTTP says in place of an answer is the error of the request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

import httpx2
import orjson
from mcp.client.streamable_http import RequestContext, StreamableHTTPTransport
from mcp_types import (
    INVALID_REQUEST,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
)
from yarl import URL

from toolway.net.client import HttpClient, Origin
from toolway.net.connection import Connection
from toolway.net.decompress import BrokenBody, OversizedBody, UnknownEncoding, read_body
from toolway.net.errors import Fault, HttpError
from toolway.net.proxy import proxy_for
from toolway.settings.mcp_server import RemoteServerConfig
from toolway.tools.mcp.errors import HTTP_TROUBLE
from toolway.tools.mcp.messages import RequestId, RpcResponse, error, parse_answer
from toolway.tools.mcp.options import ConnectOptions
from toolway.tools.mcp.sdk import ClientMessageMetadata, ContextSendStream, SessionMessage
from toolway.tools.mcp.sdk_internals import handle_post, handle_sse, protocol_headers
from toolway.types import JSON, Header
from toolway.wire.lenient_json import dumps

CONNECT_TIMEOUT = 10.0

OnProgressParams = Callable[[JSON], None]
Sink = ContextSendStream[SessionMessage | Exception]

_DOWN = frozenset({Fault.UNKNOWN_HOST, Fault.UNTRUSTED, Fault.REFUSED})
_UNSENT = _DOWN | {Fault.UNSENDABLE, Fault.PROXY, Fault.NO_FILES, Fault.NOT_ACCEPTED}
_NOT_THE_CALLS = frozenset({401, 403})
"""Answers that are about who asks, and what a login mends."""


class Posts:
    """Requests to one server. `own` is the client that asks while nobody has to log in there.

    An answer that is a redirect, or an error that a login mends, is the SDK's affair: it asks once more.
    """

    def __init__(
        self,
        transport: StreamableHTTPTransport,
        client: httpx2.AsyncClient,
        inbound: Sink,
        own: OwnClient | None,
        needs_login: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._client = client
        self._inbound = inbound
        self._own = own
        self._needs_login = needs_login

    async def ask(
        self, request: JSONRPCRequest, headers: Mapping[str, str], on_progress: OnProgressParams
    ) -> RpcResponse:
        """The answer. What else the server says meanwhile is read with the rest, progress of it told at once."""
        reader = _AnswerReader(request.id, self._inbound, on_progress)
        context = RequestContext(
            client=self._client,
            session_id=self._transport.session_id,
            session_message=SessionMessage(request),
            metadata=ClientMessageMetadata(headers=dict(headers)),
            read_stream_writer=cast(Sink, reader),
        )
        own = None if self._needs_login() else self._own
        if own is None or not await self._ask_by(own, request, {**headers}, context):
            await handle_post(self._transport, context)
        return reader.answer or error(request.id, "the server did not answer")

    async def _ask_by(
        self, own: OwnClient, request: JSONRPCRequest, headers: Mapping[str, str], context: RequestContext
    ) -> bool:
        """Ask by the own client; False if the request has done nothing and the SDK has to ask."""
        transport = self._transport
        headers = {**protocol_headers(transport), **headers}
        body = dumps(request.model_dump(by_alias=True, exclude_unset=True))
        messages: list[JSONRPCMessage]
        try:
            async with own.post(headers, body) as answer:
                if answer.status // 100 == 3 or answer.status in _NOT_THE_CALLS:
                    return False
                if answer.is_stream:
                    await handle_sse(transport, answer.as_response(), context)
                    return True
                messages = await _messages(answer, request.id, in_session="mcp-session-id" in headers)
        except HttpError as fault:
            trouble = request_failed(
                _words(fault), is_unsent=fault.fault in _UNSENT, is_down=fault.fault in _DOWN
            )
            messages = [JSONRPCError(jsonrpc="2.0", id=request.id, error=trouble)]
        for message in messages:
            await context.read_stream_writer.send(SessionMessage(message))
        return True


async def _messages(answer: OwnAnswer, request_id: RequestId, *, in_session: bool) -> list[JSONRPCMessage]:
    """The messages in a whole answer, that to the request among them."""
    if answer.status >= 400:
        failure = http_error(answer.status, answer.headers, await answer.beginning(), in_session=in_session)
        return [JSONRPCError(jsonrpc="2.0", id=request_id, error=failure)]
    if answer.status == 202:
        return [error(request_id, "server answered a request with 202 Accepted", INVALID_REQUEST)]
    try:
        return parse_answer(await answer.read(), request_id)
    except (OversizedBody, UnknownEncoding, BrokenBody) as fault:
        return [error(request_id, _unreadable(fault))]


class _AnswerReader:
    """Where the messages of one exchange go: the answer stays here."""

    def __init__(self, request_id: RequestId, inbound: Sink, on_progress: OnProgressParams) -> None:
        self.answer: RpcResponse | None = None
        self._request_id = request_id
        self._inbound = inbound
        self._on_progress = on_progress

    async def send(self, item: SessionMessage | Exception) -> None:
        """One message."""
        message = item.message if isinstance(item, SessionMessage) else None
        if isinstance(message, RpcResponse):
            self.answer = self.answer or message
        elif isinstance(message, JSONRPCNotification) and self._is_progress(message):
            self._on_progress(message.params or {})
        else:
            await self._inbound.send(item)

    def _is_progress(self, message: JSONRPCNotification) -> bool:
        token = (message.params or {}).get("progressToken")
        return message.method == "notifications/progress" and str(token) == str(self._request_id)


class OwnClient:
    """Posts to the one URL of a server, with the headers of its configuration."""

    def __init__(self, config: RemoteServerConfig, options: ConnectOptions) -> None:
        url = URL(config.url)
        self._client = HttpClient(
            Origin.of(config.url),
            connect=CONNECT_TIMEOUT,
            proxy=proxy_for(config.url),
            certificate=options.certificate,
        )
        self._url = config.url
        self._target = url.raw_path_qs.encode()
        self._headers = {name.lower(): value for name, value in config.headers.items()}
        self._limit = options.max_result_bytes

    @classmethod
    def of(cls, config: RemoteServerConfig, options: ConnectOptions) -> OwnClient | None:
        """The client, where nothing about the server is a matter of the other one's."""
        is_plain = "@" not in urlsplit(config.url).netloc and "host" not in map(str.lower, config.headers)
        if options.egress is not None or not is_plain:
            return None
        try:
            return cls(config, options)
        except ValueError:
            return None

    @asynccontextmanager
    async def post(self, headers: Mapping[str, str], body: bytes) -> AsyncIterator[OwnAnswer]:
        """The answer, whose body is there while the block lasts. Raises HttpError."""
        lines: list[Header] = [
            (name.encode(), value.encode(errors="surrogateescape"))
            for name, value in {**self._headers, **headers}.items()
        ]
        async with self._client.request("POST", self._target, headers=lines, body=body) as connection:
            yield OwnAnswer.of(connection, self._url, self._limit)

    def close(self) -> None:
        """Drop the idle connections."""
        self._client.close()


@dataclass(frozen=True, kw_only=True)
class OwnAnswer:
    """An answer whose head is there."""

    status: int
    headers: Mapping[str, str]
    connection: Connection
    url: str
    limit: int

    @classmethod
    def of(cls, connection: Connection, url: str, limit: int) -> OwnAnswer:
        """What has come over a connection; of several headers with one name the first."""
        response = connection.response
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(response.headers)
        }
        return cls(status=response.status, headers=headers, connection=connection, url=url, limit=limit)

    @property
    def is_stream(self) -> bool:
        """Whether events come."""
        kind = self.headers.get("content-type", "").lower()
        return self.status == 200 and kind.startswith("text/event-stream")

    async def read(self) -> bytes:
        """The whole body. Raises HttpError, OversizedBody, UnknownEncoding and BrokenBody."""
        return await read_body(self.connection.receive, self.headers.get("content-encoding", ""), self.limit)

    async def beginning(self) -> bytes:
        """What of the body of an error is read."""
        body = b""
        try:
            while len(body) <= MAX_ERROR_BODY and (piece := await self.connection.receive()):
                body += piece
        except HttpError:
            pass
        return body

    def as_response(self) -> httpx2.Response:
        """For the SDK, which reads events."""
        stream = _Events(self.connection, self.limit)
        return httpx2.Response(
            self.status, headers=dict(self.headers), stream=stream, request=httpx2.Request("POST", self.url)
        )


class _Events(httpx2.AsyncByteStream):
    def __init__(self, connection: Connection, limit: int) -> None:
        self._connection = connection
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            while piece := await self._connection.receive():
                size += len(piece)
                if size > self._limit:
                    raise httpx2.StreamError(_over(self._limit))
                yield piece
        except HttpError as fault:
            raise httpx2.StreamError(f"the server {_words(fault)}") from None


def _over(limit: int) -> str:
    return f"the answer is over the limit of {limit / 2**20:.0f} MiB"


def _unreadable(fault: ValueError) -> str:
    if isinstance(fault, OversizedBody):
        return _over(int(str(fault).replace(",", "")))
    if isinstance(fault, UnknownEncoding):
        return f"the server answered in an encoding that was not asked for ({fault})"
    return "the server sent compressed data that is broken"


def _words(fault: HttpError) -> str:
    """What happened, as the rest of a sentence that begins with the server's name."""
    if fault.fault is Fault.NOT_ACCEPTED:
        return f"took no connection within {CONNECT_TIMEOUT:g} s"
    return fault.words


MAX_ERROR_BODY = 64 * 2**10
"""Bytes of an error's body that are read."""


def http_error(status: int, headers: Mapping[str, str], body: bytes, *, in_session: bool) -> ErrorData:
    """The error for an answer with a status from 400 on; its `data` tells what `RpcError.http` is."""
    rpc_error = _jsonrpc_error(body)
    seen = {**_what_was_seen(status, headers, in_session=in_session), "data": rpc_error.get("data")}
    message = rpc_error.get("message") or _describe(status, headers, body)
    return ErrorData(code=rpc_error.get("code", -32000), message=str(message), data={HTTP_TROUBLE: seen})


def request_failed(words: str, *, is_unsent: bool, is_down: bool) -> ErrorData:
    """The error for a request that has no answer; the words follow "the server"."""
    trouble = {"unsent": is_unsent, "down": is_down}
    return ErrorData(code=-32000, message=f"the server {words}", data={HTTP_TROUBLE: trouble})


def _what_was_seen(status: int, headers: Mapping[str, str], *, in_session: bool) -> JSON:
    """What the HTTP layer knows of an error."""
    return {
        "status": status,
        "session": in_session,
        "retry_after": headers.get("retry-after"),
        "authenticate": headers.get("www-authenticate"),
    }


def _describe(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """An error in words."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    text = f"the server answered HTTP {status} {phrase}".rstrip()
    if retry_after := headers.get("retry-after"):
        text += f", to be tried again after {retry_after}"
    plain = "html" not in headers.get("content-type", "")
    excerpt = body[:300].decode(errors="replace").strip() if plain else ""
    return f"{text}: {excerpt}" if excerpt else text


def _jsonrpc_error(body: bytes) -> JSON:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("code"), int) else {}
