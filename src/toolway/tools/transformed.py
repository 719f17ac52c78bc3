"""Sources that stand before another one: the base of them all, and tool transformation.

A TransformedSource has fewer tools, other names, other descriptions, another timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from toolway.settings.mcp_server import ServerConfig
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


class TransformedSource(SourceWrapper):
    """`inner` seen through `include`, `exclude`, `rename`, `prefix`, `description` and `timeout`.

    All of them go by the names that the server itself gives its tools.
    """

    def __init__(self, inner: ToolSource, config: ServerConfig) -> None:
        super().__init__(inner)
        self._config = config
        self._inner_status: SourceStatus | None = None
        self._status = SourceStatus()

    @property
    def status(self) -> SourceStatus:
        """The inner status with the tools transformed; the same objects for as long as the inner ones are the same."""
        newest = self.inner.status
        if newest is not self._inner_status:
            self._inner_status, self._status = newest, self._transform(newest)
        return self._status

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the inner tool."""
        return await self.inner.call(tool.handle, arguments, on_progress)

    def _transform(self, status: SourceStatus) -> SourceStatus:
        tools = tuple(self._tool(tool) for tool in status.tools if self._is_included(tool.name))
        unmatched = self._unmatched([tool.name for tool in status.tools]) if status.state == "ready" else ()
        return replace(status, tools=tools, warnings=(*status.warnings, *unmatched))

    def _is_included(self, name: str) -> bool:
        included = not self._config.include or _matches(name, self._config.include)
        return included and not _matches(name, self._config.exclude)

    def _tool(self, tool: Tool) -> Tool:
        return replace(
            tool,
            name=self._config.rename.get(tool.name) or self._config.prefix + tool.name,
            description=self._config.description.get(tool.name, tool.description),
            timeout=self._config.timeout or tool.timeout,
            handle=tool,
        )

    def _unmatched(self, names: list[str]) -> Iterator[str]:
        """Sentences about what in the entry fits no tool: most of it is misspelt."""
        for key in ("include", "exclude"):
            for glob in getattr(self._config, key):
                if not any(fnmatchcase(name, glob) for name in names):
                    yield f"{key}: {glob!r} fits no tool of this server"
        for key in ("rename", "description"):
            for name in getattr(self._config, key):
                if name not in names:
                    yield f"{key}: there is no tool {name!r} on this server"


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
