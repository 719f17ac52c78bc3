"""Requests that failed after tools ran: who sends one again goes on from the rounds that were finished.

Clients repeat what failed by themselves: AI SDK every 5xx, whatever the headers say, the OpenAI SDKs what they waited
for too long. People do it too. Without this each repetition would run the tools again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import anyio

from toolway.conversation.events import EventStream
from toolway.errors import StoreError
from toolway.stores import EntryKind, Key, Store
from toolway.types import JSON, Caller

REPEATED_WITHIN = 60.0
"""Seconds since the last result; what comes later is a new question, and wants new ones."""

FAILED = EntryKind("attempt", list[JSON])
"""The messages of the rounds that were finished."""


def may_be_kept(store: Store, caller: Caller, raw: bytes) -> bool:
    """Whether rounds of an earlier attempt at this request may be kept; False when it is known that there are none."""
    return store.may_have(caller.retry_id, FAILED) and store.may_hold(_key_of(caller, raw))


def _key_of(caller: Caller, raw: bytes) -> Key[list[JSON]]:
    return FAILED.key(caller.retry_id, hashlib.sha256(raw).hexdigest())


class Attempt:
    """One attempt at a request; the same bytes of the same owner are the same request.

    It is entered with the messages of the rounds that an attempt had finished which came to nothing a short while ago.
    When the block is left by an exception, those that `events` tells of are kept for the next one. One that `is_first`
    is known to have none before it.
    """

    def __init__(
        self, store: Store, caller: Caller, raw: bytes, events: EventStream, *, is_first: bool = False
    ) -> None:
        self._is_first = is_first
        self._resumed = 0
        self._store = store
        self._caller = caller
        self._raw = raw
        self._events = events

    @cached_property
    def _key(self) -> Key[list[JSON]]:
        return _key_of(self._caller, self._raw)

    async def __aenter__(self) -> Sequence[JSON]:
        if self._is_first or not self._store.may_have(self._caller.retry_id, FAILED):
            return ()
        rounds = await self._store.get(self._key) or ()
        self._resumed = len(rounds)
        return rounds

    async def __aexit__(self, raised: type[BaseException] | None, *_: object) -> None:
        rounds = self._events.rounds
        has_more = len(rounds) > self._resumed
        if not (has_more if raised else self._resumed):
            return  # as most do: a scope costs a tenth of a small request
        with anyio.CancelScope(shield=True):
            if raised:
                await self._store.put(self._key, [*rounds], ttl=REPEATED_WITHIN)
            else:  # the same request is a new one from now on
                with suppress(StoreError):
                    await self._store.delete(self._key)
