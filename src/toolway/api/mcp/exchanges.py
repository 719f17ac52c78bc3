"""Requests of /mcp as what most of them are: one POST, one answer, in the task of the request.

The SDK's transport takes tasks, streams and a server of events for each, which cost more than all the rest. Its kernel
answers here too; what is not plainly a request goes to the transport, whose bytes these are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any
from weakref import WeakValueDictionary

import anyio
from mcp.server.connection import Connection
from mcp.server.runner import ServerRunner, modern_error_data
from mcp.server.streamable_http import StreamableHTTPServerTransport, check_accept_headers
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
    validate_mcp_param_headers,
)
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params, progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCRequest, JSONRPCResponse
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic_core import PydanticSerializationError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.api.mcp.batches import answer_batch, batch_in
from toolway.api.mcp.faults import fault_of, is_response
from toolway.api.mcp.server import OWNER, CatalogServer
from toolway.server.asgi import EventStreamResponse, read_body, send_whole
from toolway.server.caller import caller_id
from toolway.server.cancellation import cancel_on_disconnect
from toolway.tools.mcp.sdk_internals import add_requests_in_flight
from toolway.types import JSON, JSON_TYPE
from toolway.wire.lenient_json import dumps, harmless

MAX_BODY = 256 * 2**10
"""Bytes of a request that is answered here."""

PING = b": ping\r\n\r\n"

SESSION_ID = "mcp-session-id"

QUICK = frozenset({"tools/call", "tools/list"})
"""What is answered here of a client with a session."""

TOO_MANY = JSONRPCError(
    jsonrpc="2.0",
    id=None,
    error=ErrorData(code=INTERNAL_ERROR, message="Too many open sessions, none of which is idle; end one."),
)

_ASKING_CAPABILITIES = ("elicitation", "sampling", "roots")


class Exchanges:
    """An ASGI app that answers what it can of `server`, and hands all else to `otherwise`.

    `transports` are the sessions of the SDK's manager by their ids; `make_room` says whether a caller may begin one
    more. An answer that has not come after `keep_alive`
    seconds becomes a stream, so that nobody on the way takes the connection for dead. Raises InvalidRequest for a body
    over `max_body` bytes, and ClientGone.
    """

    def __init__(
        self,
        server: CatalogServer,
        transports: Mapping[str, StreamableHTTPServerTransport],
        otherwise: ASGIApp,
        *,
        make_room: Callable[[str], Awaitable[bool]],
        max_body: int,
        keep_alive: float,
    ) -> None:
        self._server = server
        self._transports = transports
        self._otherwise = otherwise
        self._make_room = make_room
        self._max_body = max_body
        self._keep_alive = keep_alive
        self._calls: WeakValueDictionary[tuple[str, Any], _Dispatch] = WeakValueDictionary()
        """The requests under way of clients with a session."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "POST":
            await self._otherwise(scope, receive, _without_rejected_session(scope, send))
            return
        body = await read_body(scope, receive, self._max_body)
        if batch := batch_in(scope, body):
            await answer_batch(partial(self._answer, scope, receive), batch, send)
        else:
            await self._answer(scope, receive, body, send)

    async def _answer(self, scope: Scope, receive: Receive, body: bytes, send: Send) -> None:
        """Answer one message."""
        if len(body) <= MAX_BODY and (exchange := self._exchange(scope, body)):
            await self._exchanged(exchange, scope, receive, send)
        elif fault := fault_of(body, _version_in(scope)):
            await send_whole(send, 400, _dumps(fault.model_dump(mode="json", exclude_unset=True)))
        elif _begins_session(scope, body) and not await self._make_room(caller_id(scope)):
            await send_whole(send, 503, _dumps(TOO_MANY.model_dump(mode="json", exclude_unset=True)))
        else:
            await self._otherwise(
                scope, _from_the_body(body, receive), _without_rejected_session(scope, send)
            )

    def _exchange(self, scope: Scope, body: bytes) -> _Exchange | None:
        """The request in a body, if it is one that is answered here."""
        request = Request(scope)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" or check_accept_headers(request) != (True, True):
            return None
        try:
            decoded = json.loads(body)
            if is_response(decoded):
                return None
            version = request.headers.get("mcp-protocol-version")
            if version in MODERN_PROTOCOL_VERSIONS:
                return self._modern(request, decoded, JSONRPCRequest.model_validate(decoded))
            if self._cancels(request, decoded) or version not in (None, *HANDSHAKE_PROTOCOL_VERSIONS):
                return None
            return self._of_session(request, JSONRPCRequest.model_validate(decoded))
        except (ValueError, RecursionError):
            return None

    def _modern(self, request: Request, decoded: JSON, asked: JSONRPCRequest) -> _Exchange | None:
        if asked.method == "subscriptions/listen" or find_duplicated_routing_header(request.headers.items()):
            return None
        headers = dict(request.headers)
        route = classify_inbound_request(decoded, headers=headers)
        if not isinstance(route, InboundModernRoute) or self._has_wrong_headers(request, headers, asked):
            return None
        connection = Connection.from_envelope(
            route.protocol_version, route.client_info, route.client_capabilities
        )
        return _Exchange(request=request, asked=asked, connection=connection)

    def _has_wrong_headers(self, request: Request, headers: Mapping[str, str], asked: JSONRPCRequest) -> bool:
        """Whether arguments that are told in headers too are told otherwise there."""
        params = asked.params or {}
        name, arguments = params.get("name"), params.get("arguments") or {}
        if asked.method != "tools/call" or not isinstance(name, str) or not isinstance(arguments, dict):
            return False
        schema = self._server.get_tool_input_schema(name) if self._server.get_tool_input_schema else None
        return (
            schema is not None and validate_mcp_param_headers(schema, arguments, request.headers) is not None
        )

    def _of_session(self, request: Request, asked: JSONRPCRequest) -> _Exchange | None:
        """A request in a session, if its client answers no questions: those go over the transport's streams."""
        identity = request.headers.get(SESSION_ID, "")
        transport, connection = self._transports.get(identity), self._server.by_session.get(identity)
        if transport is None or connection is None or transport.is_terminated or asked.method not in QUICK:
            return None
        offers = connection.client_capabilities
        if any(getattr(offers, name, None) is not None for name in _ASKING_CAPABILITIES):
            return None
        if connection.state[OWNER] != caller_id(request.scope) or not connection.initialize_accepted:
            return None
        return _Exchange(request=request, asked=asked, connection=connection, transport=transport)

    def _cancels(self, request: Request, decoded: Any) -> bool:
        """Cancel the call that a notification is about; the transport acknowledges it."""
        if not isinstance(decoded, dict) or decoded.get("method") != "notifications/cancelled":
            return False
        params, session = decoded.get("params"), request.headers.get(SESSION_ID, "")
        number = cancelled_request_id_from_params(params if isinstance(params, dict) else None)
        is_owners = (connection := self._server.by_session.get(session)) is not None and (
            connection.state[OWNER] == caller_id(request.scope)
        )
        if is_owners and (call := self._calls.get((session, number))):
            call.cancel()
        return True

    async def _exchanged(self, exchange: _Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _HttpAnswer(send, exchange, self._keep_alive)
        if exchange.transport is None:
            await cancel_on_disconnect(scope, receive, lambda: self._run(exchange, answer))
            return
        # A client with a session that hangs up may come back: only what it says ends a call of its own.
        with exchange.held_session():
            await self._run(exchange, answer)

    async def _run(self, exchange: _Exchange, answer: _HttpAnswer) -> None:
        asked = exchange.asked
        dispatch = _Dispatch(
            request_id=asked.id,
            message_metadata=ServerMessageMetadata(request_context=exchange.request),
            progress_token=progress_token_from_params(asked.params),
            answer=answer,
        )
        self._calls[exchange.session_id, asked.id] = dispatch
        runner: ServerRunner[Any] = ServerRunner(self._server, exchange.connection, {})
        with dispatch.scope:
            async with asyncio.TaskGroup() as group:
                pings: list[asyncio.Task[None]] = []
                later = asyncio.get_running_loop().call_later(
                    self._keep_alive, lambda: pings.append(group.create_task(answer.keep_alive()))
                )
                try:
                    result = await runner.on_request(dispatch, asked.method, asked.params)
                    last: JSONRPCResponse | JSONRPCError = JSONRPCResponse(
                        jsonrpc="2.0", id=asked.id, result=result
                    )
                except Exception as raised:
                    last = JSONRPCError(jsonrpc="2.0", id=asked.id, error=modern_error_data(raised))
                finally:
                    later.cancel()
                    for ping in pings:
                        ping.cancel()
                await answer.end(last)
        if dispatch.cancel_requested.is_set():
            await answer.end(None)


@dataclass(kw_only=True)
class _Exchange:
    """A request that is answered here. `transport` is that of its session, if it has one."""

    request: Request
    asked: JSONRPCRequest
    connection: Connection
    transport: StreamableHTTPServerTransport | None = None

    @property
    def session_id(self) -> str:
        return self.connection.session_id or ""

    @contextmanager
    def held_session(self) -> Iterator[None]:
        """Count as a request of the session, as the SDK's transport counts its own: its idle time begins behind it."""
        if (transport := self.transport) is None or (idle := transport.idle_scope) is None:
            yield
            return
        add_requests_in_flight(transport, 1)
        idle.deadline = inf
        try:
            yield
        finally:
            if not add_requests_in_flight(transport, -1):
                idle.deadline = anyio.current_time() + SESSION_IDLE


SESSION_IDLE = 30 * 60.0
"""Seconds without a request after which a session ends."""


class _HttpAnswer:
    """The answer to one request: JSON, or events once something is told before the result."""

    def __init__(self, send: Send, exchange: _Exchange, keep_alive: float) -> None:
        self._send = send
        self._interval = keep_alive
        self._is_modern = exchange.transport is None
        self._headers = [(SESSION_ID.encode(), exchange.session_id.encode())] if exchange.session_id else []
        self._stream: EventStreamResponse | None = None

    async def tell(self, method: str, params: Mapping[str, Any] | None) -> None:
        """A notification."""
        notification = {
            "jsonrpc": "2.0",
            "method": method,
            **({} if params is None else {"params": dict(params)}),
        }
        await (await self._events()).write(_event(_dumps(notification)))

    async def keep_alive(self) -> None:
        """Write a ping now, and in each silence that follows, until cancelled."""
        stream = await self._events()
        await stream.write(PING)
        await stream.keep_alive()

    async def end(self, last: JSONRPCResponse | JSONRPCError | None) -> None:
        """The result; none for a request that its client cancelled."""
        if last is None or self._stream:
            await (await self._events()).end(_event(self._bytes(last)) if last else b"")
            return
        status = 200
        if self._is_modern and isinstance(last, JSONRPCError):
            status = ERROR_CODE_HTTP_STATUS.get(last.error.code, 200)
        await send_whole(self._send, status, self._bytes(last), [JSON_TYPE, *self._headers])

    async def _events(self) -> EventStreamResponse:
        """The stream that the answer is from now on."""
        if self._stream is None:
            self._stream = EventStreamResponse(self._send, self._interval, PING)
            await self._stream.start(self._headers)
        return self._stream

    def _bytes(self, message: JSONRPCResponse | JSONRPCError) -> bytes:
        if not self._is_modern:
            try:
                return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
            except PydanticSerializationError:  # half a character of the client's own, told back to it
                return dumps(harmless(message.model_dump(by_alias=True, exclude_unset=True)))
        return _dumps(message.model_dump(mode="json", by_alias=True, exclude_none=True))


@dataclass(kw_only=True, eq=False)
class _Dispatch:
    """The SDK's `DispatchContext` of one request: its client can be told something, and asked nothing."""

    request_id: Any
    message_metadata: ServerMessageMetadata
    progress_token: Any
    answer: _HttpAnswer
    transport: TransportContext = field(
        default_factory=lambda: TransportContext(kind="streamable-http", can_send_request=False)
    )
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    can_send_request: bool = False

    def cancel(self) -> None:
        """End the request, whose client wants no answer any more."""
        self.cancel_requested.set()
        self.scope.cancel()

    async def send_raw_request(self, method: str, params: Any, opts: Any = None) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        await self.answer.tell(method, params)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.progress_token is None:
            return
        params = {
            "progressToken": self.progress_token,
            "progress": progress,
            "total": total,
            "message": message,
        }
        await self.notify(
            "notifications/progress", {name: value for name, value in params.items() if value is not None}
        )


def _dumps(message: JSON) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _event(message: bytes) -> bytes:
    return b"event: message\r\ndata: %b\r\n\r\n" % message


def _version_in(scope: Scope) -> str | None:
    """The version that a request tells."""
    versions = (value for name, value in scope["headers"] if name == b"mcp-protocol-version")
    return value.decode("latin-1") if (value := next(versions, None)) is not None else None


def _begins_session(scope: Scope, body: bytes) -> bool:
    """Whether a request that has no fault would begin a session."""
    if _version_in(scope) in MODERN_PROTOCOL_VERSIONS or b"initialize" not in body:
        return False
    try:
        return bool(json.loads(body)["method"] == "initialize") and not _has_session(scope)
    except (ValueError, RecursionError, KeyError):
        return False


def _has_session(scope: Scope) -> bool:
    return any(name == SESSION_ID.encode() for name, _ in scope["headers"])


def _without_rejected_session(scope: Scope, send: Send) -> Send:
    """`send`, without the id of a session that the SDK began for a request that it then rejected."""
    if _has_session(scope):
        return send

    async def send_rest(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = [header for header in message["headers"] if header[0].lower() != SESSION_ID.encode()]
            message = {**message, "headers": headers}
        await send(message)

    return send_rest


def _from_the_body(body: bytes, receive: Receive) -> Receive:
    """`receive`, which tells the body again before what comes behind it."""
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again
