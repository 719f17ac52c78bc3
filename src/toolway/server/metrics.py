"""Metrics over HTTP: the requests that are counted, and where Prometheus reads the figures."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, make_asgi_app, start_http_server
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.errors import ConfigError
from toolway.settings.settings import MetricsSettings
from toolway.telemetry.metrics import DIRECTORY, HTTP_REQUESTS, INSTRUMENTS, AllWorkers


def count_request(method: str, route: str, status: int) -> None:
    """A request was answered."""
    HTTP_REQUESTS.add(method, route, str(status))


class CountedRequests:
    """ASGI middleware that counts requests by the route that `route_of` names for a path."""

    def __init__(self, app: ASGIApp, route_of: Callable[[str], str]) -> None:
        self._app = app
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its status is that of the answer's head."""

        # Not async: a stream would pay for one more frame at each event.
        def counting(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                count_request(method, self._route_of(scope["path"]), message["status"])
            return send(message)

        await self._app(scope, receive, counting if scope["type"] == "http" else send)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def metrics_app() -> ASGIApp:
    """The figures of all workers as an ASGI app, in the format that the scraper asks for."""
    app: ASGIApp = make_asgi_app(_registry())
    return app


@contextmanager
def exposition(settings: MetricsSettings, workers: int) -> Iterator[None]:
    """Around the serving process and its workers: their common directory, and the listener if there is one.

    Raises ConfigError when the address cannot be listened on.
    """
    directory = server = None
    if workers > 1:
        directory = os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="toolway-metrics-")
    try:
        if address := settings.own_address:
            try:
                server, _ = start_http_server(address[1], address[0], _registry())
            except OSError as error:
                raise ConfigError(
                    f"TOOLWAY_METRICS: cannot listen on {settings.address}: {error.strerror or error}."
                ) from None
        yield
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        if directory:
            del os.environ[DIRECTORY]
            shutil.rmtree(directory, ignore_errors=True)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(AllWorkers(INSTRUMENTS))
    return registry
