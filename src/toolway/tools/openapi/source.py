"""A service with an OpenAPI document as a tool source: it stays listed, fresh and callable, or says why not."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urljoin

import anyio

from toolway.errors import SourceError
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.groups import ToolSettings
from toolway.tools.openapi.build_request import RequestRefused, build_request
from toolway.tools.openapi.loader import DocumentReader, Place, candidate_places
from toolway.tools.openapi.results import read_result
from toolway.tools.openapi.security import Credentials
from toolway.tools.openapi.transport import Connections
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds between two tries of a source that failed; they double from the first to the last."""

log = logging.getLogger(__name__)


class OpenAPISource:
    """One endpoint. Its document may be mcpo's list of servers, each with a document of its own."""

    kind = "openapi"

    def __init__(self, endpoint: Endpoint, settings: ToolSettings) -> None:
        self.label = endpoint.label
        self._settings = settings
        self._connections = Connections()
        self._credentials = Credentials.of(endpoint)
        places = (
            (Place(url=endpoint.spec, base=endpoint.url or None),)
            if endpoint.spec
            else candidate_places(endpoint.url)
        )
        self._document = self._reader(places, endpoint.label)
        self._children: dict[str, DocumentReader] = {}
        self._status = SourceStatus()
        self._wake = anyio.Event()

    @property
    def status(self) -> SourceStatus:
        """The newest status; reading it costs nothing."""
        return self._status

    async def run(self, changed: Callable[[], None]) -> None:
        """Read the document now, again each `refresh_interval`, and with backoff while it cannot be read.

        At the end idle connections are closed; a call that is under way closes its own.
        """
        failures = 0
        with closing(self._connections):
            while True:
                self._wake = anyio.Event()
                await self._refresh(changed)
                failures = failures + 1 if self._is_broken() else 0
                with anyio.move_on_after(self._pause(failures)):
                    await self._wake.wait()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Send the tool's request; whatever the server does is a result. HTTP services report no progress."""
        try:
            request = build_request(tool.handle, arguments, self._credentials)
            answer = await self._connections.exchange(
                request, max_bytes=self._settings.max_tool_response_bytes
            )
        except RequestRefused as refusal:
            return ToolResult(text=str(refusal), is_error=True)
        except SourceError as error:
            if error.stage == "connect" and self._status.state == "ready":
                self._wake.set()
            return ToolResult(text=f"The server {tool.server} {error.message}", is_error=True)
        return read_result(answer)

    def _is_broken(self) -> bool:
        return self._status.state != "ready" or any(child.error for child in self._children.values())

    def _pause(self, failures: int) -> float:
        if failures == 0:
            return self._settings.refresh_interval
        return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16)) * random.uniform(0.75, 1.25)

    async def _refresh(self, changed: Callable[[], None]) -> None:
        try:
            await self._document.read()
            await self._read_children()
            status = self._new_status()
        except Exception as error:  # the border of a background task: a fault here must not end the source
            log.exception("%s: its document could not be read", self.label)
            status = self._failed(SourceError(f"could not be read: {type(error).__name__}", stage="parse"))
        if status != self._status:
            self._status = status
            changed()

    async def _read_children(self) -> None:
        """Read the servers that the document lists, side by side; when it is lost, so are they."""
        if self._document.error is not None:
            for child in self._children.values():
                child.mark_unavailable(self._document.error)
            return
        root, imported, known = self._document.url or "", self._document.imported, self._children
        listed = imported.children if imported and "://" in root else ()
        self._children = {name: known.get(name) or self._child(name, path, root) for name, path in listed}
        async with anyio.create_task_group() as tasks:
            for child in self._children.values():
                tasks.start_soon(child.read)

    def _child(self, name: str, path: str, root: str) -> DocumentReader:
        """A listed server: where the link leads, or (behind a proxy that hides a prefix) below the list itself."""
        urls = dict.fromkeys((urljoin(root, path), urljoin(root, f".{path}")))
        return self._reader([Place(url=url, base=url.removesuffix("/openapi.json")) for url in urls], name)

    def _reader(self, places: list[Place] | tuple[Place, ...], server: str) -> DocumentReader:
        return DocumentReader(
            places,
            server=server,
            credentials=self._credentials,
            settings=self._settings,
            connections=self._connections,
        )

    def _new_status(self) -> SourceStatus:
        if self._document.error is not None:
            return self._failed(self._document.error)
        readers = [self._document, *self._children.values()]
        imports = [reader.imported for reader in readers if reader.imported is not None]
        tools = self._tools()
        warnings = [warning for imported in imports for warning in imported.warnings]
        warnings += [str(child.error) for child in self._children.values() if child.error is not None]
        if not tools and not warnings:
            warnings.append("The document lists no operations")
        return SourceStatus(
            state="ready",
            tools=tools,
            protocol=imports[-1].protocol if imports else None,
            warnings=tuple(warnings),
        )

    def _failed(self, error: SourceError) -> SourceStatus:
        known = self._status
        same = (known.error, known.error_stage) == (error.message, error.stage)
        return SourceStatus(
            state="failed",
            tools=self._tools(),
            protocol=known.protocol,
            error=error.message,
            error_at=known.error_at if same else time.time(),
            error_stage=error.stage,
            warnings=known.warnings,
        )

    def _tools(self) -> tuple[Tool, ...]:
        readers = [self._document, *self._children.values()]
        return tuple(tool for reader in readers for tool in reader.tools)
