"""The ASGI app: every route on one page, what stands in front of them, and what lives as long as they do."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway import __version__
from toolway.api.chat.routes import ChatCompletions
from toolway.api.models import ModelList
from toolway.api.passthrough import Passthrough
from toolway.api.responses import (
    DEFAULT_PACE,
    Background,
    Drafts,
    Making,
    Pace,
    Records,
    Responses,
    Socket,
)
from toolway.app.reload import reloading
from toolway.engine.model_target import USER_AGENT, Backend
from toolway.engine.runner import Runner
from toolway.errors import ConfigError, NotFound, ToolwayError
from toolway.server.auth import AuthMiddleware
from toolway.server.json_response import send_error, send_json
from toolway.server.websocket import in_place_of_upgrade
from toolway.settings.settings import Settings, load_settings
from toolway.stores import Store, open_store
from toolway.tools.catalog import Catalog
from toolway.tools.client_servers.pool import DynamicServers
from toolway.tools.factory import SourceFactory, open_dynamic
from toolway.types import JSON
from toolway.upstream.client import Upstream, credential


@dataclass(frozen=True, kw_only=True)
class House:
    """What the routes share while the app runs."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    dynamic: DynamicServers
    store: Store
    backend: Backend


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """Connections and tool sources, for as long as the block lasts. Nothing is waited for."""
    async with (
        open_store(settings.store.url, ttl=settings.store.ttl, max_bytes=settings.store.max_bytes) as store,
        Upstream.connect(settings.upstream) as upstream,
    ):
        factory = SourceFactory(upstream)
        async with (
            Catalog(factory.sources(settings)).running() as catalog,
            reloading(settings, factory, catalog),
            open_dynamic(settings.tools) as dynamic,
            Backend(settings, upstream, catalog.set_target).learning() as backend,
        ):
            yield House(
                settings=settings,
                upstream=upstream,
                catalog=catalog,
                dynamic=dynamic,
                store=store,
                backend=backend,
            )


def create_app(settings: Settings | None = None, *, pace: Pace = DEFAULT_PACE) -> ASGIApp:
    """The app for these settings, by default those of the environment. Raises ConfigError."""
    settings = settings or load_settings()
    routes = Routes(settings, pace)
    return AuthMiddleware(
        Front(default=routes, lifespan=routes.lifespan, redirect_slashes=False), settings.server
    )


class Front(Router):
    """Tells a setting that turns out wrong at the start in its own sentence, where the base tells a traceback."""

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As the base class."""

        async def tell(message: Message) -> None:
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, ConfigError):
                message = {**message, "message": error.message}
            await send(message)

        await super().lifespan(scope, receive, tell)


class Routes:
    """(method, path) -> handler; under /v1 the rest goes to the model server.

    The method of a WebSocket is "WEBSOCKET"; `websocket.WEBSOCKET_PATHS` has the paths at which there can be one.
    """

    def __init__(self, settings: Settings, pace: Pace) -> None:
        self._settings = settings
        self._pace = pace
        self._exact: dict[tuple[str, str], ASGIApp] = {}
        self._below: dict[str, ASGIApp] = {}
        self._passthrough: ASGIApp = _not_open

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open the house, put up the routes."""
        async with open_house(self._settings) as house:
            runner = Runner(house.upstream, house.catalog, house.store, self._settings, house.backend)
            self._passthrough = Passthrough(house.upstream, self._settings)
            self._exact = {
                ("POST", "/v1/chat/completions"): ChatCompletions(runner),
                ("GET", "/healthz"): healthz,
                ("GET", "/readyz"): Readiness(house),
                ("GET", "/"): welcome,
            }
            if self._settings.tools.profiles:
                self._exact["GET", "/v1/models"] = ModelList(house.upstream, self._settings)
            if self._settings.responses.mode == "passthrough":
                yield
                return
            async with self._responses(house, runner):
                yield

    @asynccontextmanager
    async def _responses(self, house: House, runner: Runner) -> AsyncIterator[None]:
        """Put up the routes of the Responses API, and make responses in the background while the block lasts."""
        ttl = self._settings.responses.ttl
        records = Records(house.store, ttl=ttl)
        background = Background(
            records,
            house.store,
            ttl=ttl,
            most=self._settings.responses.max_background,
            keep_alive=self._settings.server.keepalive_interval,
            pace=self._pace,
        )
        making = Making(runner, records, Drafts(runner, records, house.dynamic))
        responses = Responses(making, background)
        self._exact["POST", "/v1/responses"] = self._exact["GET", "/v1/responses"] = responses
        self._exact["WEBSOCKET", "/v1/responses"] = Socket(making)
        self._below["/v1/responses/"] = responses
        async with background.running():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its handler."""
        if scope["type"] == "websocket":
            await self._upgrade(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if handler := self._exact.get(("GET" if method == "HEAD" else method, path)):
            await handler(scope, receive, send)
        elif below := next((app for root, app in self._below.items() if path.startswith(root)), None):
            await below(scope, receive, send)
        elif path.startswith("/v1/"):
            await self._passthrough(scope, receive, send)
        else:
            await send_error(
                send, NotFound(f"There is no {method} {path[:200]} here; the OpenAI API is under /v1.")
            )

    async def _upgrade(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if handler := self._exact.get(("WEBSOCKET", path)):
            await handler(scope, receive, send)
        else:
            refused = NotFound(f"There is no WebSocket at {path[:200]} here; send POST requests.")
            await send_error(in_place_of_upgrade(scope, send), refused)


async def healthz(scope: Scope, receive: Receive, send: Send) -> None:
    """200 as long as the process answers."""
    await send_json(send, 200, {"status": "ok"})


async def welcome(scope: Scope, receive: Receive, send: Send) -> None:
    """What this is, for people who open the address in a browser."""
    about = {"name": "toolway", "version": __version__, "openai_base_url": "/v1"}
    await send_json(send, 200, about)


class Readiness:
    """GET /readyz: 200 when the model server answers and each tool server was tried, else 503.

    A tool server that is down, or is being restarted, makes the state "degraded", still with 200: requests are
    served without its tools.
    """

    def __init__(self, house: House) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the model server for its models, look at the catalog."""
        upstream = await self._upstream_state()
        sources = self._house.catalog.sources
        servers = {source.label: source.status.state for source in sources}
        if upstream != "ready" or any(source.status.is_untried for source in sources):
            status = "not ready"
        else:
            status = (
                "ready" if all(state in ("ready", "stopped") for state in servers.values()) else "degraded"
            )
        body: JSON = {"status": status, "upstream": upstream, "servers": servers}
        # Tools of servers that requests declare are nobody else's business.
        if barred := [tool for tool in self._house.backend.barred if tool.server in servers]:
            body["refused_by_upstream"] = {tool.name: tool.reason for tool in barred}
        await send_json(send, 503 if status == "not ready" else 200, body)

    async def _upstream_state(self) -> str:
        headers = [USER_AGENT, *credential(self._house.settings.upstream.api_key)]
        try:
            async with self._house.upstream.request("GET", "/models", headers=headers) as answer:
                await answer.read(2**24)
                return "ready" if answer.status < 500 else f"answers {answer.status}"
        except ToolwayError:
            return "unreachable"


async def _not_open(scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(send, ToolwayError("Toolway is still starting; try again."))
