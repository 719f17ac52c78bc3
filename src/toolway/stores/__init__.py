"""Stores: what must outlive a request; one module for each kind, here the configured one is opened."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from toolway.errors import ConfigError
from toolway.settings.settings import Settings
from toolway.stores.memory import MemoryStore
from toolway.stores.sqlite import SqliteStore
from toolway.types import JSON


class Store(Protocol):
    """Where things wait. `tests/unit/stores/test_contract.py` holds every kind to these promises.

    A value lives for the store's own time, or for `ttl` seconds when that is given. The store is bounded in bytes
    too; what was written first goes first (Redis has its own rules). A value larger than the store is not kept.

    Trouble in `put` and `get` is logged and looks like a value that is gone, since no answer may fail for it.
    `add` and `delete` say what is certain, and raise StoreError when nothing is. Reading takes nothing away, so
    the same request may come twice.
    """

    async def put(self, key: str, value: JSON, *, ttl: float | None = None) -> None:
        """Keep a JSON object for a while, in place of what `key` had."""

    async def get(self, key: str) -> JSON | None:
        """The object, or None when it was never there or is gone."""

    async def add(self, key: str, value: JSON, *, ttl: float | None = None) -> bool:
        """Keep a JSON object unless `key` has one; True for exactly one of all who try, in all processes.

        Made for what must not happen twice: add first, then act if it was True. When StoreError is raised the
        object may be there or not; who then does not act is safe, at the price that perhaps nobody will.
        """

    async def delete(self, key: str) -> bool:
        """Forget what `key` has; whether it had something. True for one of several who try. Raises StoreError."""


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store that `TOOLWAY_STORE` names. Raises ConfigError when its file or server cannot be used."""
    kind, _, path = settings.store.partition("://")
    bounds: Any = {"ttl": settings.store_ttl, "max_bytes": settings.store_max_bytes}
    if kind == "memory:":
        yield MemoryStore(**bounds)
    elif kind == "sqlite":
        async with SqliteStore.open(Path(path.removeprefix("/")), **bounds) as store:
            yield store
    else:
        async with _redis_store().open(settings.store, **bounds) as store:
            yield store


def _redis_store() -> Any:
    try:
        # Its package is an extra, and takes a tenth of a second to load.
        from toolway.stores.redis import RedisStore  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigError("TOOLWAY_STORE: for Redis, run: pip install 'toolway[redis]'") from None
    return RedisStore


def key_of(*parts: str) -> str:
    """A key that tells nothing: the digest of its parts. The first says what it is for, the second whose it is."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
