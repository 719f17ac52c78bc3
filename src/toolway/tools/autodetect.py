"""A source of which only a URL is known: what the server speaks is found out by asking it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource


class AskedSource:
    """Is `first` until that fails and the server says that it is `second`'s; `is_second` asks.

    A server that is not there is asked again when `first` has looked for it again.
    """

    def __init__(
        self, first: ToolSource, second: ToolSource, is_second: Callable[[], Awaitable[bool]]
    ) -> None:
        self.label = first.label
        self.kind = first.kind
        self._first = self._chosen = first
        self._second = second
        self._is_second = is_second
        self._failed = anyio.Event()
        self._settled = False

    @property
    def status(self) -> SourceStatus:
        """The chosen source's; as long as the question is open, a failure is none."""
        status = self._chosen.status
        return SourceStatus() if status.state == "failed" and not self._settled else status

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the first source, and the second in its place if that is the right one."""
        await self._try_first(changed)
        if self._chosen is self._second:
            await self._second.run(changed)

    async def _try_first(self, changed: Callable[[], None]) -> None:
        async with anyio.create_task_group() as tasks:

            def notice() -> None:
                if self._first.status.state == "failed":
                    self._failed.set()
                changed()

            tasks.start_soon(self._first.run, notice)
            while self._chosen is self._first:
                await self._failed.wait()
                self._failed = anyio.Event()
                if self._first.status.tools:
                    continue  # it has been what it seems, and is only gone for now
                if await self._is_second():
                    self._chosen, self.kind = self._second, self._second.kind
                self._settled = True
                changed()
            tasks.cancel_scope.cancel()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the tool of the chosen source."""
        return await self._chosen.call(tool, arguments, on_progress)
