"""What is kept of responses: each gives back what it was, costs what it adds, and goes with its last reader."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import anyio
import orjson
import pytest

from tests.unit.stores.test_contract import opened
from toolway.api.responses.items.input_items import OpenTurn
from toolway.api.responses.stored_responses import (
    CHUNK,
    LONG,
    RESPONSE,
    StoredResponse,
    StoredResponses,
    new_id,
    with_ids,
)
from toolway.errors import NotFound
from toolway.stores import EntryKind, Store

JSON = dict[str, Any]

TTL = 1000.0


def said(text: str, role: str = "user") -> JSON:
    return {"role": role, "content": text}


def record(previous: StoredResponse | None, question: str, answer: str, **more: Any) -> StoredResponse:
    """A response that goes on from another one."""
    identity = new_id()
    content = [{"type": "output_text", "text": answer}]
    output = [{"id": f"msg_{identity}", "type": "message", "role": "assistant", "content": content}]
    turn = list(previous.turn.results) if previous and previous.turn else []
    before = list(previous.messages) if previous else []
    resource = {
        "id": identity,
        "status": "completed",
        "background": False,
        "tools": [{"type": "function", "name": "f", "description": "long " * 100}],
        "instructions": "Be brief. " * 50,
        "previous_response_id": previous.resource["id"] if previous else None,
        "output": output,
    }
    return StoredResponse(
        resource=resource,
        items=with_ids([said(question)], identity),
        messages=[*before, *turn, said(question), said(answer, "assistant")],
        own=[*(previous.own if previous else ()), f"call_{identity}"],
        **more,
    )


def shown(kept: StoredResponse | None) -> Any:
    """A record as JSON, without its place, which is nobody's business."""
    return kept and orjson.loads(orjson.dumps(replace(kept, path=(), lengths=())))


async def size_of(store: Store, url: str) -> int:
    """Bytes that a store takes, as it counts them itself."""
    entries: Any = store._entries
    if url == "memory:":
        return int(entries._size)
    if url.startswith("sqlite"):
        return int(entries._writer._connection.execute("SELECT size FROM whole").fetchone()[0])
    sizes = [await entries._redis.hget(name, "all") for name in await entries._redis.keys("*:sizes")]
    return sum(map(int, sizes))


async def test_a_conversation_of_a_hundred_turns_takes_at_most_three_times_its_text(store_url: str):
    rng = random.Random(1)
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        last: StoredResponse | None = None
        text = 0
        for _ in range(100):
            question, answer = (rng.randbytes(size).hex() for size in (600, 500))
            text += len(question) + len(answer)
            saved = await records.save("me", record(last, question, answer), last)
            last = await records.find("me", saved.resource["id"])
            assert shown(last) == shown(saved)
        assert await size_of(store, store_url) < 3 * text


async def test_texts_of_any_kind_come_back(store_url: str):
    sizes = (39, 40, 41, LONG - 1, LONG, LONG + 1)
    texts = [
        "",
        "\0",
        "\0\x30",
        "0" * LONG,
        *("x" * size for size in sizes),
        *("\0" * size for size in sizes),
    ]
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        for text, question in product(texts, ["short", "long" * LONG]):
            turn = OpenTurn(assistant={"role": "assistant", "content": text}, results=[said(text, "tool")])
            saved = await records.save("me", record(None, question, text, turn=turn, listed=["a"]))
            assert shown(await records.find("me", saved.resource["id"])) == shown(saved)


async def test_a_conversation_whose_beginning_was_changed_is_kept_anew(store_url: str):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "long " * 100, "Yes."))
        second = record(first, "And?", "No.")
        second = replace(second, messages=[said("short"), *second.messages[1:]])
        await records.save("me", second, first)
        for kept in (first, second):
            assert shown(await records.find("me", kept.resource["id"])) == shown(kept)


async def test_a_response_outlives_those_it_goes_on_from(store_url: str):
    async with opened(store_url) as store:
        first = await StoredResponses(store, ttl=1.0).save("me", record(None, "One?", "One."))
        records = StoredResponses(store, ttl=TTL)
        second = await records.save("me", record(first, "Two?", "Two."), first)
        branch = await records.save("me", record(first, "Or?", "Or."), first)
        with anyio.fail_after(60):
            while await records.find("me", first.resource["id"]):
                await anyio.lowlevel.checkpoint()
        for kept in (second, branch):
            assert shown(await records.find("me", kept.resource["id"])) == shown(kept)
        await records.delete("me", second.resource["id"])
        assert shown(await records.find("me", branch.resource["id"])) == shown(branch)


async def test_what_is_deleted_while_somebody_goes_on_from_it_does_not_take_the_rest_along(store_url: str):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "One?", "One."))
        second = await records.save("me", record(first, "Two?", "Two."), first)
        await records.delete("me", first.resource["id"])
        await records.delete("me", second.resource["id"])
        third = await records.save("me", record(second, "Three?", "Three."), second)
        assert shown(await records.find("me", third.resource["id"])) == shown(third)


async def test_branches_are_made_at_once(store_url: str):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "One?", "One."))
        more = [record(first, f"{n}?", f"{n}.") for n in range(20)]
        async with anyio.create_task_group() as group:
            for each in more:
                group.start_soon(records.save, "me", each, first)
        for each in more:
            assert shown(await records.find("me", each.resource["id"])) == shown(each)


@dataclass
class Model:
    """What should be in the store, and whose it is."""

    kept: dict[tuple[str, str], StoredResponse]

    def of(self, owner: str) -> Sequence[StoredResponse]:
        return [kept for (whose, _), kept in self.kept.items() if whose == owner]


@pytest.mark.parametrize("seed", range(5))
async def test_owners_who_go_on_branch_and_delete_find_what_they_kept_and_leave_nothing(
    store_url: str, seed: int
):
    rng = random.Random(seed)
    owners = ["alice", "bob", "carol"]
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        model = Model(kept={})
        for number in range(120):
            owner = rng.choice(owners)
            mine = model.of(owner)
            if mine and rng.random() < 0.35:
                gone = rng.choice(mine).resource["id"]
                await records.delete(owner, gone)
                del model.kept[owner, gone]
                with pytest.raises(NotFound):
                    await records.delete(owner, gone)
            else:
                found = await records.find(owner, rng.choice(mine).resource["id"]) if mine else None
                previous = found if rng.random() < 0.85 else None
                text = f"{rng.choice('abc') * 60}{number % 3}"
                saved = await records.save(owner, record(previous, text, text[::-1]), previous)
                model.kept[owner, saved.resource["id"]] = saved
            identity = rng.choice([*model.kept, ("alice", "resp_none")])
            for whose in owners:
                kept = shown(await records.find(whose, identity[1]))
                assert kept == (shown(model.kept.get(identity)) if whose == identity[0] else None)
        for (owner, gone), kept in [*model.kept.items()]:
            assert shown(await records.find(owner, gone)) == shown(kept)
        chunks = [
            CHUNK.key(owner, thread, str(number))
            for (owner, _), kept in model.kept.items()
            for thread, count in kept.path
            for number in range(count)
        ]
        for owner, gone in model.kept:
            await records.delete(owner, gone)
            assert await store.get(RESPONSE.key(owner, gone)) is None
        assert set(await store.get_all(chunks)) == {None}


OLD_RESPONSE = EntryKind("response", dict[str, Any], version=1)
"""The form before texts had to be of 200 characters to stand once: it was forty, and all records were packed."""


async def test_a_response_of_the_first_form_is_read_as_it_was_written(store_url: str):
    words, answer = (
        "A question of more than forty characters, say.",
        "An answer of just as many of them, or more.",
    )
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        saved = await records.save("me", record(None, words, answer))
        identity = saved.resource["id"]
        kept = await store.get(RESPONSE.key("me", identity))
        assert kept is not None
        resource, items = orjson.dumps(kept.resource), orjson.dumps(kept.items)
        old = {
            "resource": orjson.loads(resource.replace(answer.encode(), rb"\u00001")),
            "items": orjson.loads(items.replace(words.encode(), rb"\u00000")),
            "turn": kept.turn,
            "listed": kept.listed,
            "path": kept.path,
        }
        await store.put(OLD_RESPONSE.key("me", identity), old)
        await store.put(CHUNK.key("me", kept.path[0][0], "0"), kept.chunk)
        assert shown(await records.find("me", identity)) == shown(saved)


async def test_a_response_whose_chunk_stands_by_itself_is_gone_on_from(store_url: str):
    """So did that of each conversation's first response before it stood in the record."""
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "One? " * LONG, "One."))
        key = RESPONSE.key("me", first.resource["id"])
        kept = await store.get(key)
        assert kept is not None and kept.chunk is not None
        await store.put(CHUNK.key("me", kept.path[0][0], "0"), kept.chunk)
        await store.put(key, replace(kept, chunk=None))
        found = await records.find("me", first.resource["id"])
        assert found is not None and shown(found) == shown(first)
        for answer in ("Two.", "Or."):
            more = await records.save("me", record(found, "Two?", answer), found)
            assert shown(await records.find("me", more.resource["id"])) == shown(more)


async def test_a_conversation_that_nobody_goes_on_with_is_one_entry(store_url: str):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "One?", "One."))
        assert await store.get(CHUNK.key("me", first.path[0][0], "0")) is None
        second = await records.save("me", record(first, "Two?", "Two."), first)
        await records.delete("me", first.resource["id"])
        assert shown(await records.find("me", second.resource["id"])) == shown(second)


async def test_a_first_response_that_is_deleted_while_somebody_goes_on_from_it_is_kept_for_that_one(
    store_url: str,
):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        first = await records.save("me", record(None, "One?", "One."))
        await records.delete("me", first.resource["id"])
        second = await records.save("me", record(first, "Two?", "Two."), first)
        assert shown(await records.find("me", second.resource["id"])) == shown(second)
        assert await records.find("me", first.resource["id"]) is None
        await records.delete("me", second.resource["id"])
        keys = [CHUNK.key("me", second.path[0][0], str(number)) for number in range(2)]
        assert await store.get_all(keys) == [None, None]


async def test_a_response_that_names_a_text_nobody_has_counts_as_gone(store_url: str):
    async with opened(store_url) as store:
        records = StoredResponses(store, ttl=TTL)
        saved = await records.save("me", record(None, "a", "b"))
        identity = saved.resource["id"]
        kept = await store.get(RESPONSE.key("me", identity))
        assert kept is not None
        damaged = replace(kept, resource={**kept.resource, "status": "\x007"}, packed_from=40)
        await store.put(RESPONSE.key("me", identity), damaged)
        assert await records.find("me", identity) is None
