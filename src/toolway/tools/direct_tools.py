"""The catalog for clients that call tools themselves, without a model: what a caller sees of it, and single calls."""

from __future__ import annotations

from collections.abc import Mapping

from toolway.tools.catalog import STARTUP_WAIT, Catalog
from toolway.tools.invoke import Gate, invoke
from toolway.types import OnProgress, Selection, Tool, ToolCall, ToolResult, is_selected


class DirectTools:
    """Lists and calls the catalog's tools. A tool without a timeout of its own has `timeout` seconds."""

    def __init__(self, catalog: Catalog, *, timeout: float, startup_wait: float = STARTUP_WAIT) -> None:
        self.catalog = catalog
        self._timeout = timeout
        self._startup_wait = startup_wait

    @property
    def all_tools(self) -> Mapping[str, Tool]:
        """All tools that there are, also those that cannot be called now."""
        return self.catalog.snapshot.tools

    def untried(self, selection: Selection) -> list[str]:
        """The servers of a caller that are still starting, whose tools nobody knows."""
        return self.catalog.snapshot.visible_to(selection).untried

    async def until_tried(self) -> None:
        """Wait, for a moment after the start, until each server has been tried."""
        await self.catalog.wait_until_tried(self._startup_wait)

    async def tools(self, selection: Selection) -> Mapping[str, Tool]:
        """The tools of servers that can be reached, sorted by name."""
        await self.until_tried()
        found = self.catalog.snapshot.callable
        if not selection:
            return found
        return {name: tool for name, tool in found.items() if is_selected(name, tool, selection)}

    async def call(
        self,
        name: str,
        arguments: str,
        selection: Selection,
        *,
        gate: Gate | None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult | None:
        """The result of one tool, its `arguments` as JSON text; None: there is no such tool for this caller.

        `gate` is what calls of this caller pass before they run. `name` is the one that is listed, or the qualified
        one. A tool whose server is gone for now is there, and its failure a result.
        """
        await self.until_tried()
        with self.catalog.use() as snapshot:
            listed = snapshot.listed_name(name)
            if listed is None or not is_selected(listed, tool := snapshot.tools[listed], selection):
                return None
            call = ToolCall(id="", name=listed, arguments=arguments)
            return await invoke(
                call, tool, snapshot.run, tool_timeout=self._timeout, on_progress=on_progress, gate=gate
            )
