"""Puts the console together: its pages' routes, and what must run while it is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from toolway.console.access import Access
from toolway.console.conversations import Conversations
from toolway.console.overview import Overview
from toolway.console.parts import Parts
from toolway.console.routes import Console


@asynccontextmanager
async def open_console(parts: Parts) -> AsyncIterator[Console]:
    """The console of a running Toolway, while the block lasts."""

    def notice() -> None:
        parts.feed.publish("state", {})

    routes = [*Overview(parts).routes(), *Conversations(parts).routes()]
    parts.catalog.listeners.append(notice)
    try:
        async with parts.journal.running():
            yield Console(Access(parts.settings, parts.store, parts.keys), parts.feed, routes)
    finally:
        parts.catalog.listeners.remove(notice)
