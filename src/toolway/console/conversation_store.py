"""The conversations that are over, in the store: a line of each for the list, and of some all that is kept of them.

The lines are held here too, in the order in which the conversations began; those of other processes, and of before this
one, come from the store when somebody looks.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import orjson

from toolway.errors import StoreError
from toolway.settings.settings import ConsoleSettings
from toolway.stores import EntryKind, Key, Store
from toolway.types import JSON
from toolway.wire.lenient_json import dumps, dumps_text

SEARCH_SECONDS = 2.0
"""How long what was said is looked through for a text."""
AT_ONCE = 50
"""Records that are read at once for that."""
OTHERS = 20
"""After so many records it is looked how much other processes keep."""

_LINES, _RECORDS = "console lines", "console records"
"""Whose entries these are in the store: nothing else is in their shares."""
_LINE = EntryKind("console line", dict[str, Any])
_RECORD = EntryKind("console record", dict[str, Any])


class ConversationStore:
    """Lines and records, bounded in number, bytes and age; the oldest go first.

    `on_others` hears of lines that other processes wrote down, once they are read.
    """

    def __init__(
        self, settings: ConsoleSettings, store: Store, on_others: Callable[[list[JSON]], None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._on_others = on_others
        self._lines: list[JSON] = []
        """The oldest first."""
        self._known: dict[str, JSON] = {}
        self._sizes: dict[str, int] = {}
        self._size = 0
        """Bytes of the records of these lines, of each and of all."""
        self._newest = ""
        self._read_at = float("-inf")
        self._kept = 0
        self._reading = anyio.Lock()

    @property
    def most(self) -> int:
        """So many lines at most."""
        return int(self._settings.max_conversations)

    async def keep(self, line: JSON, record: JSON | None = None) -> None:
        """Write down a conversation that is over."""
        if record is not None:
            text = dumps(record)
            line["size"] = len(text)
            await self._store.put(_record(line["id"]), orjson.Fragment(text), ttl=self._settings.ttl)
            self._kept += 1
        await self._store.put(_line(line["id"]), line, ttl=self._settings.ttl)
        self._hold(line)
        if record is not None and self._kept % OTHERS == 0:
            await self.read()
        await self._shrink()

    async def read(self, age: float = 0.0) -> None:
        """Take in what other processes wrote down since the last time, if that is longer ago than `age` seconds."""
        new: list[JSON] = []
        async with self._reading:
            if time.monotonic() - self._read_at < age:
                return
            self._read_at = time.monotonic()
            with suppress(StoreError):
                newest = ""
                async for digest, line in self._store.newest(_LINE, _LINES, self.most, self._newest):
                    newest = newest or digest
                    if line["id"] not in self._known:
                        new.append(line)
                self._newest = newest or self._newest
            for line in reversed(new):
                self._hold(line)
        end = time.time() - self._settings.ttl
        while self._lines and self._lines[0]["began"] + self._lines[0]["seconds"] < end:
            self._drop()
        if new:
            self._on_others(new[::-1])

    async def record(self, identity: str) -> JSON | None:
        """All that is kept of a conversation; of one that was kept as a line alone, that line."""
        if record := await self._store.get(_record(identity)):
            return record
        await self.read()
        return self._known.get(identity)

    def newest(self, most: int) -> list[JSON]:
        """The lines of those that began last, the newest first."""
        return self._lines[: -most - 1 : -1]

    async def search(
        self, lines: list[JSON], text: str, fits: Callable[[JSON], bool], most: int
    ) -> list[JSON]:
        """The first `most` of these lines that fit, and that hold the text, or whose records do.

        What was said is looked through for some time; what is older than that is found by its line alone.
        """
        wanted = text.casefold()
        end = time.monotonic() + SEARCH_SECONDS
        found: list[JSON] = []
        for start in range(0, len(lines), AT_ONCE):
            await anyio.lowlevel.checkpoint()
            part = [line for line in lines[start : start + AT_ONCE] if fits(line)]
            hits = {line["id"] for line in part if not wanted or wanted in _text(line)}
            if wanted and time.monotonic() < end:
                hits |= await self._containing([line["id"] for line in part if "size" in line], wanted)
            found += [line for line in part if line["id"] in hits]
            if len(found) >= most:
                break
        return found[:most]

    async def _containing(self, identities: list[str], wanted: str) -> set[str]:
        """Those of which the records hold the text."""
        try:
            records = await self._store.get_all([_record(identity) for identity in identities])
        except StoreError:
            return set()
        pairs = zip(identities, records, strict=True)
        return {identity for identity, record in pairs if record and wanted in _text(record)}

    def _hold(self, line: JSON) -> None:
        self._known[line["id"]] = line
        insort(self._lines, line, key=_began)
        if size := line.get("size"):
            self._sizes[line["id"]] = size
            self._size += size

    async def _shrink(self) -> None:
        """Make room: records go before lines."""
        with suppress(StoreError):
            while self._size > self._settings.max_bytes:
                identity = next(line["id"] for line in self._lines if line["id"] in self._sizes)
                self._size -= self._sizes.pop(identity)
                await self._store.delete(_record(identity))
            while len(self._lines) > self.most:
                identity = self._drop()
                await self._store.delete(_line(identity))
                await self._store.delete(_record(identity))

    def _drop(self) -> str:
        """Hold the oldest line no more; its id."""
        identity: str = self._lines.pop(0)["id"]
        del self._known[identity]
        self._size -= self._sizes.pop(identity, 0)
        return identity


def _began(line: JSON) -> float:
    began: float = line["began"]
    return began


def _text(value: JSON) -> str:
    return dumps_text(value).casefold()


def _line(identity: str) -> Key[JSON]:
    return _LINE.key(_LINES, identity)


def _record(identity: str) -> Key[JSON]:
    return _RECORD.key(_RECORDS, identity)
