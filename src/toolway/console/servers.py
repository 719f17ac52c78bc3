"""The tool servers: their states and how they came about, what they write, and starting them anew."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from toolway.console.context import ConsoleContext
from toolway.console.overview import summary_of
from toolway.console.routes import ConsoleRequest, Route
from toolway.errors import InvalidRequest, NotFound, SourceError
from toolway.settings.mcp_server import RemoteServerConfig
from toolway.tools.factory import login_store
from toolway.tools.pins import PinnedSource
from toolway.types import JSON, SourceStatus, ToolSource

log = logging.getLogger("toolway.console")

MAX_CHANGES = 100
LOGIN_SECONDS = 300.0
PAGE_SECONDS = 20.0
"""How long a server has to say where its users log in."""


@dataclass
class _Story:
    """What became of one server, the newest last."""

    changes: deque[JSON] = field(default_factory=lambda: deque(maxlen=MAX_CHANGES))
    seen: tuple[object, ...] = ()

    def note(self, status: SourceStatus) -> bool:
        now = (status.state, len(status.tools), status.error, status.error_stage)
        if now == self.seen:
            return False
        self.seen = now
        self.tell(status.state, len(status.tools), status.error_stage, status.error)
        return True

    def tell(self, state: str, tools: int, stage: str | None, error: str | None) -> None:
        self.changes.append(
            {"at": time.time(), "state": state, "tools": tools, "stage": stage, "error": error}
        )


class Servers:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext, tasks: TaskGroup) -> None:
        self._context = context
        self._tasks = tasks
        self._stories: defaultdict[str, _Story] = defaultdict(_Story)
        self.notice()

    def routes(self) -> list[Route]:
        """The routes of the servers."""
        return [
            Route(method="GET", path="/servers", handler=self._list, summary="Every tool server and its state."),
            Route(method="GET", path="/servers/{}", handler=self._one,
                  summary="One tool server: its state, how it came about, its tools, and what it writes."),
            Route(method="POST", path="/servers/{}/restart", handler=self._restart,
                  summary="End a server if it runs, and start it."),
            Route(method="POST", path="/servers/{}/stop", handler=self._stop,
                  summary="End a server; its tools are away until it is started again."),
            Route(method="POST", path="/servers/{}/login", handler=self._login,
                  summary="Begin to ask a remote server for access; answers where to allow it in the browser."),
        ]  # fmt: skip

    def notice(self) -> None:
        """Look at what has become of each server."""
        sources = self._context.catalog.sources
        for source in sources:
            self._stories[source.label].note(source.status)
            self._listen(source.label)
        for label in self._stories.keys() - {source.label for source in sources}:
            del self._stories[label]

    def _listen(self, label: str) -> None:
        output = self._context.output.get(label)
        if output and output.on_line is None:
            feed, topic = self._context.feed, f"log:{label}"

            def tell(at: float, text: str) -> None:
                if feed.is_watched(topic):
                    feed.publish(topic, {"at": at, "text": text})

            output.on_line = tell

    def _source(self, request: ConsoleRequest) -> ToolSource:
        label = request.names[0]
        for source in self._context.catalog.sources:
            if source.label == label:
                return source
        raise NotFound("There is no tool server of this name.")

    async def _list(self, _: ConsoleRequest) -> JSON:
        return {
            "servers": [summary_of(source) for source in self._context.catalog.sources],
            "disabled": list(self._context.config.settings.tools.disabled),
            "file": str(self._context.config.path),
            "may_edit": self._context.settings.console.edit,
        }

    async def _one(self, request: ConsoleRequest) -> JSON:
        source = self._source(request)
        output = self._context.output.get(source.label)
        snapshot = self._context.catalog.snapshot
        names = {tool: name for name, tool in snapshot.tools.items()}
        return {
            **summary_of(source),
            "changes": list(self._stories[source.label].changes),
            "offers": [
                {
                    "name": names.get(tool, tool.name),
                    "description": tool.description,
                    "available": tool.available,
                }
                for tool in source.status.tools
            ],
            "has_output": output is not None,
            "output": [{"at": at, "text": text} for at, text in (output.lines if output else ())],
            "is_in_file": any(
                server.label == source.label for server in self._context.config.settings.tools.servers
            ),
            "is_pinned": isinstance(source, PinnedSource) and source.is_pinned,
            "can_login": self._remote(source.label) is not None,
        }

    async def _restart(self, request: ConsoleRequest) -> JSON:
        source = self._source(request)
        self._context.catalog.restart(source)
        return summary_of(source)

    async def _stop(self, request: ConsoleRequest) -> JSON:
        source = self._source(request)
        self._context.catalog.stop(source)
        return summary_of(source)

    def _remote(self, label: str) -> RemoteServerConfig | None:
        servers = self._context.config.settings.tools.servers
        return next((s for s in servers if isinstance(s, RemoteServerConfig) and s.label == label), None)

    async def _login(self, request: ConsoleRequest) -> JSON:
        """The browser comes back to a port of this machine, so this is for who sits at it."""
        source, server = self._source(request), self._remote(request.names[0])
        if server is None:
            raise InvalidRequest("Only a server of the mcp.json that has a url can be logged in at.")
        if self._context.settings.server.is_exposed:
            raise InvalidRequest(
                "The browser must come back to the machine that Toolway runs on: run "
                f"`toolway login {source.label}` there."
            )
        page: str | None = None
        failed: str | None = None
        ready = anyio.Event()

        async def ask() -> None:
            from toolway.tools.mcp.oauth import login  # noqa: PLC0415 - loads httpx2

            nonlocal failed

            async def show(url: str) -> None:
                nonlocal page
                page = url
                ready.set()

            try:
                with anyio.move_on_after(LOGIN_SECONDS):
                    await login(server, show, login_store(self._context.settings.tools))
                    self._context.catalog.restart(source)
            except SourceError as error:
                failed = error.message
            except Exception:  # the border of this task: a login that fails is no reason to end the console
                log.exception("the login at %s failed", source.label)
                failed = "The login failed; the log says why."
            if failed and ready.is_set():  # who began it looks at the page of the login now
                self._stories[source.label].tell(source.status.state, 0, "login", failed)
                self._context.feed.publish("state", {})
            ready.set()

        self._tasks.start_soon(ask)
        with anyio.move_on_after(PAGE_SECONDS):
            await ready.wait()
        if page is None:
            raise InvalidRequest(failed or "The server did not say where its users log in.")
        return {"page": page}
