"""The ASGI app: every route on one page, and what stands in front of them."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anyio
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.access.audit import Denials
from toolway.access.keys import KeyRing
from toolway.access.quotas import Meter
from toolway.api.chat.chat_lane import ChatLane
from toolway.api.chat.routes import ChatCompletions
from toolway.api.mcp import McpEndpoint
from toolway.api.messages import Messages
from toolway.api.models import ModelList
from toolway.api.passthrough import Passthrough
from toolway.api.responses import (
    DEFAULT_PACE,
    Background,
    Pace,
    ResponseCreator,
    Responses,
    Socket,
    StoredResponses,
)
from toolway.api.rest import DocsPage, RestTools
from toolway.app.doctor import judge_running
from toolway.app.health import Readiness, healthz, welcome
from toolway.app.state import AppState, open_state
from toolway.console import open_console
from toolway.console.context import ConsoleContext
from toolway.console.conversation_recorder import ConversationRecorder
from toolway.console.event_feed import EventFeed
from toolway.conversation.events import Subscribe
from toolway.dialects import CHAT, MCP, MESSAGES, RESPONSES, REST
from toolway.engine.engine import Engine
from toolway.errors import ConfigError, MethodNotAllowed, NotFound, ToolwayError
from toolway.server.admission import Admission
from toolway.server.auth import CONSOLE, Authenticator, AuthMiddleware, wants_page
from toolway.server.caller import PRINCIPAL_KEY
from toolway.server.envelopes import plain_path, send_error
from toolway.server.lane_protocol import LANE
from toolway.server.websocket import in_place_of_upgrade
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings, UpstreamSettings
from toolway.telemetry.conversation_log import log_conversation, log_failure
from toolway.telemetry.logging import Redactor
from toolway.tools.direct_tools import DirectTools
from toolway.types import JSON, SourceStatus, Tool

if TYPE_CHECKING:
    from toolway.telemetry.tracing import Tracing

log = logging.getLogger("toolway.telemetry")


def create_app(settings: Settings | None = None, *, pace: Pace = DEFAULT_PACE) -> ASGIApp:
    """The app for these settings, by default those of the environment. Raises ConfigError."""
    settings = settings or load_settings()
    keys = KeyRing(settings.server.api_keys, settings.access)
    denials = Denials()
    routes = Routes(settings, pace, keys, denials)
    app: ASGIApp = LifespanRouter(default=routes, lifespan=routes.lifespan, redirect_slashes=False)
    app = AuthMiddleware(app, settings.server, keys, denials)
    if settings.metrics.address:
        from toolway.server.metrics import CountedRequests  # noqa: PLC0415 - needs 14 MB

        app = CountedRequests(app, routes.name_of)
    return app


class LifespanRouter(Router):
    """Speaks ASGI's lifespan: a setting that turns out wrong at the start is told in a sentence, not a traceback."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # type: ignore[override]
        """The lifespan is for the base class, which has no routes; all else is for the default."""
        return (super().__call__ if scope["type"] == "lifespan" else self.default)(scope, receive, send)

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the base class."""

        async def send_readable(message: Message) -> None:
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, ConfigError):
                message = {**message, "message": error.message}
            await send(message)

        await super().lifespan(scope, receive, send_readable)


class Routes:
    """(method, path) -> handler; under /v1 the rest goes to the model server.

    The method of a WebSocket is "WEBSOCKET"; `websocket.WEBSOCKET_PATHS` has the paths at which there can be one.
    """

    def __init__(self, settings: Settings, pace: Pace, keys: KeyRing, denials: Denials) -> None:
        self._settings = settings
        self._keys = keys
        self._denials = denials
        self._pace = pace
        self._exact: dict[tuple[str, str], ASGIApp] = {}
        self._below: dict[str, ASGIApp] = {}
        self._passthrough: ASGIApp = _not_open
        self._admission = Admission(Meter(), denials)

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[JSON]:
        """Open the app's state and put up the routes; yields what connections are to know: the fast lane."""
        traces = open_tracing(self._settings.upstream)
        async with (
            open_state(self._settings, self._keys, self._denials) as state,
            open_subscribers(state, traces) as subscribers,
            AsyncExitStack() as stack,
        ):
            feed = EventFeed()
            recorder = ConversationRecorder(
                self._settings.console,
                feed,
                state.store,
                shows_contents=self._settings.shows_contents,
                mask=Redactor(self._settings.secrets),
            )
            engine = Engine(
                settings=self._settings,
                upstream=state.upstream,
                catalog=state.catalog,
                client_servers=state.client_servers,
                store=state.store,
                target=state.target,
                policy=state.policy,
                vectors=state.vectors,
                meter=state.meter,
                subscribers=[*subscribers, *([recorder.subscribe] if self._settings.console.enabled else [])],
                on_failure=log_failure,
            )
            self._admission = Admission(state.meter, self._denials)
            self._passthrough = Passthrough(
                state.upstream, self._settings.upstream, self._settings.server.max_body_bytes
            )
            models = ModelList(state.upstream, self._settings, self._passthrough)
            messages = Messages(engine)
            self._below = {f"{MESSAGES.path}/": messages, "/v1/models/": models}
            self._exact = {
                ("POST", CHAT.path): ChatCompletions(engine),
                ("POST", MESSAGES.path): messages,
                ("GET", "/v1/models"): models,
                ("GET", "/healthz"): healthz,
                ("GET", "/readyz"): Readiness(state),
                ("GET", "/"): welcome,
            }
            if self._settings.metrics.address == "on":
                from toolway.server.metrics import metrics_app  # noqa: PLC0415 - needs 14 MB

                self._exact["GET", "/metrics"] = metrics_app()
            await stack.enter_async_context(self._direct_endpoints(state))
            if self._settings.console.enabled:
                await stack.enter_async_context(self._console(state, engine, recorder, feed))
            if self._settings.responses.mode != "passthrough":
                await stack.enter_async_context(self._responses(state, engine))
            yield self._lanes(engine, is_traced=traces is not None)

    def _lanes(self, engine: Engine, *, is_traced: bool) -> JSON:
        """The fast lane, for the HTTP protocol; none where requests are traced, since a trace belongs to a task."""
        if is_traced:
            return {}
        count: Callable[[], None] | None = None
        counted: ASGIApp | None = None
        app = self._exact["POST", ChatLane.path]
        if self._settings.metrics.address:
            from toolway.server.metrics import CountedRequests, count_request  # noqa: PLC0415 - needs 14 MB

            count = partial(count_request, "POST", ChatLane.path, 200)
            counted = CountedRequests(app, self.name_of)
        return {LANE: ChatLane(engine, Authenticator(self._settings.server, self._keys), app, count, counted)}

    @asynccontextmanager
    async def _direct_endpoints(self, state: AppState) -> AsyncIterator[None]:
        """Put up the routes of clients that call tools themselves."""
        direct_tools = DirectTools(state.catalog, timeout=self._settings.loop.tool_timeout)
        endpoint = McpEndpoint(direct_tools, state.policy, self._settings)
        self._exact |= {(method, MCP.path): endpoint for method in ("GET", "POST", "DELETE")}
        self._below[f"{MCP.path}/"] = endpoint
        rest = RestTools(direct_tools, self._settings, state.policy, lambda: self._keys.is_closed)
        self._exact["GET", "/openapi.json"] = self._below[f"{REST.path}/"] = rest
        self._exact["GET", "/docs"] = DocsPage()
        async with endpoint.running():
            yield

    @asynccontextmanager
    async def _console(
        self, state: AppState, engine: Engine, recorder: ConversationRecorder, feed: EventFeed
    ) -> AsyncIterator[None]:
        """Put up the console, while the block lasts."""

        async def judge() -> list[JSON]:
            return [finding.to_json() for finding in await judge_running(state)]

        context = ConsoleContext(
            settings=state.settings,
            upstream=state.upstream,
            catalog=state.catalog,
            factory=state.factory,
            config=state.config,
            store=state.store,
            keys=self._keys,
            policy=state.policy,
            engine=engine,
            recorder=recorder,
            feed=feed,
            judge=judge,
            paths=lambda: [path for _, path in self._exact],
        )
        async with open_console(context) as console:

            async def page_or_welcome(scope: Scope, receive: Receive, send: Send) -> None:
                await (console.page if wants_page(scope) else welcome)(scope, receive, send)

            self._exact["GET", "/"] = page_or_welcome
            self._below[CONSOLE] = console
            yield

    @asynccontextmanager
    async def _responses(self, state: AppState, engine: Engine) -> AsyncIterator[None]:
        """Put up the routes of the Responses API, and make responses in the background while the block lasts."""
        ttl = self._settings.responses.ttl
        records = StoredResponses(state.store, ttl=ttl)
        background = Background(
            records,
            state.store,
            ttl=ttl,
            most=self._settings.responses.max_background,
            keep_alive=self._settings.server.keepalive_interval,
            pace=self._pace,
        )
        creator = ResponseCreator(engine, records)
        responses = Responses(creator, background)
        self._exact["POST", RESPONSES.path] = responses
        self._exact["WEBSOCKET", RESPONSES.path] = Socket(creator)
        self._below[f"{RESPONSES.path}/"] = responses
        async with background.running():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its handler."""
        handler, scope = self._upgrade(scope) if scope["type"] == "websocket" else self._find(scope)
        if PRINCIPAL_KEY in scope:
            is_passed_on = handler is self._passthrough
            await self._admission.run(handler, scope, receive, send, is_passed_on=is_passed_on)
        else:
            await handler(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[ASGIApp, Scope]:
        """The handler of a request, and the request with its path written as the routes are."""
        path, method = scope["path"], scope["method"]
        if handler := self._handler(method, path):
            return handler, scope
        if other := self._spelled_otherwise(method, path):
            handler, path = other
            return handler, {**scope, "path": path}
        if methods := self._other_methods(method, _meant(path)):
            return partial(_method_not_allowed, methods), scope
        return (self._passthrough if path.startswith("/v1/") else _missing), scope

    def name_of(self, path: str) -> str:
        """The route that answers a path, in a form of which there are few."""
        if any(known == path for _, known in self._exact):
            return path
        root = next((root for root in self._below if path.startswith(root)), None)
        return f"{root}*" if root else "/v1/*" if path.startswith("/v1/") else "other"

    def _handler(self, method: str, path: str) -> ASGIApp | None:
        return self._exact.get(("GET" if method == "HEAD" else method, path))

    def _spelled_otherwise(self, method: str, path: str) -> tuple[ASGIApp, str] | None:
        """The handler of a path that is not written as the routes are, and the path as it is meant.

        Model servers take many spellings too. One that is ours in a single spelling is ours in all of them: what is
        passed on is answered without tools, and nobody sees why.
        """
        plain, name = plain_path(path), _meant(path)
        if handler := self._handler(method, name):
            return handler, name
        below = f"{plain.lower()}/" if path.endswith("/") else plain.lower()
        roots = (root for root in self._below if below.startswith(root))
        return next(((self._below[root], root + plain[len(root) :]) for root in roots), None)

    def _other_methods(self, method: str, name: str) -> list[str]:
        """What a route of ours is for, if this method is not the model server's to answer there."""
        if _is_passed_on(method, name):
            return []
        return sorted(known for known, path in self._exact if path == name and known != "WEBSOCKET")

    def _upgrade(self, scope: Scope) -> tuple[ASGIApp, Scope]:
        return self._exact.get(("WEBSOCKET", scope["path"]), _no_websocket), scope


def _meant(path: str) -> str:
    """The route that a path means; there are servers that take away the parameters of its segments (RFC 3986, 3.3)."""
    return plain_path(_PARAMETERS.sub("", unquote(path))).lower()


_PARAMETERS = re.compile(r";[^/\\]*")


def _is_passed_on(method: str, name: str) -> bool:
    """Whether a method at a route of ours is the model server's: OpenAI lists stored completions by such a GET."""
    return name == "/v1/models" or (name == CHAT.path and method in ("GET", "HEAD", "OPTIONS"))


async def _method_not_allowed(methods: Sequence[str], scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(scope, send, MethodNotAllowed(scope["method"], scope["path"], methods))


async def _missing(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotFound(f"There is no {scope['method']} {scope['path'][:200]} here; the APIs are under /v1.")
    await send_error(scope, send, error)


async def _no_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    error = NotFound(f"There is no WebSocket at {scope['path'][:200]} here; send POST requests.")
    await send_error(scope, in_place_of_upgrade(scope, send), error)


async def _not_open(scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(scope, send, ToolwayError("Toolway is still starting; try again."))


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def open_tracing(settings: UpstreamSettings) -> Tracing | None:
    """Traces, where OpenTelemetry's variables ask for them and its SDK is here. Raises ConfigError."""
    if not wants_traces(os.environ):
        return None
    try:
        from toolway.telemetry.tracing import Tracing  # noqa: PLC0415 - needs an extra
    except ImportError:  # machines set these variables for every program
        log.warning(
            "no traces: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER is set, but OpenTelemetry's SDK is not "
            'installed; install Toolway with the extra "otel"'
        )
        return None
    return Tracing(settings)


def wants_traces(env: Mapping[str, str]) -> bool:
    """Whether the environment says, in OpenTelemetry's variables, that traces are to be exported."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" and bool(exporter or any(env.get(name) for name in _ENDPOINTS))


@asynccontextmanager
async def open_subscribers(state: AppState, traces: Tracing | None) -> AsyncIterator[list[Subscribe]]:
    """The subscribers of each conversation; figures and traces are collected while the block lasts."""
    subscribers: list[Subscribe] = [log_conversation]

    def is_mcp(tool: Tool) -> bool:
        return any(s.label == tool.server and s.kind == "mcp" for s in state.catalog.sources)

    def statuses() -> list[tuple[str, SourceStatus]]:
        return [(source.label, source.status) for source in state.catalog.sources]

    if traces:
        traces.is_mcp = is_mcp
        subscribers.insert(0, traces.subscribe)  # so that the lines of the log are in the trace
    async with anyio.create_task_group() as tasks:
        if state.settings.metrics.address:
            from toolway.telemetry import metrics  # noqa: PLC0415 - needs 14 MB

            subscribers.append(metrics.ConversationMetrics)
            tasks.start_soon(metrics.sample, statuses)
        try:
            yield subscribers
        finally:
            tasks.cancel_scope.cancel()
            if traces:
                await anyio.to_thread.run_sync(traces.close)
