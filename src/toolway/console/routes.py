"""The console as an ASGI app: the page, its files, and every route of its API on one page."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any
from urllib.parse import parse_qsl, unquote

from starlette.types import Receive, Scope, Send

from toolway.console.access import NO_SESSION, Access, Session
from toolway.console.event_feed import EventFeed
from toolway.errors import InvalidRequest, MethodNotAllowed, NotFound, Stopping, ToolwayError, to_public_error
from toolway.server.asgi import (
    ClientGone,
    EventStreamResponse,
    parse_object,
    read_body,
    send_json,
    send_whole,
    stream_events,
)
from toolway.server.cancellation import SHUTDOWN, error_at_stop
from toolway.server.envelopes import send_error
from toolway.server.revocation import run_while_valid
from toolway.types import JSON, Header

log = logging.getLogger("toolway.console")

API = "/console/api"
MAX_BODY, MAX_CHAT = 8 * 2**20, 64 * 2**20
KEEP_ALIVE = 15.0
MAX_TOPICS = 10


@dataclass(frozen=True, kw_only=True)
class ConsoleRequest:
    """One request to the API: who sent it, the names in its path, its query, its body."""

    scope: Scope
    receive: Receive
    send: Send
    session: Session
    names: Sequence[str] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    given: JSON = field(default_factory=dict)
    """The body, where an event stream answers it."""

    async def body(self, limit: int = MAX_BODY) -> JSON:
        """The JSON object in the body. Raises InvalidRequest, TooLarge, ClientGone."""
        return parse_object(await read_body(self.scope, self.receive, limit))


@dataclass(frozen=True, kw_only=True)
class ConsoleResponse:
    """An answer with more to it than JSON and a 200."""

    value: Any = None
    status: int = 200
    headers: Sequence[Header] = ()


def limit_of(query: Mapping[str, str], default: int, most: int) -> int:
    """How many a request wants to have at once, `most` at the most. Raises InvalidRequest."""
    text = query.get("limit", str(default))
    digits = text.lstrip("0") if text.isascii() and text.isdigit() else ""
    if not digits or len(digits) > len(str(most)) or int(digits) > most:
        raise InvalidRequest(f"limit must be a number from 1 to {most}.", param="limit")
    return int(digits)


Handler = Callable[[ConsoleRequest], Awaitable[Any]]
"""Answers a request: with JSON, or a dataclass that becomes JSON, or a ConsoleResponse."""
Streamer = Callable[[ConsoleRequest, EventStreamResponse], Awaitable[None]]
"""Answers a request with an event stream."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route below /console/api; `{}` in its path stands for a name. `summary` is for its documentation."""

    method: str
    path: str
    summary: str
    handler: Handler | None = None
    streamer: Streamer | None = None
    is_open: bool = False
    """Whether it asks for no session."""
    query: Mapping[str, str] = field(default_factory=dict)
    """The parameters of its query, and what each means."""
    body: Mapping[str, JSON] = field(default_factory=dict)
    """The members of its body, and the JSON Schema of each."""
    answer: str = ""
    """What it answers, for its documentation."""

    def match(self, path: str) -> tuple[str, ...] | None:
        """The names in a path, still percent-encoded, that is this route's."""
        pattern = re.escape(self.path).replace(r"\{\}", "([^/]+)")
        found = re.fullmatch(pattern, path)
        return tuple(unquote(name) for name in found.groups()) if found else None


class Console:
    """The app: everything below /console/, and the page at /."""

    def __init__(self, access: Access, feed: EventFeed, routes: Sequence[Route]) -> None:
        self._access = access
        self._feed = feed
        self.routes = (*self._own_routes(), *routes)

    def _own_routes(self) -> list[Route]:
        return [
            Route(
                method="GET", path="/session", summary="Who asks, and the token that changes need.",
                handler=self._session, is_open=True,
            ),
            Route(
                method="POST", path="/session", summary="Exchange a key for a session.",
                body={"key": {"type": "string"}}, handler=self._sign_in, is_open=True,
            ),
            Route(method="DELETE", path="/session", summary="End the session.", handler=self._sign_out),
            Route(
                method="GET", path="/events", streamer=self._events,
                summary="What happens, by topic, as server-sent events that go on where they broke off.",
                query={
                    "topics": "state, conversations, conversation:ID, approvals, call:WATCH and log:SERVER, "
                    "separated by commas",
                    "after": "the id of the last event that came; the header Last-Event-ID does the same",
                },
                answer="Each event is a list of its topic and a value. The event `reset` says that some were lost.",
            ),
        ]  # fmt: skip

    def add(self, route: Route) -> None:
        """Have one more route."""
        self.routes = (*self.routes, route)

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page, for a browser at /."""
        await _send_asset(scope, send, PAGE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request below /console/. Errors go out in OpenAI's envelope."""
        try:
            path, method = scope["path"], scope["method"]
            if not path.startswith(f"{API}/"):
                if method not in ("GET", "HEAD"):
                    raise MethodNotAllowed(method, scope["path"], ["GET", "HEAD"])
                await _send_asset(scope, send, path.removeprefix("/console/"))
                return
            await self._api(scope, receive, send)
        except ToolwayError as error:
            await send_error(scope, send, error, SAFETY_HEADERS)
        except ClientGone:
            return
        except Exception as raised:
            await send_error(scope, send, to_public_error(raised), SAFETY_HEADERS)

    async def _api(self, scope: Scope, receive: Receive, send: Send) -> None:
        route, names = self._route(scope)
        session = NO_SESSION if route.is_open else await self._access.check(scope)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        request = ConsoleRequest(
            scope=scope, receive=receive, send=send, session=session, names=names, query=query
        )
        if stream := route.streamer:
            if route.method == "POST":
                request = replace(request, given=await request.body(MAX_CHAT))

            async def answer(scope: Scope, receive: Receive, send: Send) -> None:
                async def produce(response: EventStreamResponse) -> None:
                    await _until_shutdown(scope, send, response, stream(request, response))

                await stream_events(scope, receive, send, produce, keep_alive=KEEP_ALIVE)

            if route.method == "GET":
                still = partial(self._access.is_still, scope, session)
                await run_while_valid(answer, scope, receive, send, is_valid=still, keys=self._access.ring)
            else:
                await answer(scope, receive, send)
            return
        assert route.handler is not None  # noqa: S101
        answer = await route.handler(request)
        response = answer if isinstance(answer, ConsoleResponse) else ConsoleResponse(value=answer)
        headers = [*SAFETY_HEADERS, (b"cache-control", b"no-store"), *response.headers]
        await send_json(send, response.status, response.value, headers)

    def _route(self, scope: Scope) -> tuple[Route, tuple[str, ...]]:
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").partition("?")[0].removeprefix(API)
        methods = []
        for route in self.routes:
            if (names := route.match(path)) is not None:
                if route.method == scope["method"]:
                    return route, names
                methods.append(route.method)
        if methods:
            raise MethodNotAllowed(scope["method"], scope["path"], methods)
        raise NotFound(f"There is no {scope['method']} {scope['path'][:200]} here.")

    async def _session(self, request: ConsoleRequest) -> JSON:
        try:
            session = await self._access.check(request.scope)
        except ToolwayError as error:
            may_sign_in = self._access.can_sign_in and self._access.needs_key
            return {"is_in": False, "can_sign_in": may_sign_in, "reason": error.message, "token": None}
        return {"is_in": True, "can_sign_in": bool(session.id), "reason": None, "token": session.token}

    async def _sign_in(self, request: ConsoleRequest) -> ConsoleResponse:
        key = (await request.body(64 * 1024)).get("key")
        if not isinstance(key, str) or not key:
            raise InvalidRequest("The body must be an object with the key.", param="key")
        session, cookie = self._access.sign_in(request.scope, key.strip())
        return ConsoleResponse(
            value={"is_in": True, "can_sign_in": True, "reason": None, "token": session.token},
            headers=[cookie],
        )

    async def _sign_out(self, request: ConsoleRequest) -> ConsoleResponse:
        return ConsoleResponse(value={"is_in": False}, headers=[await self._access.sign_out(request.session)])

    async def _events(self, request: ConsoleRequest, response: EventStreamResponse) -> None:
        topics = set(request.query.get("topics", "").split(",")[:MAX_TOPICS])
        given = dict(request.scope["headers"]).get(b"last-event-id", b"").decode("latin-1")
        await self._feed.stream(response, topics, given or request.query.get("after", ""))


async def _until_shutdown(scope: Scope, send: Send, response: EventStreamResponse, work: Any) -> None:
    """A stream that goes on for ever ends when the server is told to stop."""
    try:
        with error_at_stop(scope, SHUTDOWN):
            await work
    except Stopping:
        await response.end(b"")
    except InvalidRequest as error:
        await send_error(scope, send, error, SAFETY_HEADERS)


async def _send_asset(scope: Scope, send: Send, path: str) -> None:
    asset = assets().get(path)
    if asset is None:
        raise NotFound("There is no such file.")
    if any(name == b"if-none-match" and asset.etag in value for name, value in scope["headers"]):
        await send({"type": "http.response.start", "status": 304, "headers": list(asset.headers)})
        await send({"type": "http.response.body", "body": b""})
        return
    await send_whole(send, 200, asset.body, asset.headers)


MEDIA_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "mjs": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "txt": b"text/plain; charset=utf-8",
}
PAGE = "index.html"

SAFETY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
"""What every answer of the console says, so that no other page can use it."""

_IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file as it is answered."""

    body: bytes
    headers: tuple[Header, ...]
    etag: bytes


@cache
def assets() -> dict[str, Asset]:
    """Every file by its path below `static/`."""
    folder = resources.files("toolway.console") / "static"
    return {path: _asset(path, file.read_bytes()) for path, file in _walk(folder, "")}


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _walk(entry, f"{path}/")
        elif entry.name.rpartition(".")[2] in MEDIA_TYPES:
            found.append((path, entry))
    return found


def _asset(path: str, body: bytes) -> Asset:
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:20].encode()
    kind: Header = (b"content-type", MEDIA_TYPES[path.rpartition(".")[2]])
    # The browser asks each time whether its copy is the newest, and is told without the body.
    headers = (kind, (b"cache-control", b"no-cache"), (b"etag", etag), *SAFETY_HEADERS)
    if path == PAGE:
        headers += (
            (b"content-security-policy", content_security_policy(body.decode()).encode()),
            (b"vary", b"Accept"),
        )
    return Asset(body=body, headers=headers, etag=etag)


def content_security_policy(page: str) -> str:
    """The Content-Security-Policy of the page: what it consists of comes from here, and its import map is this one."""
    found = _IMPORT_MAP.search(page)
    digest = base64.b64encode(hashlib.sha256((found[1] if found else "").encode()).digest()).decode()
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' 'sha256-{digest}'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "media-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
