"""The base of tool sources that stand before another one and change a part of it."""

from __future__ import annotations

from collections.abc import Callable

from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource


class SourceWrapper:
    """A ToolSource that is `inner` in all that a subclass does not change."""

    def __init__(self, inner: ToolSource) -> None:
        self.label = inner.label
        self.kind = inner.kind
        self.inner = inner

    @property
    def status(self) -> SourceStatus:
        """The inner source's newest status."""
        return self.inner.status

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the inner source."""
        await self.inner.run(changed)

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the tool of the inner source."""
        return await self.inner.call(tool, arguments, on_progress)
