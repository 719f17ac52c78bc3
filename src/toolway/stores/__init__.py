"""Stores: what must outlive a request; one module for each kind, here the configured one is opened."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from toolway.config import Settings
from toolway.stores.memory import MemoryStore
from toolway.stores.sqlite import SqliteStore
from toolway.types import JSON


class Store(Protocol):
    """Where things wait. `tests/stores/test_contract.py` holds every kind to these promises.

    It is bounded, in time and in bytes; the oldest goes first. Trouble is logged and looks like a value that is
    gone, since no answer may fail for it. Reading takes nothing away, so the same request may come twice.
    """

    async def put(self, key: str, value: JSON) -> None:
        """Keep a JSON object for a while, in place of what `key` had."""

    async def get(self, key: str) -> JSON | None:
        """The object, or None when it was never there or is gone."""


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store that `TOOLWAY_STORE` names. Raises ConfigError when its file cannot be used."""
    ttl, max_bytes = settings.store_ttl, settings.store_max_bytes
    path = settings.store.removeprefix("sqlite:///")
    if path == settings.store:
        yield MemoryStore(ttl=ttl, max_bytes=max_bytes)
        return
    async with SqliteStore.open(Path(path), ttl=ttl, max_bytes=max_bytes) as store:
        yield store


def key_of(*parts: str) -> str:
    """A key that tells nothing: the digest of its parts. The first says what it is for, the second whose it is."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
