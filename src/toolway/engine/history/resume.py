"""A request that came to nothing after tools ran, and comes again: it goes on from their results.

Clients repeat what failed by themselves: AI SDK every 5xx, whatever the headers say, the OpenAI SDKs what they waited
for too long. People do it too. Without this each repetition would run the tools again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress

import anyio

from toolway.errors import StoreError
from toolway.stores import Store, key_of
from toolway.types import JSON

REPEATED_WITHIN = 60.0
"""Seconds since the last result; what comes later is a new question, and wants new ones."""


class Attempt:
    """One attempt at a request; the same bytes of the same owner are the same request.

    `rounds` holds the messages of all rounds that were finished: at first those of an attempt that came to nothing a
    short while ago. When the block is left by an exception they are kept for the next one.
    """

    def __init__(self, store: Store, owner: str, raw: bytes) -> None:
        self.rounds: Sequence[JSON] = ()
        self._resumed = 0
        self._store = store
        self._key = key_of("attempt", owner, hashlib.sha256(raw).hexdigest())

    async def __aenter__(self) -> Attempt:
        if kept := await self._store.get(self._key):
            self.rounds = kept["rounds"]
            self._resumed = len(self.rounds)
        return self

    async def __aexit__(self, raised: type[BaseException] | None, *_: object) -> None:
        has_more = len(self.rounds) > self._resumed
        if not (has_more if raised else self._resumed):
            return  # as most do: a scope costs a tenth of a small request
        with anyio.CancelScope(shield=True):
            if raised:
                await self._store.put(self._key, {"rounds": [*self.rounds]}, ttl=REPEATED_WITHIN)
            else:  # the same request is a new one from now on
                with suppress(StoreError):
                    await self._store.delete(self._key)
