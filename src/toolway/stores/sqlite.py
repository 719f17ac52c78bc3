"""Entries in a SQLite file: they outlive the process, and several processes can share them."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import anyio

from toolway.errors import ConfigError
from toolway.stores.store import AnyEntryKind, AnyKey, Cooldown, EntriesError, NoRoomError

T = TypeVar("T")

BUSY_SECONDS = 2.0
"""How long one process waits for another's write, which takes milliseconds."""

PROBE_SECONDS = 0.05
"""How long it waits once that was in vain, until it gets the lock again."""

REST_SECONDS = 0.5
"""So long it does not even try."""

SLOW_LOOK = 0.02
"""Seconds that a look from the event loop may take; it takes some microseconds unless it waits for the disk."""

REST_BEHIND_LOOK = 50
"""After one that took longer nobody looks from there for so many times what it took."""

LONGEST_GAP = 3600.0
"""Seconds of the system's clock that are believed at most, for the time in which nobody had the file open."""

CLOCK_SECONDS = 60.0
"""How old the time in the file may be."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS lives (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, share INTEGER, written INTEGER, until REAL, size INTEGER
);
CREATE INDEX IF NOT EXISTS lives_by_end ON lives (until);
CREATE INDEX IF NOT EXISTS lives_by_age ON lives (share, written);
CREATE TABLE IF NOT EXISTS shares (id INTEGER PRIMARY KEY, owner TEXT UNIQUE, size INTEGER);
CREATE INDEX IF NOT EXISTS shares_by_size ON shares (size);
CREATE TABLE IF NOT EXISTS whole (size INTEGER, written INTEGER, now REAL, clock REAL);

CREATE TRIGGER IF NOT EXISTS life_begins AFTER INSERT ON lives BEGIN
    UPDATE shares SET size = size + new.size WHERE id = new.share;
    UPDATE whole SET size = size + new.size;
END;
CREATE TRIGGER IF NOT EXISTS life_ends AFTER DELETE ON lives BEGIN
    DELETE FROM entries WHERE id = old.id;
    UPDATE shares SET size = size - old.size WHERE id = old.share;
    DELETE FROM shares WHERE id = old.share AND size <= 0;
    UPDATE whole SET size = size - old.size;
END;
"""
"""What changes often stands apart from the values, which may be large: SQLite writes a row anew as a whole.

`whole` has one row: the sum of all sizes, the number of the last write, and the file's time with what the system's
clock showed then.
"""

_NEWEST = """
SELECT key, CAST(value AS BLOB) FROM lives JOIN entries USING (id)
WHERE share = (SELECT id FROM shares WHERE owner = ?) AND until > ?
    AND written > COALESCE((SELECT written FROM lives WHERE key = ?), -1)
ORDER BY written DESC LIMIT ?
"""

_DELETE_ONE = """
DELETE FROM lives WHERE id = (
    SELECT id FROM lives WHERE share = (SELECT id FROM shares ORDER BY size DESC LIMIT 1) ORDER BY written LIMIT 1
)
"""


class SqliteEntries:
    """Entries of at most `max_bytes` together. When that is not enough, the oldest of who has most goes first.

    Each of two connections works in a thread, one statement at a time. WAL lets one read while the other writes, or
    waits because another process does. A third one is used by the event loop itself, to see that a key has nothing.
    """

    overhead = 300
    """What an entry takes in the file besides its value, in tables and indexes."""

    def __init__(
        self,
        reader: sqlite3.Connection,
        writer: sqlite3.Connection,
        looker: sqlite3.Connection,
        *,
        max_bytes: int,
    ) -> None:
        self.max_bytes = max_bytes
        self._looker = _NonBlockingConnection(looker)
        self._reader = _ThreadConnection(reader)
        self._writer = _ThreadConnection(writer)
        self._clock = _FileClock(writer)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, max_bytes: int) -> AsyncIterator[SqliteEntries]:
        """Those in the file `path`, made with mode 0600 if there is none. Raises ConfigError."""
        try:
            entries = await anyio.to_thread.run_sync(lambda: cls(*_connect(path), max_bytes=max_bytes))
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"TOOLWAY_STORE: {path} cannot be used: {error}.") from error
        try:
            yield entries
        finally:
            entries.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
        self._writer.close()
        self._looker.close()

    async def read(self, *keys: AnyKey) -> list[bytes | None]:
        """What each key has."""
        return await self._reader.run(lambda db: [self._read(db, key) for key in keys])

    async def write(self, key: AnyKey, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        await self._writer.run(lambda db: self._write(db, key, text, ttl))

    async def write_new(self, key: AnyKey, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        return await self._writer.run(lambda db: self._write_new(db, key, text, ttl))

    async def renew(self, keys: Sequence[AnyKey], ttl: float) -> bool:
        """Let these live as if they were written now."""
        return await self._writer.run(lambda db: self._renew(db, keys, ttl))

    async def newest(self, owner: str, most: int, after: str) -> list[tuple[str, bytes]]:
        """What an owner has, the last written first."""

        def read(db: sqlite3.Connection) -> list[tuple[str, bytes]]:
            found = db.execute(_NEWEST, (owner, self._clock.now(), after, most))
            return [(key, bytes(value or b"")) for key, value in found]

        return await self._reader.run(read)

    async def check(self) -> None:
        """See whether the file can be read and written."""
        await self._reader.run(lambda db: db.execute("SELECT id FROM entries LIMIT 1").fetchone())
        await self._writer.run(lambda db: db.execute("UPDATE whole SET written = written + 1"))

    def may_have(self, owner: str, kinds: Iterable[AnyEntryKind]) -> bool:
        """Only the file knows."""
        return True

    def may_hold(self, key: AnyKey) -> bool:
        """Whether the file has something of it, or could not be read at once."""
        query = "SELECT 1 FROM lives WHERE key = ? AND until > ?"
        return self._looker.finds(query, (key.digest, self._clock.now()))

    async def remove(self, key: AnyKey) -> bool:
        """Forget what `key` has; whether it had something."""
        return await self._writer.run(lambda db: self._remove(db, key))

    def _read(self, db: sqlite3.Connection, key: AnyKey) -> bytes | None:
        query = "SELECT CAST(value AS BLOB) FROM lives JOIN entries USING (id) WHERE key = ? AND until > ?"
        found = db.execute(query, (key.digest, self._clock.now())).fetchone()
        return None if found is None else bytes(found[0] or b"")

    def _write(self, db: sqlite3.Connection, key: AnyKey, text: bytes, ttl: float) -> None:
        with _transaction(db):
            is_kept = self._keep(db, key, text, ttl)
        if not is_kept:
            raise NoRoomError(len(text))

    def _write_new(self, db: sqlite3.Connection, key: AnyKey, text: bytes, ttl: float) -> bool:
        with _on_disk(db), _transaction(db):
            if self._read(db, key) is not None:
                return False
            is_kept = self._keep(db, key, text, ttl)
        if not is_kept:
            raise NoRoomError(len(text))
        return True

    def _remove(self, db: sqlite3.Connection, key: AnyKey) -> bool:
        with _transaction(db):
            had = self._read(db, key) is not None
            db.execute("DELETE FROM lives WHERE key = ?", (key.digest,))
        return had

    def _renew(self, db: sqlite3.Connection, keys: Sequence[AnyKey], ttl: float) -> bool:
        with _transaction(db):
            now = self._clock.tick(db)
            for key in keys:
                db.execute("UPDATE whole SET written = written + 1")
                renewed = db.execute(
                    "UPDATE lives SET until = ?, written = (SELECT written FROM whole) WHERE key = ? AND until > ?",
                    (now + ttl, key.digest, now),
                )
                if renewed.rowcount != 1:
                    return False
        return True

    def _keep(self, db: sqlite3.Connection, key: AnyKey, text: bytes, ttl: float) -> bool:
        now = self._clock.tick(db)
        db.execute("DELETE FROM lives WHERE key = ?", (key.digest,))
        db.execute("INSERT OR IGNORE INTO shares (owner, size) VALUES (?, 0)", (key.owner,))
        db.execute("UPDATE whole SET written = written + 1")
        life = db.execute(
            "INSERT INTO lives (key, share, written, until, size)"
            " SELECT ?, shares.id, whole.written, ?, ? FROM shares, whole WHERE owner = ?",
            (key.digest, now + ttl, len(text) + self.overhead, key.owner),
        ).lastrowid
        db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (life, text))
        self._make_room(db, now)
        return db.execute("SELECT 1 FROM lives WHERE id = ?", (life,)).fetchone() is not None

    def _make_room(self, db: sqlite3.Connection, now: float) -> None:
        db.execute("DELETE FROM lives WHERE until <= ?", (now,))
        while db.execute("SELECT size FROM whole").fetchone()[0] > self.max_bytes:
            if db.execute(_DELETE_ONE).rowcount != 1:
                return


class _FileClock:
    """The time of a file, in seconds: it goes on while a process has the file open.

    The system's clock may be set, a month ahead by mistake, and what has ended then would be lost for good. So it is
    asked for the gap between two processes alone, and not believed for long.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            now, clock = connection.execute("SELECT now, clock FROM whole").fetchone()
            gap = min(max(0.0, time.time() - clock), LONGEST_GAP)
            self._ahead: float = now + gap - time.monotonic()
            self._save(connection, now + gap)

    def now(self) -> float:
        """The time."""
        return time.monotonic() + self._ahead

    def tick(self, db: sqlite3.Connection) -> float:
        """The time, which is written down now and then."""
        now = self.now()
        if now > self._saved + CLOCK_SECONDS:
            self._save(db, now)
        return now

    def _save(self, db: sqlite3.Connection, now: float) -> None:
        db.execute("UPDATE whole SET now = max(now, ?), clock = ?", (now, time.time()))
        self._saved = now


class _ThreadConnection:
    """A connection in a thread, for one piece of work after the other.

    When another process keeps its lock for too long, all work is refused for a moment.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._limiter = anyio.CapacityLimiter(1)
        self._rest = Cooldown(REST_SECONDS)
        self._is_patient = True

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work. Raises EntriesError."""
        self._rest.check()
        return await anyio.to_thread.run_sync(self._do, work, limiter=self._limiter)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._rest.check()  # it may have begun while this waited for the thread
        try:
            result = work(self._connection)
            if not self._is_patient:
                self._wait(BUSY_SECONDS)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self._rest.begin()
                self._wait(PROBE_SECONDS)
            raise EntriesError(error) from error
        return result

    def _wait(self, seconds: float) -> None:
        self._connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
        self._is_patient = seconds == BUSY_SECONDS


class _NonBlockingConnection:
    """A connection for whoever cannot wait: it is asked for what can be found in the pages of an index alone.

    Writers do not keep it from reading, and no lock is waited for. A page that is not in memory is, for as long as the
    disk takes: a fiftieth of the time at most, on a disk that is always slow.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA query_only = ON")
        self._connection = connection
        self._rests_until = float("-inf")

    def finds(self, query: str, parameters: Sequence[object]) -> bool:
        """Whether there is a row, or it is not known."""
        if (started := time.monotonic()) < self._rests_until:
            return True
        try:
            found = self._connection.execute(query, parameters).fetchone() is not None
        except sqlite3.Error:
            found = True
        if (took := time.monotonic() - started) > SLOW_LOOK:
            self._rests_until = started + REST_BEHIND_LOOK * took
        return found

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and nobody else writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def _on_disk(db: sqlite3.Connection) -> Iterator[None]:
    """What is written here is not lost when the power fails: it may stand for something that was done."""
    db.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        db.execute("PRAGMA synchronous = NORMAL")


def _connect(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection, sqlite3.Connection]:
    """A reading and a writing connection, and one more to look at what there is."""
    path = path.expanduser()
    # SQLite gives its -wal and -shm files the mode of the database; so the mode must be right before it is opened.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)
    writer = _connection(path)
    try:
        _use_wal(writer)
        writer.execute("PRAGMA journal_size_limit = 4194304")
        _prepare(writer)
        return _connection(path), writer, _connection(path)
    except sqlite3.Error:
        writer.close()
        raise


def _connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
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


def _prepare(db: sqlite3.Connection) -> None:
    """Make the tables. What a file of the first form holds cannot be read any more."""
    with _transaction(db):
        if any(column[1] == "until" for column in db.execute("PRAGMA table_info(entries)")):
            db.execute("DROP TABLE entries")
        for statement in _statements(_SCHEMA):
            db.execute(statement)
        if db.execute("SELECT 1 FROM whole").fetchone() is None:
            db.execute("INSERT INTO whole VALUES (0, 0, ?, ?)", (time.time(), time.time()))


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
