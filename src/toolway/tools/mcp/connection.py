"""Opens what a ServerConfig describes: a session that is being read, over stdio, streamable HTTP or SSE; lists tools.

The `mcp` SDK is loaded with this module, so nothing imports it before it is needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio

from toolway.settings.mcp_server import McpServerConfig, StdioServerConfig
from toolway.tools.mcp.errors import RpcError
from toolway.tools.mcp.options import ConnectOptions, ServerLog, Transport
from toolway.tools.mcp.results import resource_tools, tools
from toolway.tools.mcp.session import Session
from toolway.tools.mcp.stdio import StdioServer, open_stdio
from toolway.types import Tool


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A session, and the process behind it when it has one."""

    session: Session
    server: StdioServer | None = None


@asynccontextmanager
async def connect(
    config: McpServerConfig,
    transport: Transport,
    options: ConnectOptions,
    log: ServerLog,
) -> AsyncIterator[Connection]:
    """A session whose messages are being read, for as long as the `async with` lasts.

    Raises:
        SourceError: A stdio server cannot be started.
        httpx2.HTTPError: An SSE server cannot be reached.
    """
    server = None
    async with AsyncExitStack() as stack:
        if isinstance(config, StdioServerConfig):
            process = open_stdio(config, limit=options.max_result_bytes, log=log)
            server = await stack.enter_async_context(process)
            session = Session(server, server, log=log, sampler=options.sampler, asks_clients=True)
        else:
            from toolway.tools.mcp.http import open_http, open_sse  # noqa: PLC0415 - loads httpx2

            open_streams = open_http if transport == "http" else open_sse
            read, write, posts = await stack.enter_async_context(open_streams(config, options))
            session = Session(
                read,
                write,
                log=log,
                sampler=options.sampler,
                asks_clients=options.egress is None,
                is_shared=transport == "sse",
                posts=posts,
            )
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(session.run)
        yield Connection(session=session, server=server)
        tasks.cancel_scope.cancel()


async def list_tools(
    session: Session, config: McpServerConfig
) -> tuple[tuple[Tool, ...], tuple[str, ...], float | None]:
    """The tools of a server, what was mended about them, and how many seconds they may be kept (2026-07-28).

    A server without tools has none; that it does not know the question is no error.
    """
    try:
        items, page = await session.list_all("tools/list", "tools")
    except RpcError:
        if "tools" in session.capabilities:
            raise
        items, page = [], {}
    found, warnings = tools(items, server=config.label, modern=session.modern)
    if config.resources and "resources" in session.capabilities:
        found += resource_tools(config.label, [tool.name for tool in found])
    ttl = page.get("ttlMs")
    return found, warnings, ttl / 1000 if isinstance(ttl, int | float) and ttl > 0 else None
