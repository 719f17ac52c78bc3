"""The process behind `toolway mcp`: tool sources of its own, and one client at standard input and output."""

from __future__ import annotations

import os
import signal
import sys

import anyio
from mcp.server.stdio import stdio_server

from toolway.access.policy import open_policy
from toolway.api.mcp.server import CatalogServer
from toolway.app.reload import watch_config
from toolway.errors import ConfigError, NotFound
from toolway.settings.settings import Settings
from toolway.stores import open_store
from toolway.tools.catalog import Catalog
from toolway.tools.direct_tools import DirectTools
from toolway.tools.factory import SourceFactory
from toolway.tools.forwarding_loops import name_of
from toolway.tools.mcp.options import depth
from toolway.tools.profiles import narrowed
from toolway.types import Caller
from toolway.upstream.client import Upstream

DEEPEST = 3
"""Toolways that may start one another."""

STARTUP_WAIT = 15.0
"""Seconds in which the first list waits for the servers: not every client hears of the tools that come later."""


async def run_stdio(settings: Settings, profile: str | None) -> None:
    """Serve until the client closes its end, or SIGTERM. Raises ConfigError for a profile that there is not."""
    try:
        selection = narrowed((), profile, settings.tools.profiles, {}) if profile else ()
    except NotFound as error:
        raise ConfigError(error.message) from None
    _check_for_recursion()
    ended = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_wait_for_signal, ended)
        async with (
            open_store(
                settings.store.url, ttl=settings.store.ttl, max_bytes=settings.store.max_bytes
            ) as store,
            open_policy(settings, store, is_served=False) as policy,
            Upstream.connect(settings.upstream) as upstream,
        ):
            factory = SourceFactory(upstream, settings.upstream.api_key)
            catalog = Catalog(
                factory.sources(settings.tools),
                prefixed=settings.tools.tool_prefix == "always",
                name=name_of(settings.tools),
            )
            direct_tools = DirectTools(catalog, timeout=settings.loop.tool_timeout, startup_wait=STARTUP_WAIT)
            caller = Caller(id="stdio", selection=selection)

            async def serve() -> None:
                server = CatalogServer(direct_tools, policy, lambda _: caller)
                async with stdio_server() as (read, write), server.running():
                    await server.run(read, write, server.create_initialization_options())
                ended.set()

            tasks.start_soon(serve)
            async with catalog.running(), watch_config(settings, factory, catalog, policy=policy):
                await ended.wait()
        sys.stdout.flush()
        # The thread that reads standard input cannot be interrupted, and would hold the end until a line comes.
        os._exit(0)


def _check_for_recursion() -> None:
    """Raise ConfigError when this is a Toolway within Toolways: an entry that starts the one that reads it."""
    if depth() >= DEEPEST:
        raise ConfigError(
            "Toolway starts itself in a circle: its mcp.json has an entry that runs `toolway mcp` with the same file. "
            "Give Toolway a file of its own (--config)."
        )


async def _wait_for_signal(ended: anyio.Event) -> None:
    if sys.platform == "win32":
        return
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            ended.set()
