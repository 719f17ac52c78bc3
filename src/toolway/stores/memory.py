"""The entries of one process: bounded, forgotten after a while and at the end of the process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from toolway.stores.store import AnyEntryKind, AnyKey, NoRoomError

T = TypeVar("T", bound=tuple[Any, ...])

SHARE_BYTES = 800
"""What CPython takes for an owner who has something, besides the entries."""


@dataclass(slots=True, eq=False)
class _Share:
    """What one owner has: the end and the text of each entry, in the order in which they were written."""

    entries: OrderedDict[str, tuple[float, bytes]] = field(default_factory=OrderedDict)
    size: int = 0
    kinds: dict[AnyEntryKind, float] = field(default_factory=dict)
    """When the last of each kind ends that was among them."""

    def lives_until(self, kind: AnyEntryKind, until: float) -> None:
        """There is an entry of this kind that ends then."""
        self.kinds[kind] = max(until, self.kinds.get(kind, 0.0))


class MemoryEntries:
    """Entries of at most `max_bytes` together. When that is not enough, the oldest of who has most goes first."""

    overhead = 700
    """What CPython takes for an entry besides its text: the key, the tables, the heaps."""

    def __init__(self, *, max_bytes: int = 64 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._size = 0
        self._shares: dict[str, _Share] = {}
        self._ends = _Heap[tuple[float, str, str]](self._is_end)
        """When which entry of which owner ends."""
        self._sizes = _Heap[tuple[int, str]](self._is_size)
        """The size of which owner's share, less than zero: the largest comes first."""

    async def read(self, *keys: AnyKey) -> list[bytes | None]:
        """What each key has."""
        return [self._read(key) for key in keys]

    def _read(self, key: AnyKey) -> bytes | None:
        share = self._shares.get(key.owner)
        if share is None:
            return None
        until, text = share.entries.get(key.digest, (0.0, b""))
        return text if until > time.monotonic() else None

    async def write(self, key: AnyKey, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""
        self._forget(key.owner, key.digest)
        now = time.monotonic()
        share = self._share(key.owner)
        share.lives_until(key.kind, now + ttl)
        # A copy takes no more memory than it must: what orjson gives keeps hold of the larger buffer that it wrote.
        share.entries[key.digest] = (now + ttl, bytes(memoryview(text)))
        self._ends.push((now + ttl, key.owner, key.digest), self._all_ends)
        self._grow(key.owner, share, len(text) + self.overhead)
        self._make_room(now)
        if key.digest not in share.entries:
            raise NoRoomError(len(text))

    async def write_new(self, key: AnyKey, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; whether it was kept."""
        if self._read(key) is not None:
            return False
        await self.write(key, text, ttl)
        return True

    async def remove(self, key: AnyKey) -> bool:
        """Forget what `key` has; whether it had something."""
        had = self._read(key) is not None
        self._forget(key.owner, key.digest)
        return had

    async def renew(self, keys: Sequence[AnyKey], ttl: float) -> bool:
        """Let these live as if they were written now."""
        until = time.monotonic() + ttl
        for key in keys:
            text = self._read(key)
            if text is None:
                return False
            share = self._shares[key.owner]
            share.entries[key.digest] = (until, text)
            share.entries.move_to_end(key.digest)
            share.lives_until(key.kind, until)
            self._ends.push((until, key.owner, key.digest), self._all_ends)
        return True

    async def newest(self, owner: str, most: int, after: str) -> list[tuple[str, bytes]]:
        """What an owner has, the last written first."""
        now = time.monotonic()
        found: list[tuple[str, bytes]] = []
        share = self._shares.get(owner)
        for digest, (until, text) in reversed(share.entries.items()) if share else ():
            if digest == after or len(found) == most:
                break
            if until > now:
                found.append((digest, text))
        return found

    async def check(self) -> None:
        """Nothing can be wrong with them."""

    def may_have(self, owner: str, kinds: Iterable[AnyEntryKind]) -> bool:
        """Whether there is a share of this owner's in which one of these kinds may live still."""
        share = self._shares.get(owner)
        if share is None:
            return False
        return any(share.kinds[kind] > time.monotonic() for kind in kinds if kind in share.kinds)

    def may_hold(self, key: AnyKey) -> bool:
        """Whether it has something."""
        return self._read(key) is not None

    def _share(self, owner: str) -> _Share:
        if owner not in self._shares:
            self._shares[owner] = _Share()
            self._size += SHARE_BYTES
        return self._shares[owner]

    def _make_room(self, now: float) -> None:
        while (end := self._ends.first()) and end[0] <= now:
            self._forget(*end[1:])
        while self._size > self.max_bytes and (largest := self._sizes.first()):
            owner = largest[1]
            self._forget(owner, next(iter(self._shares[owner].entries)))

    def _forget(self, owner: str, digest: str) -> None:
        share = self._shares.get(owner)
        if share is None or digest not in share.entries:
            return
        _, text = share.entries.pop(digest)
        self._grow(owner, share, -len(text) - self.overhead)
        if not share.entries:
            del self._shares[owner]
            self._size -= SHARE_BYTES

    def _grow(self, owner: str, share: _Share, size: int) -> None:
        share.size += size
        self._size += size
        if share.size:
            self._sizes.push((-share.size, owner), self._all_sizes)

    def _is_end(self, end: tuple[float, str, str]) -> bool:
        until, owner, digest = end
        share = self._shares.get(owner)
        return share is not None and share.entries.get(digest, (None,))[0] == until

    def _all_ends(self) -> Iterable[tuple[float, str, str]]:
        for owner, share in self._shares.items():
            for digest, (until, _) in share.entries.items():
                yield until, owner, digest

    def _is_size(self, size: tuple[int, str]) -> bool:
        share = self._shares.get(size[1])
        return share is not None and share.size == -size[0]

    def _all_sizes(self) -> Iterable[tuple[int, str]]:
        return ((-share.size, owner) for owner, share in self._shares.items())


class _Heap(Generic[T]):
    """The least of items, some of which are no longer true; those that are not go when they come up, or are many."""

    def __init__(self, is_true: Callable[[T], bool]) -> None:
        self.items: list[T] = []
        self._is_true = is_true
        self._room = 64

    def push(self, item: T, all_true: Callable[[], Iterable[T]]) -> None:
        """One more; `all_true` gives all that are true now."""
        heappush(self.items, item)
        if len(self.items) > self._room:
            self.items = list(all_true())
            heapify(self.items)
            self._room = 2 * len(self.items) + 64

    def first(self) -> T | None:
        """The least that is true, which stays."""
        while self.items and not self._is_true(self.items[0]):
            heappop(self.items)
        return self.items[0] if self.items else None
