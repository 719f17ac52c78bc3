"""Tool sources: one module or package for each kind; here the configured ones are made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from toolway.config import Settings
from toolway.sources.openapi import OpenAPISource
from toolway.types import ToolSource
from toolway.upstream import MAX_IDLE


@asynccontextmanager
async def open_sources(settings: Settings) -> AsyncIterator[Sequence[ToolSource]]:
    """A source for each configured server, and the connections they share while the block lasts."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.upstream_connect_timeout)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=MAX_IDLE),
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=65536,
        max_field_size=65536,
    ) as session:
        yield [OpenAPISource(endpoint, settings, session) for endpoint in settings.endpoints]
