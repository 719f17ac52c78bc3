"""A server that a request brings along, with the tools that its client was told of earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from toolway.tools.transformed import SourceWrapper
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource


class ListedSource(SourceWrapper):
    """`inner` with exactly the tools `listed`, whatever it has by now. A call of one that is gone is an error."""

    def __init__(self, inner: ToolSource, listed: Sequence[Tool]) -> None:
        super().__init__(inner)
        now = {tool.name: tool for tool in inner.status.tools}
        self._status = replace(
            inner.status, tools=tuple(_as_listed(tool, now.get(tool.name)) for tool in listed)
        )

    @property
    def status(self) -> SourceStatus:
        """The inner status of the moment in which the request began, with the listed tools."""
        return self._status

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the inner tool of this name."""
        if tool.handle is None:
            return ToolResult(text=f"the server has no tool {tool.name!r} any more", is_error=True)
        return await self.inner.call(tool.handle, arguments, on_progress)


def _as_listed(listed: Tool, now: Tool | None) -> Tool:
    if now is None:
        return listed
    return replace(now, description=listed.description, parameters=listed.parameters, handle=now)
