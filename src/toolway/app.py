"""The ASGI app: every route on one page, what stands in front of them, and what lives as long as they do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from toolway import __version__
from toolway.auth import Guard
from toolway.backend import USER_AGENT, Backend
from toolway.catalog import Catalog
from toolway.config import Settings, load_settings
from toolway.dialects.chat import ChatCompletions
from toolway.errors import NotFound, ToolwayError
from toolway.models import Models
from toolway.passthrough import Passthrough
from toolway.reload import reloading
from toolway.respond import send_error, send_json
from toolway.sources import open_workshop
from toolway.stores import Store, open_store
from toolway.types import JSON
from toolway.upstream import Upstream, credential


@dataclass(frozen=True, kw_only=True)
class House:
    """What the routes share while the app runs."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    store: Store
    backend: Backend


@asynccontextmanager
async def open_house(settings: Settings) -> AsyncIterator[House]:
    """Connections and tool sources, for as long as the block lasts. Nothing is waited for."""
    async with (
        open_store(settings) as store,
        Upstream.connect(settings) as upstream,
        open_workshop(settings, upstream) as workshop,
        Catalog(workshop.sources(settings)).running() as catalog,
        reloading(settings, workshop, catalog),
        Backend(settings, upstream, catalog.expect).learning() as backend,
    ):
        yield House(settings=settings, upstream=upstream, catalog=catalog, store=store, backend=backend)


def create_app(settings: Settings | None = None) -> ASGIApp:
    """The app for these settings, by default those of the environment. Raises ConfigError."""
    settings = settings or load_settings()
    routes = Routes(settings)
    return Guard(Router(default=routes, lifespan=routes.lifespan, redirect_slashes=False), settings)


class Routes:
    """(method, path) -> handler; under /v1 the rest goes to the model server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exact: dict[tuple[str, str], ASGIApp] = {}
        self._passthrough: ASGIApp = _not_open

    @asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Open the house, put up the routes."""
        async with open_house(self._settings) as house:
            self._passthrough = Passthrough(house.upstream, self._settings)
            self._exact = {
                ("POST", "/v1/chat/completions"): ChatCompletions(
                    house.upstream, house.catalog, house.store, self._settings, house.backend
                ),
                ("GET", "/healthz"): healthz,
                ("GET", "/readyz"): Readiness(house),
                ("GET", "/"): welcome,
            }
            if self._settings.profiles:
                self._exact["GET", "/v1/models"] = Models(house.upstream, self._settings)
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its handler."""
        path, method = scope["path"], scope["method"]
        if handler := self._exact.get(("GET" if method == "HEAD" else method, path)):
            await handler(scope, receive, send)
        elif path.startswith("/v1/"):
            await self._passthrough(scope, receive, send)
        else:
            await send_error(
                send, NotFound(f"There is no {method} {path[:200]} here; the OpenAI API is under /v1.")
            )


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
        if barred := self._house.backend.barred:
            body["refused_by_upstream"] = {tool.name: tool.reason for tool in barred}
        await send_json(send, 503 if status == "not ready" else 200, body)

    async def _upstream_state(self) -> str:
        headers = [USER_AGENT, *credential(self._house.settings.openai_api_key)]
        try:
            async with self._house.upstream.request("GET", "/models", headers=headers) as answer:
                await answer.read(2**24)
                return "ready" if answer.status < 500 else f"answers {answer.status}"
        except ToolwayError:
            return "unreachable"


async def _not_open(scope: Scope, receive: Receive, send: Send) -> None:
    await send_error(send, ToolwayError("Toolway is still starting; try again."))
