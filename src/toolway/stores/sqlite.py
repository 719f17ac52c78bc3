"""Entries in a SQLite file: they outlive the process, and several processes can share them."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import anyio

from toolway.errors import ConfigError
from toolway.stores.store import EntriesError, Key

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""How long one process waits for another's write."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, until REAL, size INTEGER, value BLOB);
CREATE INDEX IF NOT EXISTS entries_by_age ON entries (until, size, key);
"""


class SqliteEntries:
    """Values of at most `max_bytes` together; the oldest go first.

    The one connection works in a thread, one statement at a time; WAL lets other processes read meanwhile.
    """

    def __init__(self, connection: sqlite3.Connection, *, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._connection = connection
        self._turn = anyio.CapacityLimiter(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, max_bytes: int) -> AsyncIterator[SqliteEntries]:
        """Those in the file `path`, made with mode 0600 if there is none. Raises ConfigError."""
        try:
            connection = await anyio.to_thread.run_sync(_connect, path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"TOOLWAY_STORE: {path} cannot be used: {error}.") from error
        with closing(connection):
            yield cls(connection, max_bytes=max_bytes)

    async def read(self, key: Key) -> bytes | None:
        """What `key` has."""
        return await self._run(lambda: self._read(key.digest))

    async def write(self, key: Key, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        await self._run(lambda: self._write(key.digest, text, ttl))

    async def write_new(self, key: Key, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        return await self._run(lambda: self._write_new(key.digest, text, ttl))

    async def remove(self, key: Key) -> bool:
        """Forget what `key` has; whether it had something."""
        return await self._run(lambda: self._remove(key.digest))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._turn)
        except sqlite3.Error as error:
            raise EntriesError(error) from error

    def _write(self, key: str, text: bytes, ttl: float) -> None:
        now = time.time()
        until = now + ttl
        with _transaction(self._connection) as run:
            run("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (key, until, len(text), text))
            self._make_room(run, now)

    def _write_new(self, key: str, text: bytes, ttl: float) -> bool:
        now = time.time()
        until = now + ttl
        with self._on_disk(), _transaction(self._connection) as run:
            run("DELETE FROM entries WHERE key = ? AND until <= ?", (key, now))
            new = run("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?)", (key, until, len(text), text))
            self._make_room(run, now)
            return new.rowcount == 1

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What is written here is not lost when the power fails: it may stand for something that was done."""
        self._connection.execute("PRAGMA synchronous = FULL")
        try:
            yield
        finally:
            self._connection.execute("PRAGMA synchronous = NORMAL")

    def _remove(self, key: str) -> bool:
        entry = (key, time.time())
        return (
            self._connection.execute("DELETE FROM entries WHERE key = ? AND until > ?", entry).rowcount == 1
        )

    def _make_room(self, run: Callable[..., sqlite3.Cursor], now: float) -> None:
        run("DELETE FROM entries WHERE until <= ?", (now,))
        excess = (run("SELECT sum(size) FROM entries").fetchone()[0] or 0) - self.max_bytes
        # Each write, also in place of another, takes the next rowid: their order is that of the writing.
        last = 0
        while excess > 0:
            query = "SELECT rowid, size FROM entries WHERE rowid > ? ORDER BY rowid LIMIT 1"
            last, size = run(query, (last,)).fetchone()
            excess -= size
        run("DELETE FROM entries WHERE rowid <= ?", (last,))

    def _read(self, key: str) -> bytes | None:
        found = self._connection.execute(
            "SELECT value FROM entries WHERE key = ? AND until > ?", (key, time.time())
        ).fetchone()
        return None if found is None else bytes(found[0])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[Callable[..., sqlite3.Cursor]]:
    """All or nothing, and nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection.execute
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    path = path.expanduser()
    # SQLite gives its -wal and -shm files the mode of the database; so the mode must be right before it is opened.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Ask again while another process does the same to a new file: that lock alone SQLite does not wait for."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return
