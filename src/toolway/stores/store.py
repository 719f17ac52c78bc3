"""The store: JSON values under keys, each with an owner and an end, whatever keeps their bytes."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

import orjson

from toolway.errors import StoreError
from toolway.types import JSON

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("toolway.store")

REST_SECONDS = 5.0

QUIET_SECONDS = 60.0
"""A store that is down fails every request; one line for so long says it."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The place of one value. It tells nothing: the digest of what it is for, whose it is, and what its maker adds."""

    digest: str
    owner: str


def key_of(purpose: str, owner: str, *parts: str) -> Key:
    """The key of what `owner` keeps for `purpose` under these parts."""
    text = "\0".join((purpose, owner, *parts))
    return Key(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(), owner)


class EntriesError(Exception):
    """Entries could not be read or written."""


class Rest:
    """What did not answer in time is left alone for a moment, or each look-up of each request would wait."""

    def __init__(self) -> None:
        self._until = float("-inf")

    def begin(self) -> None:
        """It did not answer in time."""
        self._until = time.monotonic() + REST_SECONDS

    def check(self) -> None:
        """Raises EntriesError while it rests."""
        if time.monotonic() < self._until:
            raise EntriesError("it did not answer in time, and is left alone for a moment")


def no_room(size: int) -> str:
    """Why a value of `size` bytes was not kept though it is not too large: others have more right to the room."""
    return f"there is no room for a value of {size:,} bytes beside those of other clients"


class Entries(Protocol):
    """Bytes under keys, each for `ttl` seconds. Every method may raise EntriesError."""

    max_bytes: int
    overhead: int
    """No value may be longer than `max_bytes`, with the `overhead` that each has."""

    async def read(self, key: Key) -> bytes | None:
        """What `key` has; None when it has nothing, or its time is over."""

    async def write(self, key: Key, text: bytes, ttl: float) -> None:
        """Keep `text`, in place of what `key` had."""

    async def write_new(self, key: Key, text: bytes, ttl: float) -> bool:
        """Keep `text` unless `key` has something; True for one of all who try, in all processes."""

    async def remove(self, key: Key) -> bool:
        """Forget what `key` has; True for one of all who try, when it had something."""


class Store:
    """Where things wait. `tests/unit/stores/test_contract.py` holds it to these promises, with every kind of entries.

    A value lives for the store's own time, or for `ttl` seconds when that is given. The store is bounded in bytes
    too; what was written first goes first (Redis has its own rules). A value larger than the store is not kept.

    Trouble in `put` and `get` is logged and looks like a value that is gone, since no answer may fail for it.
    `add` and `delete` say what is certain, and raise StoreError when nothing is. Reading takes nothing away, so
    the same request may come twice.
    """

    def __init__(self, entries: Entries, *, ttl: float = 86_400.0) -> None:
        self._entries = entries
        self._ttl = ttl
        self._trouble = _TroubleLog()

    async def put(self, key: Key, value: JSON, *, ttl: float | None = None) -> None:
        """Keep a JSON object for a while, in place of what `key` had."""
        text = orjson.dumps(value)
        try:
            if too_large := self._too_large(text):
                self._trouble.note(too_large)
                await self._run(self._entries.remove, key)
            else:
                await self._run(self._entries.write, key, text, self._seconds(ttl))
        except StoreError:
            return

    async def get(self, key: Key) -> JSON | None:
        """The object, or None when it was never there or is gone."""
        try:
            text = await self._run(self._entries.read, key)
        except StoreError:
            return None
        return None if text is None else self._decoded(text)

    async def add(self, key: Key, value: JSON, *, ttl: float | None = None) -> bool:
        """Keep a JSON object unless `key` has one; True for exactly one of all who try, in all processes.

        Made for what must not happen twice: add first, then act if it was True. When StoreError is raised the
        object may be there or not; who then does not act is safe, at the price that perhaps nobody will.
        """
        text = orjson.dumps(value)
        if too_large := self._too_large(text):
            raise StoreError(too_large)
        return await self._run(self._entries.write_new, key, text, self._seconds(ttl))

    async def delete(self, key: Key) -> bool:
        """Forget what `key` has; whether it had something. True for one of several who try. Raises StoreError."""
        return await self._run(self._entries.remove, key)

    async def _run(self, work: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises StoreError."""
        try:
            return await work(*args, **kwargs)
        except EntriesError as error:
            self._trouble.note(error)
            raise StoreError(
                "The store that keeps what is under way cannot be reached; try again."
            ) from error

    def _decoded(self, text: bytes) -> JSON | None:
        try:
            value: Any = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            return value
        self._trouble.note("a value is no JSON object; does something else write to these keys?")
        return None

    def _seconds(self, ttl: float | None) -> float:
        return self._ttl if ttl is None else ttl

    def _too_large(self, text: bytes) -> str | None:
        """Why there can never be room for a text, if there cannot."""
        if len(text) + self._entries.overhead <= self._entries.max_bytes:
            return None
        bound = f"TOOLWAY_STORE_MAX_BYTES ({self._entries.max_bytes:,})"
        return f"a value of {len(text):,} bytes is over {bound} and is not kept"


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
