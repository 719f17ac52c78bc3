"""Live reload of `mcp.json`, when it changes or on SIGHUP, and of its lock file; requests keep the tools they have."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio

from toolway.access.keys import KeyRing
from toolway.access.policy import Policy
from toolway.errors import ConfigError
from toolway.settings.files import stamp_of
from toolway.settings.load import reload_servers
from toolway.settings.mcp_server import ConfiguredServer, UnusableServerConfig, with_home
from toolway.settings.settings import DEFAULT_CONFIG, Settings, ToolSettings
from toolway.telemetry.logging import also_mask
from toolway.tools.catalog import Catalog
from toolway.tools.factory import SourceFactory
from toolway.tools.names import name_some

POLL_SECONDS = 1.0
"""Seconds between two looks at the file."""

MAX_NAMES = 20
"""So many of what changed the log names."""

log = logging.getLogger("toolway.config")


@asynccontextmanager
async def watch_config(
    settings: Settings,
    factory: SourceFactory,
    catalog: Catalog,
    keys: KeyRing | None = None,
    policy: Policy | None = None,
) -> AsyncIterator[ConfigWatcher]:
    """Watch the file while the block lasts, also one that is not there yet. A broken edit is reported, and
    all stays as it was.
    """
    async with anyio.create_task_group() as tasks:
        watcher = ConfigWatcher(settings, factory, catalog, keys or KeyRing(), policy)
        tasks.start_soon(watcher.poll)
        if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGHUP"):
            tasks.start_soon(watcher.reload_on_hangup)
        yield watcher
        tasks.cancel_scope.cancel()


class ConfigWatcher:
    """The file of the tool servers, as it is and as it was last read."""

    def __init__(
        self,
        settings: Settings,
        factory: SourceFactory,
        catalog: Catalog,
        keys: KeyRing,
        policy: Policy | None,
    ) -> None:
        config = settings.tools.config or DEFAULT_CONFIG
        self.settings = replace(settings, tools=replace(settings.tools, config=config))
        """With the servers of the file, as it was last read."""
        self.path = with_home(config)
        self.read_again = anyio.Event()
        """Set when the file was read again; another one takes its place then."""
        self._factory = factory
        self._catalog = catalog
        self._keys = keys
        self._policy = policy
        self._read_at = settings.tools.config_stamp

    async def poll(self) -> None:
        """Look at the file every second: editors replace it in ways that watchers of files miss."""
        last = self._read_at
        while True:
            await anyio.sleep(POLL_SECONDS)
            mark, before = stamp_of(self.path), last
            last = mark
            # A file that still changes is being written: half of it would only be a mistake to report.
            if mark is not None and mark == before and mark != self._read_at:
                self.reload()
            if self._factory.pins and self._factory.pins.read():
                self._catalog.refresh()

    async def reload_on_hangup(self) -> None:
        """Read the file at each SIGHUP."""
        with (
            suppress(NotImplementedError, RuntimeError),
            anyio.open_signal_receiver(signal.SIGHUP) as signals,
        ):
            async for _ in signals:
                self.reload()

    def reload(self) -> None:
        """Read the file now."""
        self._read_at = stamp_of(self.path)
        try:
            settings = reload_servers(self.settings)
        except ConfigError as error:
            for mistake in error.message.splitlines():
                log.error("the configuration stays as it was: %s", mistake)
            return
        also_mask(settings.secrets)
        for warning in settings.warnings:
            if warning not in self.settings.warnings:
                log.warning("%s", warning)
        before = _entries(self.settings)
        servers = {server.label: server for server in self.settings.tools.servers}
        self.settings = replace(settings, tools=_without_broken_edits(settings.tools, servers))
        self._keys.replace(self.settings.access)
        if self._policy:
            self._policy.configure(self.settings)
        self._catalog.replace(self._factory.sources(self.settings.tools))
        log.info("%s", _difference(before, _entries(self.settings)))
        self.read_again.set()
        self.read_again = anyio.Event()


def _without_broken_edits(tools: ToolSettings, before: Mapping[str, ConfiguredServer]) -> ToolSettings:
    """A server whose entry was good, and is so no longer, stays as it was."""
    servers = []
    for server in tools.servers:
        known = before.get(server.label)
        if known and isinstance(server, UnusableServerConfig):
            mistakes = "\n".join(server.mistakes)
            log.error("the server %s stays as it was, because of mistakes:\n%s", server.label, mistakes)
            servers.append(known)
        else:
            servers.append(server)
    return replace(tools, servers=tuple(servers))


def _entries(settings: Settings) -> dict[str, object]:
    """What a file holds, by what the log calls it."""
    access = settings.access
    return {
        **{server.label: server for server in settings.tools.servers},
        **{f"the key {key.name}": key for key in access.keys},
        **{f"the group {group.name}": group for group in access.groups},
        **({"the identity provider": access.jwt} if access.jwt else {}),
    }


def _difference(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    added = sorted(after.keys() - before.keys())
    removed = sorted(before.keys() - after.keys())
    changed = sorted(label for label in after.keys() & before.keys() if after[label] != before[label])
    parts = [f"{word}: {name_some(labels, MAX_NAMES)}" for word, labels in
             (("added", added), ("removed", removed), ("changed", changed)) if labels]  # fmt: skip
    return f"the configuration was read again; {'; '.join(parts) or 'nothing has changed'}"
