"""Approvals: calls that wait for a person, kept in the store, so that any replica can go on with them.

A call waits until somebody with the right answers, or its time is over. The first answer counts; only a no takes a yes
back, until the call begins. The store counts the time, and of those who would begin the call or take it back at once it
lets one win; so neither a clock that jumps nor a race lets a call run twice, or after a no.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import anyio

from toolway.errors import InvalidRequest, NotFound, TooMany
from toolway.stores import EntryKind, Key, Store, share_of
from toolway.tools.names import digest_of
from toolway.types import JSON, Caller, Tool, ToolCall
from toolway.wire.lenient_json import dumps

Scope = Literal["", "conversation", "key"]
"""How far a yes reaches: this call; each call of this tool in this conversation; each with this key."""

MAX_ARGUMENTS = 64 * 2**10
"""Bytes of arguments that a person can be asked about."""

POLL_SECONDS = 1.0
"""Seconds between two looks whether somebody answered at another replica."""

OWNER = "toolway"
"""Whose entries these are in the store: an approval is found by its id alone, whoever asked."""


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A call that waits. `arguments` are exactly what would run, `tool_digest` is that of the tool that would run it.

    `created` is Unix time, for people alone; it ends `seconds` later by the store's own time.
    """

    id: str
    owner: str
    """The `id` of the caller."""
    key: str
    """The name of the caller's key; empty without keys."""
    name: str
    """The tool's name as the model sees it."""
    tool: str
    server: str
    arguments: JSON
    tool_digest: str
    rule: str = ""
    reason: str = ""
    dialect: str = ""
    client: str = ""
    """What the caller's program says that it is."""
    conversation: str = ""
    """The id of the conversation, as in the audit log; empty where there is none."""
    created: float = field(default_factory=time.time)
    seconds: float = 0.0
    slot: int = 0

    def is_for(self, tool: Tool, arguments: JSON) -> bool:
        """Whether it is this very tool, unchanged, with these very arguments."""
        return self.tool_digest == digest_of(tool) and _text(self.arguments) == _text(arguments)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Somebody's answer: `by` says who ("chat", a key's name), `always` how far a yes reaches."""

    approve: bool
    by: str = ""
    reason: str = ""
    always: Scope = ""
    grant: str = ""
    """The id of the standing yes that it gave."""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A standing yes for one unchanged tool: in one conversation, or for one key."""

    id: str
    scope: Scope
    owner: str
    key: str
    name: str
    tool: str
    server: str
    tool_digest: str
    by: str = ""
    created: float = field(default_factory=time.time)
    seconds: float = 0.0
    slot: int = 0


APPROVAL = EntryKind("approval", Approval)
VERDICT = EntryKind("verdict", Verdict)
GRANT = EntryKind("grant", Grant)
BEGUN = EntryKind("approval used", bool)
"""Whether the call of an approval has begun; False: it never will, since a yes was taken back."""
LINK = EntryKind("approval link", str)
AWAITED = EntryKind("approval awaited", str)


class Approvals:
    """All approvals and grants in a store. A yes is good for `seconds`, a grant for `grant_seconds`.

    Raises StoreError where nothing is certain; then nothing may run.
    """

    def __init__(self, store: Store, *, seconds: float, grant_seconds: float) -> None:
        self.store = store
        self.seconds = seconds
        self._grant_seconds = grant_seconds
        self._waiting = StoreIndex(store, "approvals")
        self._granted = StoreIndex(store, "grants")
        self._answered: dict[str, anyio.Event] = {}
        self.listeners: list[Callable[[], None]] = []
        """Called when something began or ceased to wait, or a standing yes came or went, in this process."""

    async def ask(
        self,
        caller: Caller,
        call: ToolCall,
        tool: Tool,
        arguments: JSON,
        *,
        rule: str,
        reason: str,
        dialect: str,
        conversation: str = "",
    ) -> Approval:
        """Let a call wait. Raises InvalidRequest when nobody can be asked about it, StoreError."""
        if len(_text(arguments)) > MAX_ARGUMENTS:
            raise InvalidRequest("its arguments are too long for a person to judge")
        approval = Approval(
            id=f"apr_{secrets.token_hex(12)}",
            owner=caller.id,
            key=caller.name,
            name=call.name,
            tool=tool.name,
            server=tool.server,
            arguments=arguments,
            tool_digest=digest_of(tool),
            rule=rule,
            reason=reason,
            dialect=dialect,
            client=caller.client,
            conversation=conversation,
            seconds=self.seconds,
        )
        slot = await self._waiting.add(approval.id, share_of(caller.id), self.seconds)
        approval = replace(approval, slot=slot)
        await self.store.put(_key(approval.id), approval, ttl=self.seconds, certain=True)
        self._tell()
        return approval

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()

    async def find(self, identity: str) -> Approval | None:
        """The approval with this id; None when its time is over, or there never was one."""
        return await self.store.get(_key(identity), certain=True)

    async def waiting(self) -> list[Approval]:
        """All that wait for an answer, the oldest first."""
        ids = await self._waiting.ids()
        found = await self.store.get_all([_key(identity) for identity in ids])
        verdicts = await self.store.get_all([_verdict(identity) for identity in ids])
        pending = [a for a, verdict in zip(found, verdicts, strict=True) if a is not None and verdict is None]
        return sorted(pending, key=lambda approval: approval.created)

    async def answer(self, identity: str, verdict: Verdict, *, takes_back: bool = True) -> Verdict:
        """Decide; returns the answer that counts: the first one, or a no that takes a yes back in time.

        What is no more than the lack of an answer does not `takes_back`.
        Raises NotFound: no such approval, or its time is over.
        """
        approval = await self.find(identity)
        if approval is None:
            raise _not_found(identity)
        if verdict.approve and verdict.always:
            verdict = replace(verdict, grant=_new_grant_id(approval, verdict.always))
        if not await self.store.add(_verdict(identity), verdict, ttl=2 * self.seconds):
            return await self._second(approval, verdict, takes_back=takes_back)
        await self._waiting.remove(approval.slot)
        if event := self._answered.get(identity):
            event.set()
        if verdict.grant:
            await self._grant(approval, verdict)
        self._tell()
        return verdict

    async def _second(self, approval: Approval, verdict: Verdict, *, takes_back: bool) -> Verdict:
        """The answer that counts when there was one before this."""
        first = await self.verdict(approval.id)
        if first is None:
            raise _not_found(approval.id)
        if verdict.approve or not first.approve or not takes_back:
            return first
        if not await self.store.add(_begun(approval.id), False, ttl=2 * self.seconds):
            return verdict if await self.is_taken_back(approval) else first
        await self.store.put(_verdict(approval.id), verdict, ttl=2 * self.seconds, certain=True)
        if first.grant:
            with suppress(NotFound):
                await self.revoke(first.grant)
        return verdict

    async def verdict(self, identity: str) -> Verdict | None:
        """The answer that counts; None: nobody answered yet."""
        return await self.store.get(_verdict(identity), certain=True)

    async def use(self, approval: Approval) -> bool:
        """Whether this approved call may run now: True once, for one of all who ask."""
        return await self.store.add(_begun(approval.id), True, ttl=2 * self.seconds)

    async def is_taken_back(self, approval: Approval) -> bool:
        """Whether somebody said no to this call after a yes, before it began."""
        return await self.store.get(_begun(approval.id), certain=True) is False

    async def withdraw(self, approvals: Sequence[Approval]) -> None:
        """Nobody waits for these any more; an answer comes too late."""
        for approval in approvals:
            await self.store.delete(_key(approval.id))
            await self._waiting.remove(approval.slot)
        self._tell()

    async def wait(self, approvals: Sequence[Approval], seconds: float) -> dict[str, Verdict]:
        """Wait until all are answered, so long at most; the answers by the ids of those that have one."""
        try:
            return await self._wait(approvals, anyio.current_time() + seconds)
        finally:
            for approval in approvals:
                self._answered.pop(approval.id, None)

    async def _wait(self, approvals: Sequence[Approval], end: float) -> dict[str, Verdict]:
        while True:
            event = anyio.Event()
            self._answered |= dict.fromkeys((approval.id for approval in approvals), event)
            answers = await self.store.get_all([_verdict(approval.id) for approval in approvals])
            found = {a.id: verdict for a, verdict in zip(approvals, answers, strict=True) if verdict}
            left = end - anyio.current_time()
            if len(found) == len(approvals) or left <= 0:
                return found
            with anyio.move_on_after(min(left, POLL_SECONDS)):
                await event.wait()

    async def awaited(self, owner: str, tool: Tool, arguments: JSON) -> Approval | None:
        """The approval for which this same call of the same caller waited before."""
        identity = await self.store.get(_awaited(owner, tool, arguments), certain=True)
        return await self.find(identity) if identity else None

    async def note_awaited(self, approval: Approval, tool: Tool) -> None:
        """Let `awaited` find it."""
        key = _awaited(approval.owner, tool, approval.arguments)
        await self.store.put(key, approval.id, ttl=self.seconds, certain=True)

    async def link(self, approval: Approval, request: str) -> None:
        """Let `linked` find it under the id by which its client knows it."""
        await self.store.put(LINK.key(approval.owner, request), approval.id, ttl=self.seconds)

    async def linked(self, owner: str, request: str) -> str | None:
        """The id of the approval that a client of this owner knows as `request`."""
        return await self.store.get(LINK.key(owner, request), certain=True)

    async def forget_awaited(self, approval: Approval, tool: Tool) -> None:
        """From now on the same call is a new one."""
        await self.store.delete(_awaited(approval.owner, tool, approval.arguments))

    async def _grant(self, approval: Approval, verdict: Verdict) -> None:
        """Keep a standing yes; one for a key takes the place of that before it."""
        if known := await self.store.get(_grant(verdict.grant), certain=True):
            await self._granted.remove(known.slot)
        slot = await self._granted.add(verdict.grant, share_of(approval.owner), self._grant_seconds)
        grant = Grant(
            id=verdict.grant,
            scope=verdict.always,
            owner=approval.owner,
            key=approval.key,
            name=approval.name,
            tool=approval.tool,
            server=approval.server,
            tool_digest=approval.tool_digest,
            by=verdict.by,
            seconds=self._grant_seconds,
            slot=slot,
        )
        await self.store.put(_grant(grant.id), grant, ttl=self._grant_seconds, certain=True)

    async def granted(self, owner: str, tool: Tool, ids: Sequence[str] = ()) -> Grant | None:
        """The standing yes for this tool as it is now: of the key, or one of those with these `ids`."""
        keys = [_grant(identity) for identity in (_grant_id(owner, tool.server, tool.name), *ids)]
        for grant in await self.store.get_all(keys):
            if grant and grant.server == tool.server and grant.tool == tool.name:
                same_owner = share_of(grant.owner) == share_of(owner)
                if same_owner and grant.tool_digest == digest_of(tool):
                    return grant
        return None

    async def grants(self) -> list[Grant]:
        """All standing yeses, the oldest first."""
        found = await self.store.get_all([_grant(identity) for identity in await self._granted.ids()])
        return sorted(filter(None, found), key=lambda grant: grant.created)

    async def revoke(self, identity: str) -> None:
        """End a standing yes. Raises NotFound."""
        grant = await self.store.get(_grant(identity), certain=True)
        if grant is None:
            raise NotFound(f"There is no grant {identity[:100]!r}.")
        await self.store.delete(_grant(identity))
        await self._granted.remove(grant.slot)
        self._tell()


def _key(identity: str) -> Key[Approval]:
    return APPROVAL.key(OWNER, identity)


def _not_found(identity: str) -> NotFound:
    return NotFound(f"There is no approval {identity[:100]!r}; it may have been too late for it.")


def _begun(identity: str) -> Key[bool]:
    return BEGUN.key(OWNER, identity)


def _verdict(identity: str) -> Key[Verdict]:
    return VERDICT.key(OWNER, identity)


def _grant(identity: str) -> Key[Grant]:
    return GRANT.key(OWNER, identity)


def _new_grant_id(approval: Approval, scope: Scope) -> str:
    if scope == "key":
        return _grant_id(approval.owner, approval.server, approval.tool)
    return secrets.token_hex(10)


def _grant_id(owner: str, server: str, tool: str) -> str:
    return hashlib.sha256(
        "\0".join((share_of(owner), server, tool)).encode(errors="surrogatepass")
    ).hexdigest()[:20]


def _awaited(owner: str, tool: Tool, arguments: JSON) -> Key[str]:
    return AWAITED.key(owner, digest_of(tool), hashlib.sha256(_text(arguments)).hexdigest())


def _text(arguments: JSON) -> bytes:
    """The arguments as text in which the order of members makes no difference."""
    return dumps(arguments, sort_keys=True)


SLOTS = 500
"""Entries at the same time."""

MAX_OF_ONE = 250
"""Entries of one owner: nobody takes the places of all others."""

ATTEMPTS = 10

SLOT = EntryKind("slot", list[str])
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
