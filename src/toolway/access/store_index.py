"""An index of what waits in a store that can only be asked for keys: so many slots, each for the id of one entry."""

from __future__ import annotations

import random
from collections import Counter
from functools import cached_property

from toolway.errors import TooMany
from toolway.stores import Key, Kind, Store

SLOTS = 500
"""Entries at the same time."""

MAX_OF_ONE = 250
"""Entries of one owner: nobody takes the places of all others."""

ATTEMPTS = 10

SLOT = Kind("slot", list[str])
"""The id of an entry, and whose it is."""


class StoreIndex:
    """The ids of one kind of entry, in all processes. Two that add at once get two slots."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    async def add(self, identity: str, owner: str, ttl: float) -> int:
        """Keep an id for `ttl` seconds; returns its slot. Raises TooMany, StoreError."""
        for _ in range(ATTEMPTS):
            taken = await self._slots()
            if Counter(slot[1] for slot in taken.values())[owner] >= MAX_OF_ONE or len(taken) == SLOTS:
                break
            slot = random.choice([number for number in range(SLOTS) if number not in taken])
            if await self._store.add(self._key(slot), [identity, owner], ttl=ttl):
                return slot
        raise TooMany("there are too many already")

    async def remove(self, slot: int) -> None:
        """Free a slot. Raises StoreError."""
        await self._store.delete(self._key(slot))

    async def ids(self) -> list[str]:
        """All ids. Raises StoreError."""
        return [slot[0] for slot in (await self._slots()).values()]

    async def _slots(self) -> dict[int, list[str]]:
        found = await self._store.get_all(self._keys)
        return {number: slot for number, slot in enumerate(found) if slot}

    @cached_property
    def _keys(self) -> list[Key[list[str]]]:
        return [self._key(number) for number in range(SLOTS)]

    def _key(self, slot: int) -> Key[list[str]]:
        return SLOT.key("toolway", self._name, str(slot))
