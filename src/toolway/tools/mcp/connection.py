"""Opens the connection that a ServerConfig describes; what imports the `mcp` SDK is behind this module."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio

from toolway.net.ssrf import SsrfGuard
from toolway.settings.mcp_server import ServerConfig
from toolway.tools.mcp.errors import RefusedError
from toolway.tools.mcp.http import open_http, open_sse
from toolway.tools.mcp.session import Sampler, Session
from toolway.tools.mcp.stdio import Reading, Server, Writing, open_stdio
from toolway.tools.mcp.tool_list import resource_tools, tools
from toolway.types import Tool

Transport = Literal["stdio", "http", "sse"]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A session, and the process behind it when it has one."""

    session: Session
    server: Server | None = None


@asynccontextmanager
async def connect(
    config: ServerConfig,
    transport: Transport,
    *,
    limit: int,
    logger: logging.Logger,
    on_stderr: Callable[[bytes], None],
    sampler: Sampler | None = None,
    auth: Any = None,
    egress: SsrfGuard | None = None,
) -> AsyncIterator[Connection]:
    """A session whose messages are being read, for as long as the `async with` lasts.

    Raises:
        SourceError: A stdio server cannot be started.
        httpx2.HTTPError: An SSE server cannot be reached.
    """
    server = None
    async with AsyncExitStack() as stack:
        if transport == "stdio":
            command = [config.command, *config.args]
            process = open_stdio(command, env=config.env, cwd=config.cwd, limit=limit, on_stderr=on_stderr)
            server = await stack.enter_async_context(process)
            session = Session(Reading(server), Writing(server), logger=logger, sampler=sampler)
        else:
            opening = open_http if transport == "http" else open_sse
            streams = opening(config.url, headers=config.headers, limit=limit, auth=auth, egress=egress)
            read, write = await stack.enter_async_context(streams)
            session = Session(read, write, logger=logger, sampler=sampler)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(session.run)
        yield Connection(session=session, server=server)
        tasks.cancel_scope.cancel()


async def list_tools(
    session: Session, config: ServerConfig
) -> tuple[tuple[Tool, ...], tuple[str, ...], float | None]:
    """The tools of a server, what was mended about them, and how many seconds they may be kept (2026-07-28).

    A server without tools has none; that it does not know the question is no error.
    """
    try:
        items, page = await session.list_all("tools/list", "tools")
    except RefusedError:
        if "tools" in session.capabilities:
            raise
        items, page = [], {}
    found, warnings = tools(items, server=config.label, modern=session.modern)
    if config.resources and "resources" in session.capabilities:
        found += resource_tools(config.label, [tool.name for tool in found])
    ttl = page.get("ttlMs")
    return found, warnings, ttl / 1000 if isinstance(ttl, int | float) and ttl > 0 else None
