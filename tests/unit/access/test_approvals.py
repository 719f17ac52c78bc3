"""Approvals in the store: one answer counts, one run, nothing when the store cannot say, room for everybody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from toolway.access.approvals import MAX_OF_ONE, Approval, Approvals, StoreIndex, Verdict
from toolway.errors import InvalidRequest, NotFound, StoreError, TooMany
from toolway.stores import Store
from toolway.stores.memory import MemoryEntries
from toolway.stores.store import EntriesError
from toolway.types import Caller, Tool, ToolCall

pytestmark = pytest.mark.anyio
TOOL = Tool(name="delete", server="files", description="", parameters={"type": "object"})
ALICE, BOB = Caller(id="alice", name="alice"), Caller(id="bob", name="bob")
YES, NO = Verdict(approve=True, by="x"), Verdict(approve=False, by="y")


class Breaking(MemoryEntries):
    """Entries that can be away."""

    is_away = False

    async def read(self, *keys: Any) -> list[bytes | None]:
        if self.is_away:
            raise EntriesError("away")
        return await super().read(*keys)

    async def write_new(self, key: Any, text: bytes, ttl: float) -> bool:
        if self.is_away:
            raise EntriesError("away")
        return await super().write_new(key, text, ttl)


def approvals(entries: MemoryEntries | None = None, **options: Any) -> Approvals:
    return Approvals(Store(entries or MemoryEntries()), **{"seconds": 60.0, "grant_seconds": 60.0, **options})


async def asked(made: Approvals, caller: Caller = ALICE, **arguments: Any) -> Approval:
    call = ToolCall(id="call_1", name="delete", arguments="{}")
    return await made.ask(caller, call, TOOL, arguments, rule="r", reason="", dialect="chat")


async def test_of_many_who_answer_at_once_the_first_counts_for_all() -> None:
    made = approvals()
    approval = await asked(made)
    found: list[Verdict] = []

    async def answer(verdict: Verdict) -> None:
        found.append(await made.answer(approval.id, verdict))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(answer, YES if number % 2 else NO)
    assert len({verdict.approve for verdict in found}) == 1
    assert await made.waiting() == []


async def test_a_no_takes_a_yes_back_until_the_call_begins() -> None:
    made = approvals()
    early, late = await asked(made), await asked(made)
    await made.answer(early.id, replace(YES, always="key"))
    assert (await made.answer(early.id, NO)).approve is False
    assert await made.granted(ALICE.id, TOOL) is None
    assert (await made.answer(early.id, YES)).approve is False
    assert (await made.use(early), await made.is_taken_back(early)) == (False, True)
    await made.answer(late.id, YES)
    assert await made.use(late)
    assert (await made.answer(late.id, NO)).approve is True
    assert not await made.is_taken_back(late)


async def test_what_is_no_answer_leaves_an_answer_as_it_is() -> None:
    made = approvals()
    approval = await asked(made)
    await made.answer(approval.id, YES)
    assert (await made.answer(approval.id, NO, takes_back=False)).approve is True
    assert await made.use(approval)


@pytest.mark.parametrize("first", ["run", "no"])
async def test_of_a_run_and_many_who_say_no_at_once_either_it_runs_or_no_counts(first: str) -> None:
    made = approvals()
    approval = await asked(made)
    await made.answer(approval.id, YES)
    ran: list[bool] = []
    found: list[bool] = []

    async def run() -> None:
        ran.append(await made.use(approval))

    async def refuse() -> None:
        found.append((await made.answer(approval.id, NO)).approve)

    async with anyio.create_task_group() as group:
        for work in [run, refuse, refuse] if first == "run" else [refuse, refuse, run]:
            group.start_soon(work)
    assert found == [ran[0]] * 2


async def test_an_approval_is_good_for_one_run() -> None:
    made = approvals()
    approval = await asked(made)
    assert [await made.use(approval) for _ in range(3)] == [True, False, False]


async def test_an_approval_is_for_this_tool_and_these_arguments() -> None:
    approval = await asked(approvals(), path="/a")
    assert approval.is_for(TOOL, {"path": "/a"})
    assert not approval.is_for(TOOL, {"path": "/b"})
    for change in (
        {"description": "x"},
        {"parameters": {"type": "object", "a": 1}},
        {"annotations": {"a": 1}},
    ):
        assert not approval.is_for(replace(TOOL, **change), {"path": "/a"})


async def test_what_was_withdrawn_cannot_be_answered() -> None:
    made = approvals()
    approval = await asked(made)
    await made.withdraw([approval])
    with pytest.raises(NotFound):
        await made.answer(approval.id, YES)


async def test_a_store_that_is_away_approves_nothing() -> None:
    entries = Breaking()
    made = approvals(entries)
    approval = await asked(made)
    entries.is_away = True
    for attempt in (
        asked(made),
        made.answer(approval.id, YES),
        made.use(approval),
        made.granted("alice", TOOL),
    ):
        with pytest.raises(StoreError):
            await attempt
    entries.is_away = False
    assert (await made.answer(approval.id, NO)).approve is False


async def test_always_for_a_key_holds_for_its_tool_as_it_is_until_it_is_revoked() -> None:
    made = approvals()
    await made.answer((await asked(made)).id, replace(YES, always="key"))
    grant = await made.granted(ALICE.id, TOOL)
    assert grant is not None
    assert await made.granted(BOB.id, TOOL) is None
    assert await made.granted(ALICE.id, replace(TOOL, description="other")) is None
    await made.answer((await asked(made)).id, replace(YES, always="key"))
    assert len(await made.grants()) == 1
    await made.revoke(grant.id)
    assert await made.granted(ALICE.id, TOOL) is None
    assert await made.grants() == []


async def test_nobody_is_asked_about_more_than_a_person_can_read() -> None:
    with pytest.raises(InvalidRequest):
        await asked(approvals(), text="x" * 10**6)


async def test_one_owner_leaves_room_for_others() -> None:
    index = StoreIndex(Store(MemoryEntries()), "test")
    slots = [await index.add(f"a{number}", "alice", 60.0) for number in range(MAX_OF_ONE)]
    assert len(set(slots)) == MAX_OF_ONE
    with pytest.raises(TooMany):
        await index.add("more", "alice", 60.0)
    await index.add("b", "bob", 60.0)
    await index.remove(slots[0])
    await index.add("again", "alice", 60.0)
