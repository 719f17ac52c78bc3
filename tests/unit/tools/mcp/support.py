"""A source under its owner task, and waiting for what it becomes, without sleeping."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from toolway.settings.mcp_server import McpServerConfig, StdioServerConfig
from toolway.tools.mcp import ConnectOptions, MCPSource, ReconnectPolicy
from toolway.types import JSON, SourceStatus, ToolResult

SERVERS = Path(__file__).parent / "servers"
TIMEOUT = 60.0
"""Seconds that anything may take on a busy machine before a test gives up."""


class Watched:
    """A source, and the news of it."""

    def __init__(self, source: MCPSource) -> None:
        self.source = source
        self.seen: list[SourceStatus] = []
        self._news = anyio.Event()
        self.stop: Callable[[], None] = lambda: None

    def changed(self) -> None:
        self.seen.append(self.source.status)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, condition: Callable[[SourceStatus], bool]) -> SourceStatus:
        with anyio.fail_after(TIMEOUT):
            while not condition(self.source.status):
                await self._news.wait()
        return self.source.status

    async def ready(self) -> SourceStatus:
        return await self.until(lambda status: status.state == "ready")

    async def call(self, tool: str, arguments: JSON | None = None, **more: Any) -> ToolResult:
        tools = {tool.name: tool for tool in self.source.status.tools}
        with anyio.fail_after(TIMEOUT):
            return await self.source.call(tools[tool], arguments or {}, **more)


@asynccontextmanager
async def running(config: McpServerConfig, **options: Any) -> AsyncIterator[Watched]:
    """Run a source until the `async with` is left; `options` are those of ConnectOptions, and `policy`."""
    policy = options.pop("policy", ReconnectPolicy(first_delay=0.02, longest_delay=0.2))
    watched = Watched(MCPSource(config, ConnectOptions(**options), policy))
    async with anyio.create_task_group() as tasks:
        watched.stop = tasks.cancel_scope.cancel
        tasks.start_soon(watched.source.run, watched.changed)
        yield watched
        watched.stop()


def bad(fault: str = "", **more: Any) -> StdioServerConfig:
    args = (str(SERVERS / "bad_stdio.py"), fault)
    return StdioServerConfig(
        **{"label": "bad", "type": "stdio", "command": sys.executable, "args": args, **more}
    )


def good(**more: Any) -> StdioServerConfig:
    args = (str(SERVERS / "good.py"),)
    return StdioServerConfig(
        **{"label": "good", "type": "stdio", "command": sys.executable, "args": args, **more}
    )


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not, unless it is nobody's business to bury it."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


async def until(condition: Callable[[], bool]) -> None:
    """Ask again and again, for what tells nobody when it happens (the end of a stranger's process)."""
    with anyio.fail_after(TIMEOUT):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)
