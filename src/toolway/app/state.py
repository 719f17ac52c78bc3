"""What the routes share while the app runs: connections, tool sources, the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from toolway.access.audit import Denials
from toolway.access.keys import KeyRing
from toolway.access.policy import Policy, open_policy
from toolway.access.quotas import Meter, open_meter
from toolway.access.rules import unmatched_names
from toolway.app.reload import ConfigWatcher, watch_config
from toolway.engine.model_target import USER_AGENT, ModelTarget
from toolway.engine.tool_vectors import ToolVectors, open_vectors
from toolway.schema.compile import MAX_TOOLS, SEARCH_SHARE, definition_tokens, need_search, why_too_many
from toolway.settings.settings import Settings
from toolway.stores import Store, open_store
from toolway.tools.catalog import Catalog, Snapshot
from toolway.tools.client_servers import ClientServers
from toolway.tools.factory import SourceFactory, open_client_servers
from toolway.tools.forwarding_loops import name_of
from toolway.upstream.client import Upstream, credential

log = logging.getLogger("toolway.tools")

SIZE_TIMEOUT = 60.0
"""Seconds after the start in which every server may come, before it is judged whether the tools fit."""

FIT_ANY_MODEL = 2_000
"""Tokens of tools that are too many for no model; nobody is asked then."""


@dataclass(frozen=True, kw_only=True)
class AppState:
    """What the routes share; it lives as long as the app."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    client_servers: ClientServers
    store: Store
    target: ModelTarget
    factory: SourceFactory
    config: ConfigWatcher
    policy: Policy
    vectors: ToolVectors | None
    meter: Meter


@asynccontextmanager
async def open_state(settings: Settings, keys: KeyRing, denials: Denials) -> AsyncIterator[AppState]:
    """Connections and tool sources, for as long as the block lasts. Nothing is waited for."""
    async with (
        open_store(settings.store.url, ttl=settings.store.ttl, max_bytes=settings.store.max_bytes) as store,
        Upstream.connect(settings.upstream) as upstream,
        open_meter(
            settings.store.url, fails_closed=settings.store.quotas_fail == "closed", denials=denials
        ) as meter,
    ):
        factory = SourceFactory(upstream, settings.upstream.api_key)
        async with (
            Catalog(
                factory.sources(settings.tools),
                prefixed=settings.tools.tool_prefix == "always",
                name=name_of(settings.tools),
            ).running() as catalog,
            open_policy(settings, store, keys=keys) as policy,
            watch_config(settings, factory, catalog, keys, policy) as config,
            open_client_servers(settings.tools) as client_servers,
            ModelTarget(settings.upstream, upstream, catalog.set_target).learning() as target,
            open_vectors(settings, upstream, target, store) as vectors,
            anyio.create_task_group() as tasks,
        ):
            denials.audit = policy.audit
            tasks.start_soon(_warn_of_size, settings, catalog, target)
            tasks.start_soon(_warn_of_unmatched_names, config, catalog, policy)
            yield AppState(
                settings=settings,
                upstream=upstream,
                catalog=catalog,
                client_servers=client_servers,
                store=store,
                target=target,
                factory=factory,
                config=config,
                policy=policy,
                vectors=vectors,
                meter=meter,
            )
            tasks.cancel_scope.cancel()


@dataclass(frozen=True, kw_only=True)
class ToolSizeReport:
    """A report on the number and size of all tools. `is_ok`: the model searches them, or may."""

    text: str
    is_ok: bool


async def judge_size(
    settings: Settings, target: ModelTarget, snapshot: Snapshot, model: str = ""
) -> ToolSizeReport | None:
    """Whether the tools are too many or too long for a model, and what comes of it; None: they are not.

    Without a name it is the only model of the model server.
    """
    fitted = target.fit(snapshot)
    if not fitted.offered:
        return None
    number, tokens = len(fitted.offered), definition_tokens(fitted.size)
    if tokens < FIT_ANY_MODEL and number <= MAX_TOOLS:
        return None
    info = await target.infos.get(model, [USER_AGENT, *credential(settings.upstream.api_key)])
    most = target.max_tools
    mode = settings.tools.tool_search
    if mode == "on" or (mode == "auto" and need_search(number, tokens, info.context, most)):
        room = f" of {info.context:,}" if info.context else ""
        text = f"{number} tools take about {tokens:,}{room} tokens; the model searches them (TOOLWAY_TOOL_SEARCH)"
        return ToolSizeReport(text=text, is_ok=True)
    if (why := why_too_many(number, tokens, info.context, most)) is None:
        return None
    if mode == "auto" and not model and info.context is None:
        # One of several models, or of a server that does not answer: each request finds out for its own.
        why = (
            f"{number} tools take about {tokens:,} tokens; a model that is known to read less than "
            f"{int(tokens / SEARCH_SHARE):,} searches them, any other gets all in each request (TOOLWAY_TOOL_SEARCH)"
        )
    return ToolSizeReport(text=why, is_ok=mode != "off")


async def _warn_of_unmatched_names(config: ConfigWatcher, catalog: Catalog, policy: Policy) -> None:
    """Tell what the configuration names and is not there, at the start and whenever the file was read again."""
    before: list[str] = []
    while True:
        read_again = config.read_again
        with anyio.move_on_after(SIZE_TIMEOUT):
            await catalog.until_tried()  # only then it is known what there is
            snapshot = catalog.snapshot
            found = unmatched_names(config.settings, policy.rules, snapshot.tools, snapshot.unknown)
            for warning in found:
                if warning not in before:
                    log.warning("%s", warning)
            before = found
        await read_again.wait()


async def _warn_of_size(settings: Settings, catalog: Catalog, target: ModelTarget) -> None:
    await catalog.wait_until_tried(SIZE_TIMEOUT)
    await target.wait_until_known(SIZE_TIMEOUT)
    if size := await judge_size(settings, target, catalog.snapshot):
        log.log(logging.INFO if size.is_ok else logging.WARNING, "%s", size.text)
