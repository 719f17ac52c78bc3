"""The store: JSON values under keys, each with an owner and an end, whatever keeps their bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar
from zlib import crc32

import anyio
import orjson
from pydantic import TypeAdapter

from toolway.errors import NoRoomInStore, StoreError
from toolway.wire.lenient_json import dumps

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger("toolway.store")


SLICE = 50
"""Values that are read at once of many: requests wait for it."""

QUIET_SECONDS = 60.0
"""A store that is down fails every request; one line for so long says it."""


def share_of(owner: str) -> str:
    """To whom it is counted what an owner keeps: what stands before a colon is one caller under several credentials."""
    return owner.partition(":")[0]


class EntryKind(Generic[T_co]):
    """One kind of value: its name, the type that it has in Python, and the version of its form.

    What the store gives back has this type. A value in another version, or damaged, counts as gone, but for versions
    from `oldest` on, which the form reads too. The name stays when its Python name changes: it finds what is stored.
    """

    def __init__(self, name: str, form: type[T_co], *, version: int = 1, oldest: int | None = None) -> None:
        self.name = name
        self.version = version
        self.readable = range(oldest or version, version + 1)
        self._form = form

    def key(self, owner: str, *parts: str) -> Key[T_co]:
        """The key of what `owner` keeps of this kind under these parts."""
        text = "\0".join((self.name, owner, *parts))
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        return Key(digest, share_of(owner), self)

    @cached_property
    def adapter(self) -> TypeAdapter[T_co]:
        """Checks a value, and makes it what it is in Python. It is made when it is needed, which takes a while."""
        return TypeAdapter(self._form)


class Key(NamedTuple, Generic[T_co]):
    """The place of one value. It tells nothing: the digest of its kind, whose it is, and what its maker adds.

    `owner` is the one to whose share it counts.
    """

    digest: str
    owner: str
    kind: EntryKind[T_co]


AnyKey = Key[Any]
AnyEntryKind = EntryKind[Any]


class EntriesError(Exception):
    """Entries could not be read or written."""


class NoRoomError(EntriesError):
    """Entries of a size that others have more right to were not kept."""

    def __init__(self, size: int) -> None:
        super().__init__(f"there is no room for a value of {size:,} bytes beside those of other clients")


class Cooldown:
    """What did not answer in time is left alone for a moment, or each look-up of each request would wait."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = float("-inf")

    def begin(self) -> None:
        """It did not answer in time."""
        self._until = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raises EntriesError while it rests."""
        if time.monotonic() < self._until:
            raise EntriesError("it did not answer in time, and is left alone for a moment")


class Entries(Protocol):
    """Bytes under keys, each for `ttl` seconds. Every method may raise EntriesError."""

    max_bytes: int
    overhead: int
    """No value may be longer than `max_bytes`, with the `overhead` that each has."""

    async def read(self, *keys: AnyKey) -> list[bytes | None]:
        """What each key has; None when it has nothing, or its time is over."""

    async def write(self, key: AnyKey, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""

    async def write_new(self, key: AnyKey, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; True for one of all who try, in all processes."""

    async def renew(self, keys: Sequence[AnyKey], ttl: float) -> bool:
        """Let these live as if they were written now, in this order. False, and no more, when one is gone."""

    async def remove(self, key: AnyKey) -> bool:
        """Forget what `key` has; True for one of all who try, when it had something."""

    async def newest(self, owner: str, most: int, after: str) -> list[tuple[str, bytes]]:
        """What counts to the share of `owner`, with the digest of its key: the last written first, `most` at most.

        Only what was written after the entry with the digest `after`; all, when that is not there.
        """

    async def check(self) -> None:
        """See whether these entries can be read and written."""

    def may_have(self, owner: str, kinds: Iterable[AnyEntryKind]) -> bool:
        """False only when it is known without waiting that this owner's share has nothing of these kinds."""

    def may_hold(self, key: AnyKey) -> bool:
        """False only when it is known without waiting that this key has nothing."""


class Store:
    """Where things wait. `tests/unit/stores/test_contract.py` holds it to these promises, with every kind of entries.

    A value lives for the store's own time, or for `ttl` seconds when that is given. The store is bounded in bytes
    too: the oldest values of the owner who has most go first (Redis has its own rules). A value larger than the store
    is not kept.

    Trouble in `put` and `get` is logged and looks like a value that is gone, since most answers are only better for
    it; with `certain` it is a StoreError, for those that would be wrong. All others say what is certain, and raise
    StoreError when nothing is. Reading takes nothing away, so the same request may come twice.
    """

    def __init__(self, entries: Entries, *, ttl: float = 86_400.0) -> None:
        self._entries = entries
        self._ttl = ttl
        self._trouble = _TroubleLog()

    async def put(self, key: Key[T], value: T, *, ttl: float | None = None, certain: bool = False) -> None:
        """Keep a value for a while, in place of what `key` had."""
        try:
            try:
                text = self._encoded(key, value)
            except NoRoomInStore:
                await self._run(self._entries.remove, key)
                raise
            await self._run(self._entries.write, key, text, self._seconds(ttl))
        except StoreError:
            if certain:
                raise

    async def get(self, key: Key[T], *, certain: bool = False) -> T | None:
        """The value, or None when it was never there or is gone."""
        try:
            (text,) = await self._entries.read(key)
        except EntriesError as error:
            if certain:
                raise self._failed(error) from error
            self._trouble.note(error)
            return None
        return None if text is None else self._decoded(key, text)

    async def get_all(self, keys: Sequence[Key[T]]) -> list[T | None]:
        """Several values at once. Raises StoreError."""
        if not keys:
            return []
        texts = await self._run(self._entries.read, *keys)
        return [
            None if text is None else self._decoded(key, text) for key, text in zip(keys, texts, strict=True)
        ]

    async def newest(
        self, kind: EntryKind[T], owner: str, most: int, after: str = ""
    ) -> AsyncIterator[tuple[str, T]]:
        """What an owner keeps who keeps only this kind, each with the digest of its key: the last put first.

        Only what was put after the key with the digest `after`, if that is there. Raises StoreError.
        """
        share = share_of(owner)
        for number, (digest, text) in enumerate(await self._run(self._entries.newest, share, most, after)):
            if number % SLICE == SLICE - 1:
                await anyio.lowlevel.checkpoint()
            if (value := self._decoded(Key(digest, share, kind), text)) is not None:
                yield digest, value

    async def add(self, key: Key[T], value: T, *, ttl: float | None = None) -> bool:
        """Keep a value unless `key` has one; True for exactly one of all who try, in all processes.

        Made for what must not happen twice: add first, then act if it was True. When StoreError is raised the
        value may be there or not; who then does not act is safe, at the price that perhaps nobody will.
        """
        return await self._run(self._entries.write_new, key, self._encoded(key, value), self._seconds(ttl))

    async def renew(self, keys: Sequence[AnyKey], *, ttl: float | None = None) -> bool:
        """Let values live as if they were put now; False when one of them is gone. Raises StoreError."""
        return not keys or await self._run(self._entries.renew, keys, self._seconds(ttl))

    async def delete(self, key: AnyKey) -> bool:
        """Forget what `key` has; whether it had something. True for one of several who try. Raises StoreError."""
        return await self._run(self._entries.remove, key)

    def may_have(self, owner: str, *kinds: AnyEntryKind) -> bool:
        """Whether one of these kinds may be kept for an owner; False when it is known to be not: nobody need ask."""
        return self._entries.may_have(share_of(owner), kinds)

    def may_hold(self, key: AnyKey) -> bool:
        """The same of one key."""
        return self._entries.may_hold(key)

    async def is_ready(self) -> bool:
        """Whether the store can be read and written now."""
        try:
            await self._run(self._entries.check)
        except StoreError:
            return False
        return True

    async def _run(self, work: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Raises StoreError."""
        try:
            return await work(*args, **kwargs)
        except EntriesError as error:
            raise self._failed(error) from error

    def _failed(self, error: EntriesError) -> StoreError:
        self._trouble.note(error)
        if isinstance(error, NoRoomError):
            return NoRoomInStore(f"The store does not keep this: {error}.")
        return StoreError("The store that keeps what is under way cannot be reached; try again.")

    def _encoded(self, key: Key[T], value: T) -> bytes:
        """The version of the kind, a sum by which damage shows, and JSON. Raises NoRoomInStore."""
        try:
            mark, text = b" ", orjson.dumps(value)
        except (
            TypeError
        ):  # it holds large integers or halves of characters, which orjson would not read either
            mark, text = b"!", dumps(_members(value))
        text = b"%d%b%08x %b" % (key.kind.version, mark, _sum(key, text), text)
        size, most = len(text), self._entries.max_bytes
        if size + self._entries.overhead > most:
            reason = f"a value of {size:,} bytes is over TOOLWAY_STORE_MAX_BYTES ({most:,})"
            self._trouble.note(reason)
            raise NoRoomInStore(f"The store does not keep this: {reason}.")
        return text

    def _decoded(self, key: Key[T], text: bytes) -> T | None:
        """What `_encoded` wrote; None for anything else: damage, another version, what somebody else wrote."""
        found = _FORM.match(text)
        if found and int(found[1]) not in key.kind.readable:
            self._trouble.note(f"a value of the kind {key.kind.name!r} is in another version")
            return None
        try:
            if found and int(found[3], 16) == _sum(key, value := text[found.end() :]):
                read = orjson.loads if found[2] == b" " else json.loads
                return key.kind.adapter.validate_python(read(value))
        except (ValueError, RecursionError):
            pass
        self._trouble.note("a value is damaged, or something else wrote it")
        return None

    def _seconds(self, ttl: float | None) -> float:
        return self._ttl if ttl is None else ttl


_FORM = re.compile(rb"(\d{1,9})([ !])([0-9a-f]{8}) ")


def _members(value: Any) -> Any:
    """A value without dataclasses, which only orjson writes."""
    if is_dataclass(value):
        return {member.name: _members(getattr(value, member.name)) for member in fields(value)}
    return [_members(part) for part in value] if isinstance(value, list | tuple) else value


def _sum(key: AnyKey, text: bytes) -> int:
    return crc32(text, crc32(key.digest.encode()))


class _TroubleLog:
    """What goes wrong, in the log: said at once, then seldom. Counts what it does not say."""

    def __init__(self) -> None:
        self._silent_until = float("-inf")
        self._unsaid = 0

    def note(self, what: object) -> None:
        """Something failed; `what` says it in words."""
        now = time.monotonic()
        if now < self._silent_until:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last line)" if self._unsaid else ""
        self._silent_until, self._unsaid = now + QUIET_SECONDS, 0
        log.warning("the store failed: %s%s", what, more)
