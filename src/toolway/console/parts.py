"""What the console shows and acts on, handed in by the app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from toolway.access.keys import KeyRing
from toolway.console.feed import Feed
from toolway.console.journal import Journal
from toolway.engine.engine import Engine
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import Catalog
from toolway.types import JSON
from toolway.upstream.client import Upstream


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a running Toolway. `judge` finds what is wrong, in doctor's words; `paths` are its routes."""

    settings: Settings
    upstream: Upstream
    catalog: Catalog
    store: Store
    keys: KeyRing
    engine: Engine
    journal: Journal
    feed: Feed
    judge: Callable[[], Awaitable[Sequence[JSON]]]
    paths: Callable[[], Sequence[str]]
