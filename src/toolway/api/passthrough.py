"""Every route under /v1 that Toolway does not own, to the model server and back, byte for byte."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

import anyio
from starlette.types import Message, Receive, Scope, Send

from toolway.engine.request_options import check_models, no_such_model
from toolway.errors import Forbidden, InvalidRequest, NotFound, Stopping, UpstreamError
from toolway.server.asgi import ClientGone, parse_object, read_body, relay
from toolway.server.caller import principal_of, upstream_headers
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import send_error
from toolway.settings.settings import UpstreamSettings
from toolway.types import JSON, Principal
from toolway.upstream.client import Upstream
from toolway.wire.lenient_json import dumps

log = logging.getLogger("toolway.passthrough")

_PREFIX = b"/v1"


class Passthrough:
    """An ASGI app. Bodies of any size pass in both directions, as fast as the slower side takes them.

    Hop-by-hop and CORS headers stay on their side. A client that leaves closes the request to the model server; a
    model server that breaks off inside its answer cuts the client's connection, since a clean end would say
    that the answer was whole.

    From a principal who may not use each model only what names one that it may use is passed on; `max_bytes` bounds the
    bodies that must be read for it.
    """

    def __init__(self, upstream: Upstream, settings: UpstreamSettings, max_bytes: int = 2**26) -> None:
        self._upstream = upstream
        self._settings = settings
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on. An upstream that is down or silent is a 502 or 504 in OpenAI's envelope."""
        request = _RequestBody(receive)
        principal = principal_of(scope)
        try:
            path = _path_below(scope)
            if not principal.models:
                body = await request.body() if _has_body(scope) else None
            else:
                body = await self._check_request(scope, receive, path, principal)
        except InvalidRequest as error:
            await send_error(scope, send, error)
            return
        except ClientGone:
            return
        await cancel_on_disconnect(
            scope, request.receive_after_body, lambda: self._exchange(scope, path, body, send)
        )

    async def _check_request(
        self, scope: Scope, receive: Receive, path: str, principal: Principal
    ) -> bytes | None:
        """The body of a request whose models may be used. Written anew: parsers differ where a member stands twice."""
        named = [
            value for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name == "model"
        ]
        if path.startswith("/models/"):
            named.append(unquote(path.removeprefix("/models/")))
        body = await read_body(scope, receive, self._max_bytes) if _has_body(scope) else b""
        if body or scope["method"] not in ("GET", "HEAD"):
            sent = _object(body)
            check_models(principal, sent)
            body = dumps(sent)
        for model in named:
            if not principal.may_use_model(model):
                raise no_such_model(model)
        return body or None

    async def _exchange(
        self, scope: Scope, path: str, body: bytes | AsyncIterator[bytes] | None, send: Send
    ) -> None:
        method: str = scope["method"]
        started = False
        headers = upstream_headers(scope, self._settings, same_body=True)
        try:
            with error_at_stop(scope):
                async with self._upstream.request(
                    method, path, query=scope["query_string"], headers=headers, body=body
                ) as answer:
                    started = True
                    log.debug("%s /v1%s: %d", method, path, answer.status)
                    await relay(answer, send)
        except (UpstreamError, Stopping) as error:
            log.warning("%s /v1%s: %s", method, path, error.message)
            if not started:
                await send_error(scope, send, error)


def _object(body: bytes) -> JSON:
    try:
        return parse_object(body)
    except InvalidRequest:
        reason = "may only use some models here, and which one this request is for can be read in JSON alone"
        raise Forbidden(f"This API key {reason}.", code="model_not_readable") from None


class _RequestBody:
    """A request's body. Only one may wait for the client at a time: who reads the body, then who watches."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: anyio.Event | None = None
        """Set at the end of a body that comes in pieces."""
        self._gone = False

    async def body(self) -> bytes | AsyncIterator[bytes]:
        """The body: as bytes if it came in one piece, else its pieces when they are asked for.

        Raises ClientGone if the client left before its first piece.
        """
        first = await self._receive()
        if first["type"] == "http.disconnect":
            raise ClientGone
        if not first.get("more_body"):
            return bytes(first.get("body", b""))
        self._read = anyio.Event()
        return self._chunks(first, self._read)

    async def receive_after_body(self) -> Message:
        """`receive` for who waits for the client to leave."""
        if self._read:
            await self._read.wait()
        return {"type": "http.disconnect"} if self._gone else await self._receive()

    async def _chunks(self, event: Message, read: anyio.Event) -> AsyncIterator[bytes]:
        while event["type"] != "http.disconnect":
            if part := event.get("body"):
                yield part
            if not event.get("more_body"):
                read.set()
                return
            event = await self._receive()
        self._gone = True
        read.set()
        # To return now would be to say that the body is whole; who is told of the disconnect ends this.
        await anyio.sleep_forever()


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _path_below(scope: Scope) -> str:
    """The raw path behind /v1. Raises InvalidRequest for one that would lead elsewhere when it is resolved."""
    raw: bytes = scope["raw_path"]
    if not raw.startswith(_PREFIX + b"/"):
        raise NotFound("The OpenAI API is under /v1, written like that.")
    segments = unquote_to_bytes(raw).replace(b"\\", b"/").split(b"/")
    if b".." in segments or b"." in segments:
        raise InvalidRequest("The path may not hold the segments . and .., however they are written.")
    return raw.removeprefix(_PREFIX).decode("ascii")
