"""The console: a page for people at `/`, and the API behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from toolway.console.access import Access
from toolway.console.approvals import ApprovalRoutes
from toolway.console.audit import Audit
from toolway.console.config_file import ConfigRoutes
from toolway.console.context import ConsoleContext
from toolway.console.conversations import Conversations
from toolway.console.keys import Keys
from toolway.console.openapi import document_route
from toolway.console.overview import Overview
from toolway.console.pins import PinRoutes
from toolway.console.playground import Playground
from toolway.console.routes import Console
from toolway.console.servers import Servers
from toolway.console.tools import Tools


@asynccontextmanager
async def open_console(context: ConsoleContext) -> AsyncIterator[Console]:
    """The console of a running Toolway, while the block lasts."""

    async with anyio.create_task_group() as tasks, context.recorder.running():
        servers, overview = Servers(context, tasks), Overview(context)

        def notice() -> None:
            servers.notice()
            overview.notice()
            context.feed.publish("state", {})

        access = Access(context.settings, context.store, context.keys)
        pages = (
            overview,
            Conversations(context),
            servers,
            PinRoutes(context),
            ConfigRoutes(context),
            Tools(context),
            Playground(context),
            ApprovalRoutes(context, tasks),
            Keys(context, access, tasks),
            Audit(context),
        )
        routes = [route for page in pages for route in page.routes()]
        console = Console(access, context.feed, routes)
        console.add(document_route(console.routes))
        context.catalog.listeners.append(notice)
        try:
            yield console
        finally:
            context.catalog.listeners.remove(notice)
            tasks.cancel_scope.cancel()
