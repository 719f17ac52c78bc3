"""Stores: what must outlive a request; the configured kind of entries is opened here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from toolway.errors import ConfigError
from toolway.stores.memory import MemoryEntries
from toolway.stores.store import EntryKind, Key, Store, share_of

__all__ = ["EntryKind", "Key", "Store", "open_store", "share_of"]


@asynccontextmanager
async def open_store(url: str, *, ttl: float, max_bytes: int) -> AsyncIterator[Store]:
    """The store at `url`, as `TOOLWAY_STORE` names it. Raises ConfigError when its file or server cannot be used."""
    kind, _, path = url.partition("://")
    if kind == "memory:":
        yield Store(MemoryEntries(max_bytes=max_bytes), ttl=ttl)
    elif kind == "sqlite":
        from toolway.stores.sqlite import SqliteEntries  # noqa: PLC0415 - loads SQLite

        async with SqliteEntries.open(Path(path.removeprefix("/")), max_bytes=max_bytes) as entries:
            yield Store(entries, ttl=ttl)
    else:
        async with _redis_entries().open(url, max_bytes=max_bytes) as entries:
            yield Store(entries, ttl=ttl)


def _redis_entries() -> Any:
    try:
        # Its package is an extra, and takes a tenth of a second to load.
        from toolway.stores.redis import RedisEntries  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        python = shlex.quote(sys.executable)
        raise ConfigError(f"TOOLWAY_STORE: for Redis, run: {python} -m pip install 'redis>=6,<9'") from None
    return RedisEntries
