"""What the routes share while the app runs: connections, tool sources, the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from toolway.app.reload import watch_config
from toolway.engine.model_target import ModelTarget
from toolway.settings.settings import Settings
from toolway.stores import Store, open_store
from toolway.tools.catalog import Catalog
from toolway.tools.client_servers import DynamicServers
from toolway.tools.factory import SourceFactory, open_dynamic
from toolway.upstream.client import Upstream


@dataclass(frozen=True, kw_only=True)
class AppState:
    """What the routes share; it lives as long as the app."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    dynamic: DynamicServers
    store: Store
    target: ModelTarget


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[AppState]:
    """Connections and tool sources, for as long as the block lasts. Nothing is waited for."""
    async with (
        open_store(settings.store.url, ttl=settings.store.ttl, max_bytes=settings.store.max_bytes) as store,
        Upstream.connect(settings.upstream) as upstream,
    ):
        factory = SourceFactory(upstream)
        async with (
            Catalog(factory.sources(settings)).running() as catalog,
            watch_config(settings, factory, catalog),
            open_dynamic(settings.tools) as dynamic,
            ModelTarget(settings, upstream, catalog.set_target).learning() as target,
        ):
            yield AppState(
                settings=settings,
                upstream=upstream,
                catalog=catalog,
                dynamic=dynamic,
                store=store,
                target=target,
            )
