"""Puts the console together: its pages' routes, and what must run while it is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from toolway.console.access import Access
from toolway.console.approvals import ApprovalRoutes
from toolway.console.audit import Audit
from toolway.console.config_file import ConfigRoutes
from toolway.console.conversations import Conversations
from toolway.console.keys import Keys
from toolway.console.openapi import document_route
from toolway.console.overview import Overview
from toolway.console.parts import Parts
from toolway.console.pins import PinRoutes
from toolway.console.playground import Playground
from toolway.console.routes import Console
from toolway.console.servers import Servers
from toolway.console.tools import Tools


@asynccontextmanager
async def open_console(parts: Parts) -> AsyncIterator[Console]:
    """The console of a running Toolway, while the block lasts."""

    async with anyio.create_task_group() as tasks, parts.journal.running():
        servers, overview = Servers(parts, tasks), Overview(parts)

        def notice() -> None:
            servers.notice()
            overview.notice()
            parts.feed.publish("state", {})

        access = Access(parts.settings, parts.store, parts.keys)
        pages = (
            overview,
            Conversations(parts),
            servers,
            PinRoutes(parts),
            ConfigRoutes(parts),
            Tools(parts),
            Playground(parts),
            ApprovalRoutes(parts, tasks),
            Keys(parts, access, tasks),
            Audit(parts),
        )
        routes = [route for page in pages for route in page.routes()]
        console = Console(access, parts.feed, routes)
        console.add(document_route(console.routes))
        parts.catalog.listeners.append(notice)
        try:
            yield console
        finally:
            parts.catalog.listeners.remove(notice)
            tasks.cancel_scope.cancel()
