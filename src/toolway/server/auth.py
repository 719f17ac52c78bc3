"""Who may use this server: Host, Origin and client keys, checked before any route."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.access.audit import Denials
from toolway.access.keys import KeyRing
from toolway.access.tokens import is_token
from toolway.dialects import MCP, is_below
from toolway.errors import Forbidden, InvalidRequest, ToolwayError, Unauthorized
from toolway.net.hosts import is_loopback, is_same_origin
from toolway.server.caller import CREDENTIALS, PRINCIPAL_KEY, key_in, place_of
from toolway.server.envelopes import send_error
from toolway.server.resource_metadata import WELL_KNOWN, answer_metadata, metadata_url
from toolway.server.revocation import IsValid, close_when_invalid, run_while_valid
from toolway.server.websocket import in_place_of_upgrade
from toolway.settings.settings import ServerSettings
from toolway.types import Header, Principal, record

OPEN_ROUTES = frozenset({"/healthz", "/docs"})
"""Routes that ask for no key. They say nothing about this installation."""

CONSOLE = "/console/"
"""What is below it asks for sessions, and checks them itself; the page at / that leads there says nothing either."""

_HEADER_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z, -]*")
_LISTENS = (b"mcp-method", b"subscriptions/listen")
"""What a POST to /mcp must say in its head that asks for an endless stream (MCP of 2026-07-28)."""
POLICY_VIOLATION = 1008
_GONE = "This API key was taken away or changed; connect again."
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


class AuthMiddleware:
    """ASGI middleware in front of every route. It looks at headers and `scope["path"]`, never at a URL.

    - Host must be one valid name that belongs to this server, or the answer is 400 or 403. This, with the
      next rule, stops DNS rebinding and other web pages' requests (CVE-2025-66416 and its kin).
    - Origin, when sent, must be the server's own or in `cors_origins`, or the answer is 403. Allowed other
      origins get CORS headers, without credentials in the sense of CORS: the console's cookie is for its own page.
    - With keys, one of them must come in `Authorization: Bearer`, `api-key` or `x-api-key`, or the
      answer is 401. Its header is taken out of the request here, so that nothing behind can pass it on;
      a credential that is not ours stays and may be meant for the model server.

    All of it holds for a WebSocket too, before it is one: browsers let any page open them.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        keys: KeyRing | None = None,
        denials: Denials | None = None,
    ) -> None:
        self._app = app
        self._denials = denials or Denials()
        self._keys = keys or KeyRing(settings.api_keys)
        self._authenticator = Authenticator(settings, self._keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guard(scope, receive, send)
        else:
            await self._guard_upgrade(scope, receive, send)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = self._authenticator.seen_in(scope["headers"])
        app = self._app
        try:
            origin = self._authenticator.check_origin(seen)
            if origin is not None:
                send = _with_cors(send, origin)
            if origin is not None and _is_preflight(scope):
                app = _answer_preflight
            elif self._keys.tokens and is_below(scope["path"], WELL_KNOWN):
                app = answer_metadata(self._keys.tokens.provider)
            elif self._keys.is_closed and scope["path"] not in OPEN_ROUTES and not _is_for_console(scope):
                scope = await self._authenticated(scope, seen)
        except ToolwayError as error:
            self._denials.note(error, where=place_of(scope))
            await send_error(scope, send, error, self._challenge(scope, error))
        else:
            if _may_last(scope):
                still = partial(self._is_still, scope, seen)
                await run_while_valid(app, scope, receive, send, is_valid=still, keys=self._keys)
            else:
                await app(scope, receive, send)

    async def _guard_upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = self._authenticator.seen_in(scope["headers"])
        try:
            self._authenticator.check_origin(seen)
            if self._keys.is_closed:
                scope = await self._authenticated(scope, seen)
        except ToolwayError as error:
            self._denials.note(error, where=place_of(scope))
            await send_error(scope, in_place_of_upgrade(scope, send), error, self._challenge(scope, error))
        else:
            await self._run_websocket(scope, receive, send, partial(self._is_still, scope, seen))

    async def _run_websocket(self, scope: Scope, receive: Receive, send: Send, is_valid: IsValid) -> None:
        """Have the app talk until its client's key is taken away or changed."""

        async def close() -> None:
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": _GONE})

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and not await is_valid():
                await close()
                return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
            return message

        await close_when_invalid(lambda: self._app(scope, receive_checked, send), close, is_valid, self._keys)

    async def _is_still(self, scope: Scope, seen: Sequence[Header]) -> bool:
        """Whether the key of a connection, or none, may still do what it could when that was opened."""
        if not self._keys.is_closed:
            return PRINCIPAL_KEY not in scope
        try:
            now = await self._authenticated(scope, seen)
        except ToolwayError:
            return False
        return bool(now[PRINCIPAL_KEY] == scope.get(PRINCIPAL_KEY))

    def _challenge(self, scope: Scope, error: ToolwayError) -> list[Header]:
        """What an answer 401 asks for, and where a token is to be had (RFC 9728)."""
        if not isinstance(error, Unauthorized):
            return []
        parts = ['error="invalid_token"'] if error.code in ("invalid_token", "expired_token") else []
        if self._keys.tokens:
            parts.append(f'resource_metadata="{metadata_url(self._keys.tokens.provider, scope)}"')
        return [(b"www-authenticate", " ".join(["Bearer", ", ".join(parts)]).strip().encode())]

    async def _authenticated(self, scope: Scope, seen: Sequence[Header]) -> Scope:
        """The scope without the headers that hold our key, and with whose key it is."""
        principal, ours = self._authenticator.find_keys(seen)
        headers = [header for header in scope["headers"] if header not in ours]
        if principal is None and self._keys.tokens:
            for header in seen:
                if header[0] in CREDENTIALS and is_token(token := key_in(header)):
                    principal = await self._keys.tokens.find(token)
                    headers = [other for other in headers if other != header]
                    break
        if principal is None:
            raise Unauthorized(
                "Missing or unknown API key: send a key of this server as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        return {**scope, "headers": headers, PRINCIPAL_KEY: principal}


def wants_page(scope: Scope) -> bool:
    """Whether a browser asks for the page at /; a program gets JSON there."""
    return (
        scope["path"] == "/"
        and scope["method"] in ("GET", "HEAD")
        and any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])
    )


def _may_last(scope: Scope) -> bool:
    """Whether an answer may be an event stream that goes on for ever; the console looks after its own."""
    if scope["method"] == "GET":
        return not _is_for_console(scope)
    return is_below(scope["path"], MCP.path) and _LISTENS in scope["headers"]


def _is_for_console(scope: Scope) -> bool:
    return scope["path"].startswith(CONSOLE) or wants_page(scope)


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


async def _answer_preflight(scope: Scope, receive: Receive, send: Send) -> None:
    """Allow every method and every header that the browser asks for: Authorization, x-stainless-* and all."""
    asked = dict(scope["headers"])
    headers = [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
    wanted = asked.get(b"access-control-request-headers", b"")
    if wanted and _HEADER_NAMES.fullmatch(wanted):
        headers.append((b"access-control-allow-headers", wanted))
    if asked.get(b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _with_cors(send: Send, origin: bytes) -> Send:
    headers = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"Origin"),
    ]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return send_with_cors


_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?)(:[0-9]{1,5})?")
_CHECKED = CREDENTIALS | {b"host", b"origin"}


class FoundKeys(NamedTuple):
    """Whose key came with a request, and the headers that hold keys of ours."""

    principal: Principal | None
    headers: list[Header]


@record
class AuthenticatedHead:
    """The head of a request that was authenticated: its scope as those behind see it, and by which keys."""

    scope: Scope
    seen: list[Header]
    keys: FoundKeys | None
    """None where nobody needs one."""


class Authenticator:
    """Checks Host, Origin and keys for one server. Which keys there are may change while it runs; nothing else does."""

    def __init__(self, settings: ServerSettings, keys: KeyRing) -> None:
        self._keys = keys
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._is_our_host = lru_cache(maxsize=256)(_host_rule(settings, keys))

    @staticmethod
    def seen_in(headers: Iterable[Header]) -> list[Header]:
        """The headers that are looked at here."""
        return [header for header in headers if header[0] in _CHECKED]

    def check_origin(self, seen: Sequence[Header]) -> bytes | None:
        """The origin to name in CORS headers; None when there is none, or it is this server's own.

        Raises InvalidRequest without one valid Host, Forbidden for a Host or an Origin that may not be.
        """
        host = self._check_host(seen)
        origins = [value for name, value in seen if name == b"origin"]
        if not origins:
            return None
        origin = origins[0].lower()
        if len(origins) == 1 and origin != b"null":
            if is_same_origin(origin, host):
                return None
            if origin in self._origins:
                return origins[0]
            if b"*" in self._origins:
                return b"*"
        raise Forbidden(
            "Web pages of this origin may not use this server; if they should, add the origin to "
            "TOOLWAY_CORS_ORIGINS.",
            code="origin_not_allowed",
        )

    def _check_host(self, seen: Iterable[Header]) -> bytes:
        hosts = [value for name, value in seen if name == b"host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise InvalidRequest(
                "The request must have one Host header that names a host.", code="invalid_host"
            )
        if not self._is_our_host(hosts[0]):
            raise Forbidden(
                f"This server is not called {hosts[0].decode()}; if it should be, add that name to "
                "TOOLWAY_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )
        return hosts[0]

    def find_keys(self, seen: Iterable[Header]) -> FoundKeys:
        """The keys that came with a request. Raises Unauthorized for an old one."""
        principal: Principal | None = None
        ours: list[Header] = []
        for header in seen:
            if header[0] in CREDENTIALS and (found := self._keys.find(key_in(header))):
                principal = principal or found
                ours.append(header)
        return FoundKeys(principal, ours)

    def authenticate_head(self, scope: Scope) -> AuthenticatedHead | None:
        """Authenticate a head whose answers need no headers of their own for CORS; None for all others.

        Others are whoever has a token of an identity provider, which may have to be asked, and pages of other origins.
        """
        seen = self.seen_in(scope["headers"])
        try:
            if self.check_origin(seen) is not None:
                return None
            keys = self.find_keys(seen) if self._keys.is_closed else None
        except ToolwayError:
            return None
        if keys is None:
            return AuthenticatedHead(scope=scope, seen=seen, keys=None)
        if keys.principal is None:
            return None
        headers = [header for header in scope["headers"] if header not in keys.headers]
        return AuthenticatedHead(
            scope={**scope, "headers": headers, PRINCIPAL_KEY: keys.principal}, seen=seen, keys=keys
        )

    def is_still_valid(self, head: AuthenticatedHead) -> bool:
        """Whether a head would be authenticated as the same again: its key may have been taken away or changed."""
        try:
            return (self.find_keys(head.seen) if self._keys.is_closed else None) == head.keys
        except ToolwayError:
            return False


def _host_rule(settings: ServerSettings, keys: KeyRing) -> Callable[[bytes], bool]:
    """Is this Host header one of this server's names?

    Loopback names and the bound host always are. On an exposed address so is any IP address: rebinding needs
    a name. With keys, and no list of names, any name is: a page that rebinds its name holds no key.
    """
    listed = frozenset(settings.allowed_hosts)
    suffixes = tuple(name[1:] for name in listed if name.startswith("*."))
    any_name = "*" in listed or bool(settings.is_exposed and keys.is_closed and not listed)

    def is_ours(header: bytes) -> bool:
        whole = header.decode().lower()
        name = re.sub(r":\d+$", "", whole).rstrip(".")
        if any_name or is_loopback(name) or name.strip("[]") == settings.host.lower():
            return True
        if settings.is_exposed and _is_address(name):
            return True
        return name in listed or whole in listed or name.endswith(suffixes)

    return is_ours


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
