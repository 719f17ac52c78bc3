"""Admission: whether the principal of a request may ask this route, before the route hears of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.access.audit import Denials
from toolway.access.quotas import Meter
from toolway.dialects import DIALECTS, REST, is_below
from toolway.errors import Forbidden, OverQuota, QuotasUnknown
from toolway.server.caller import PRINCIPAL_KEY, place_of, principal_of
from toolway.server.envelopes import send_error
from toolway.server.websocket import in_place_of_upgrade
from toolway.types import Header, Principal

METER = "toolway.meter"
"""The scope's key for the `Meter` of a principal with quotas."""

UNCOUNTED = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that are no work."""

USAGE_BYTES = 16_384
"""Of the end of an answer, where its usage stands."""

_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')

FOR_EVERYBODY = frozenset({"/", "/healthz", "/readyz"})
"""Routes that any key opens."""

MODELS = "/v1/models"
"""What there is to ask for is told to all who may ask for one."""

_PASSTHROUGH = frozenset({"passthrough"})
_MODEL_ROUTES = _PASSTHROUGH | {dialect.name for dialect in DIALECTS if dialect.asks_models}
_ROOTS = {path: dialect.name for dialect in DIALECTS for path in dialect.paths}
_FAMILIES = {**_ROOTS, "/v1": "passthrough", "/console": "console", "/metrics": "console"}
"""The family of the routes at and below a path; the first that fits. All others are tools of the REST service."""


def family_of(path: str) -> str:
    """The family of a path that is written as the routes are."""
    return next((family for root, family in _FAMILIES.items() if is_below(path, root)), REST.name)


def may_ask(principal: Principal, method: str, path: str, is_passed_on: bool) -> bool:
    """Whether a key may ask for this path."""
    routes = principal.routes
    if routes is None or path in FOR_EVERYBODY:
        return True
    return not routes.isdisjoint(_families(method, path, is_passed_on))


@lru_cache(maxsize=1024)
def _families(method: str, path: str, is_passed_on: bool) -> frozenset[str]:
    """The families of which one opens a path."""
    if is_below(path, MODELS):
        return _MODEL_ROUTES if method in ("GET", "HEAD") else _PASSTHROUGH
    return _PASSTHROUGH if is_passed_on else frozenset({family_of(path)})


class Admission:
    """Lets the handler of a request have it, if its principal may, and counts it against the principal's quotas."""

    def __init__(self, meter: Meter, denials: Denials) -> None:
        self._meter = meter
        self._denials = denials

    async def run(
        self, handler: ASGIApp, scope: Scope, receive: Receive, send: Send, *, is_passed_on: bool
    ) -> None:
        """Handle a request that came with a key; `is_passed_on` says that its handler is the passthrough."""
        principal = principal_of(scope)
        is_socket = scope["type"] == "websocket"
        method = "GET" if is_socket else scope["method"]
        if not may_ask(principal, method, scope["path"], is_passed_on):
            if is_socket:
                send = in_place_of_upgrade(scope, send)
            denied = Forbidden("This API key may not use this route.", code="route_not_allowed")
            self._denials.note(denied, principal.name, place_of(scope))
            await send_error(scope, send, denied)
            return
        if principal.quotas:
            scope = {**scope, METER: self._meter}
            if is_passed_on and principal.token_quotas:
                handler = _counting(handler, partial(self._meter.spend, principal))
        if not principal.quotas or is_socket or method in UNCOUNTED:
            await handler(scope, receive, send)
            return
        try:
            async with self._meter.request(principal) as headers:
                await handler(scope, receive, _with_headers(send, headers))
        except (OverQuota, QuotasUnknown) as error:
            await send_error(scope, send, error)


def may_skip_admission(scope: Scope) -> bool:
    """Whether `Admission.run` would do nothing with this request but hand it to its handler, which is ours."""
    if PRINCIPAL_KEY not in scope:
        return True
    principal = principal_of(scope)
    return not principal.quotas and may_ask(principal, scope["method"], scope["path"], is_passed_on=False)


def request_slot(scope: Scope) -> AbstractAsyncContextManager[Any]:
    """In which a request runs that is one of many on its connection. Raises OverQuota and QuotasUnknown."""
    return scope[METER].request(principal_of(scope)) if METER in scope else nullcontext()


def call_slot(scope: Scope) -> AbstractAsyncContextManager[None]:
    """In which a call of a tool runs that a client asks for itself. Raises OverQuota and QuotasUnknown."""
    return scope[METER].call(principal_of(scope)) if METER in scope else nullcontext()


def _with_headers(send: Send, headers: Sequence[Header]) -> Send:
    """`send`, which tells what is left of the quotas in place of what the model server tells of its own."""
    if not headers:
        return send

    def send_with_headers(message: Message) -> Awaitable[None]:  # no coroutine: it stands before each event
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*_without(message.get("headers", ()), headers), *headers]}
        return send(message)

    return send_with_headers


def _without(headers: Iterable[Header], others: Sequence[Header]) -> Iterable[Header]:
    """The headers but for those of which there are others."""
    found = [header for header in headers if header[0][:12] == b"x-ratelimit-"]
    names = {name for name, _ in others} if found else ()
    return (
        [header for header in headers if header not in found or header[0] not in names] if found else headers
    )


def _counting(handler: ASGIApp, spend: Callable[[int], None]) -> ASGIApp:
    """`handler`, of whose answer the tokens are counted that the model server says it took."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        end = b""

        async def send_counted(message: Message) -> None:
            nonlocal end
            end = (end + message.get("body", b""))[-USAGE_BYTES:]
            await send(message)

        # What is compressed cannot be read on its way.
        headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
        try:
            await handler({**scope, "headers": headers}, receive, send_counted)
        finally:
            spend(int(found[-1]) if (found := _TOTAL.findall(end)) else end.count(b"\ndata:"))

    return handle
