"""Admission: whether the principal of a request may ask this route, before the route hears of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from toolway.errors import Forbidden
from toolway.server.caller import principal_of
from toolway.server.envelopes import send_error
from toolway.server.websocket import in_place_of_upgrade
from toolway.types import Principal

FOR_EVERYBODY = frozenset({"/", "/healthz", "/readyz"})
"""Routes that any key opens."""

MODELS = "/v1/models"
"""What there is to ask for is told to all who may ask for one."""

_OF_MODELS = frozenset({"chat", "responses", "messages", "passthrough"})
_PASSED_ON = frozenset({"passthrough"})
_ROOTS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1": "passthrough",
    "/mcp": "mcp",
    "/console": "console",
    "/metrics": "console",
}
"""The family of the routes at and below a path; the first that fits. All others are tools of the REST service."""


def families_of(path: str) -> frozenset[str]:
    """The families of routes of which a key must have one to ask for this path, written as the routes are."""
    if is_below(path, MODELS):
        return _OF_MODELS
    return frozenset({next((family for root, family in _ROOTS.items() if is_below(path, root)), "rest")})


def is_below(path: str, root: str) -> bool:
    """Whether a path is this one, or one below it."""
    return path == root or path.startswith(f"{root}/")


def may_ask(principal: Principal, path: str, is_passed_on: bool) -> bool:
    """Whether a key may ask for this path."""
    if principal.routes is None or path in FOR_EVERYBODY:
        return True
    families = _PASSED_ON if is_passed_on and not is_below(path, MODELS) else families_of(path)
    return bool(families & principal.routes)


class Admission:
    """Lets the handler of a request have it, if its principal may."""

    async def run(
        self, handler: ASGIApp, scope: Scope, receive: Receive, send: Send, *, is_passed_on: bool
    ) -> None:
        """Handle a request that came with a key; `is_passed_on` says that its handler is the passthrough."""
        if may_ask(principal_of(scope), scope["path"], is_passed_on):
            await handler(scope, receive, send)
            return
        if scope["type"] == "websocket":
            send = in_place_of_upgrade(scope, send)
        refused = Forbidden("This API key may not use this route.", code="route_not_allowed")
        await send_error(scope, send, refused)
