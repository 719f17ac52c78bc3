"""Many owners do anything in any order: the store keeps its promises, whatever keeps its bytes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.unit.stores.test_contract import key, opened
from toolway.errors import StoreError

OWNERS = ["alice", "bob", "carol", "dave"]
MODEST = {"carol", "dave"}
"""They keep so little that it is always within an equal share."""

ROOM = 120_000
NAMES = 6


def value(rng: random.Random, owner: str, name: str, number: int) -> dict[str, Any]:
    """A value that tells whose it is; those of modest owners are small."""
    size = rng.randrange(0, 1_500 if owner in MODEST else 40_000)
    return {"owner": owner, "name": name, "number": number, "text": "x" * size}


@pytest.mark.parametrize("seed", range(4))
async def test_the_store_keeps_its_promises(store_url: str, seed: int):
    rng = random.Random(seed)
    newest: dict[tuple[str, str], dict[str, Any] | None] = {}
    async with opened(store_url, max_bytes=ROOM) as store:
        for number in range(400):
            owner, name = rng.choice(OWNERS), str(rng.randrange(NAMES))
            place = owner, name
            there = await store.get(key(name, owner), certain=True)
            assert there in (None, newest.get(place))
            if owner in MODEST:
                assert there == newest.get(place)
            new = value(rng, owner, name, number)
            match rng.choice(["put", "put", "add", "delete", "renew"]):
                case "put":
                    await store.put(key(name, owner), new)
                    newest[place] = new
                case "add":
                    try:
                        added = await store.add(key(name, owner), new)
                    except StoreError:  # others have more right to the room
                        assert owner not in MODEST
                        newest[place] = None
                        continue
                    assert added == (there is None)
                    newest[place] = new if added else newest[place]
                case "delete":
                    assert await store.delete(key(name, owner)) == (there is not None)
                    newest[place] = None
                case "renew":
                    assert await store.renew([key(name, owner)]) == (there is not None)
        for owner in OWNERS:
            kept = [await store.get(key(str(n), owner)) for n in range(NAMES)]
            assert sum(len(one["text"]) for one in kept if one) <= ROOM
            assert all(one is None or one["owner"] == owner for one in kept)
