"""All tool sources -> one immutable snapshot of tools; the only place that knows what is available now."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import orjson

from toolway import names
from toolway.arguments import given, mismatch
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource

log = logging.getLogger("toolway.catalog")


class Snapshot:
    """The tools of one moment under the names that models see, sorted; it never changes.

    `tools` holds the unavailable ones too; `offered` those that can be called. The definitions that go to the
    model server are serialised once, here, and spliced into each request.
    """

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        owners = {tool: source for source in sources for tool in source.status.tools}
        self.tools = names.assign(owners)
        self.offered = {name: tool for name, tool in self.tools.items() if tool.available}
        self._owners = owners
        self._definitions = {
            name: orjson.Fragment(orjson.dumps(_definition(name, tool)))
            for name, tool in self.offered.items()
        }
        self.all_definitions = orjson.Fragment(orjson.dumps(list(self._definitions.values())))

    def definition(self, name: str) -> orjson.Fragment:
        """One tool as OpenAI's `tools` list wants it, already JSON."""
        return self._definitions[name]

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Check the arguments against the tool's schema, then run it. A failure is a result, never an exception."""
        arguments = given(tool, arguments)
        if fault := mismatch(tool, arguments):
            return ToolResult(text=fault, is_error=True)
        return await self._owners[tool].call(tool, arguments, on_progress)


class Catalog:
    """Runs every source side by side and keeps the newest snapshot of what they offer together."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        self.sources = tuple(sources)
        self.snapshot = Snapshot(self.sources)
        self._settled = anyio.Event()
        self._started = time.monotonic()
        self._seen: dict[str, SourceStatus] = {}
        self._notice()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Catalog]:
        """Run the sources while the block lasts. None of them is waited for; see `settled`."""
        self._started = time.monotonic()
        async with anyio.create_task_group() as group:
            for source in self.sources:
                group.start_soon(source.run, self._notice)
            try:
                yield self
            finally:
                group.cancel_scope.cancel()

    async def settled(self, within: float) -> bool:
        """Wait until each source has been tried once, or is `within` seconds old; whether all have been tried."""
        if not self._settled.is_set():
            with anyio.move_on_after(self._started + within - time.monotonic()):
                await self._settled.wait()
        return self._settled.is_set()

    def _notice(self) -> None:
        """A source changed: build the next snapshot. Requests under way keep theirs."""
        before = self.snapshot
        self.snapshot = Snapshot(self.sources)
        for source in self.sources:
            self._report(source)
        self._report_names(before)
        if all(source.status.state != "starting" for source in self.sources):
            self._settled.set()

    def _report(self, source: ToolSource) -> None:
        status, seen = source.status, self._seen.get(source.label)
        self._seen[source.label] = status
        if seen and (seen.state, len(seen.tools), seen.error) == (
            status.state,
            len(status.tools),
            status.error,
        ):
            return
        if status.state == "ready":
            log.info("server %s is ready: %d tools (%s)", source.label, len(status.tools), status.protocol)
        elif status.state != "starting":
            log.warning("server %s: %s (%s)", source.label, status.state, status.error)
        for warning in status.warnings:
            if not seen or warning not in seen.warnings:
                log.warning("server %s: %s", source.label, warning)

    def _report_names(self, before: Snapshot) -> None:
        for name, tool in self.snapshot.tools.items():
            if name != tool.name and name not in before.tools:
                log.warning("tool %s of server %s is offered as %s", tool.name, tool.server, name)


def _definition(name: str, tool: Tool) -> JSON:
    function: JSON = {"name": name, "description": tool.description, "parameters": tool.parameters}
    if not tool.description:
        del function["description"]
    return {"type": "function", "function": function}
