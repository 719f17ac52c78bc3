"""What the console shows and acts on, handed in by the app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toolway.access.keys import KeyRing
from toolway.access.policy import Policy
from toolway.console.conversation_recorder import ConversationRecorder
from toolway.console.event_feed import EventFeed
from toolway.engine.engine import Engine
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import Catalog
from toolway.tools.factory import ServerOutput, SourceFactory
from toolway.types import JSON
from toolway.upstream.client import Upstream


class ConfigFile(Protocol):
    """The file of the tool servers, and the settings with the servers in it as it was last read."""

    path: Path
    settings: Settings

    def reload(self) -> None:
        """Read it now."""


@dataclass(frozen=True, kw_only=True)
class ConsoleContext:
    """The parts of a running Toolway. `judge` finds what is wrong, in doctor's words; `paths` are its routes."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    factory: SourceFactory
    config: ConfigFile
    store: Store
    keys: KeyRing
    policy: Policy
    engine: Engine
    recorder: ConversationRecorder
    feed: EventFeed
    judge: Callable[[], Awaitable[Sequence[JSON]]]
    paths: Callable[[], Sequence[str]]

    @property
    def output(self) -> Mapping[str, ServerOutput]:
        """What each MCP server of the file writes, by its label."""
        return self.factory.output

    def note_change(self, event: str, by: str, what: str) -> None:
        """Tell the audit log that a person changed something here; `by` is the name of their key."""
        if self.policy.audit:
            self.policy.audit.changed(event, by, what)
