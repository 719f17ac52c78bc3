"""The sessions of /mcp: the SDK's Streamable HTTP in front of the catalog's server, and how many there may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from sse_starlette import EventSourceResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from toolway.access.policy import Policy
from toolway.api.mcp.exchanges import SESSION_IDLE, Exchanges
from toolway.api.mcp.relay import Context
from toolway.api.mcp.routes import CALLER, SEARCHES
from toolway.api.mcp.server import CatalogServer, asking
from toolway.server.caller import caller_id
from toolway.settings.settings import Settings
from toolway.tools.direct_tools import DirectTools
from toolway.tools.mcp.sdk_internals import (
    discard_session,
    owner_of_session,
    set_ping_interval,
    transports_of,
)
from toolway.types import Caller

MAX_SESSIONS = 2_000
"""Clients of the versions that have sessions (before 2026-07-28) at a time."""

MAX_SESSIONS_OF_CALLER = 500
"""Those of one key, or of one credential where there are no keys."""


@asynccontextmanager
async def open_sessions(
    direct_tools: DirectTools, policy: Policy, settings: Settings
) -> AsyncIterator[ASGIApp]:
    """The endpoint behind authentication: Host, Origin and key are checked already.

    With several workers nothing is remembered between requests, since the next one may reach another of them.
    """
    server = CatalogServer(direct_tools, policy, _caller, _searches)
    max_body, keep_alive = settings.server.max_body_bytes, settings.server.keepalive_interval
    _ping_every(keep_alive)
    manager = StreamableHTTPSessionManager(
        server,
        stateless=settings.server.workers > 1,
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=max_body,
        max_sessions=MAX_SESSIONS,
        session_idle_timeout=SESSION_IDLE,
    )
    endpoint = StreamableHTTPASGIApp(manager)

    async def owned(scope: Scope, receive: Receive, send: Send) -> None:
        """A session is only its owner's: whoever sent the credential that it began with."""
        token = AccessToken(token="", client_id=caller_id(scope), scopes=[])
        await endpoint({**scope, "user": AuthenticatedUser(token)}, receive, send)

    exchanges = Exchanges(
        server,
        transports_of(manager),
        owned,
        make_room=SessionBounds(manager).make_room,
        max_body=max_body,
        keep_alive=keep_alive,
    )

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        """A caller reads nothing of tools that are not there for it, out of errors neither."""
        token = asking.set(scope[CALLER])
        try:
            await exchanges(scope, receive, send)
        finally:
            asking.reset(token)

    async with manager.run(), server.running():
        yield answer


def _ping_every(seconds: float) -> None:
    """Have the SDK's streams pinged as often as ours, for which it has constants only."""
    setattr(EventSourceResponse, "DEFAULT_PING_INTERVAL", seconds)  # noqa: B010 - of another type
    set_ping_interval(seconds)


def _caller(ctx: Context) -> Caller:
    request: Any = ctx.request
    caller: Caller = request.scope[CALLER]
    return caller


def _searches(ctx: Context) -> bool:
    return bool(ctx.request is not None and ctx.request.scope[SEARCHES])


class SessionBounds:
    """Makes room among the sessions of a manager. What may end is idle: it has neither a request nor a stream open."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        self._manager = manager

    async def make_room(self, caller: str) -> bool:
        """End what has to end before this caller (`caller_id`) may begin one more session; False: nothing may.

        Of a caller that has its number the session ends that was idle the longest. Where all together have theirs, it
        is one of the caller that has the most, so that nobody loses one to somebody with more.
        """
        while sessions := self._to_shrink(caller):
            idle = {i: scope.deadline for i, t in sessions.items() if (scope := t.idle_scope) is not None}
            first = min(idle, key=lambda identity: idle[identity], default="")
            if idle.get(first, inf) == inf:
                return False
            await discard_session(self._manager, first, sessions[first])
        return True

    def _to_shrink(self, caller: str) -> dict[str, StreamableHTTPServerTransport]:
        """The sessions of which one has to end; none where there is room."""
        by_owner: defaultdict[str, dict[str, StreamableHTTPServerTransport]] = defaultdict(dict)
        for identity, transport in transports_of(self._manager).items():
            by_owner[_owner(owner_of_session(self._manager, identity))][identity] = transport
        own = by_owner[_owner(caller)]
        if len(own) >= MAX_SESSIONS_OF_CALLER:
            return own
        if len(transports_of(self._manager)) >= MAX_SESSIONS:
            return max(by_owner.values(), key=len)
        return {}


def _owner(caller: str) -> str:
    """Whose number counts: the key's, whatever credentials for the model server come along."""
    return caller.partition(":")[0]
