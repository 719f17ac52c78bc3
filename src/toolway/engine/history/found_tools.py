"""The tools that a conversation found: offered in its next request too, in the same order.

What is kept are names, under all that stood in the conversation up to a question of its user; who finds them may use
them or not as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from toolway.engine.history.digests import digests, essences, role_of
from toolway.stores import EntryKind, Store
from toolway.types import Caller

FOUND = EntryKind("found tools", list[str])

_LOOK_UPS = 3
"""Questions that are looked at, the newest first."""


async def keep(
    store: Store,
    caller: Caller,
    messages: Sequence[Any],
    names: Sequence[str],
    kind: EntryKind[list[str]] = FOUND,
) -> None:
    """Keep what was found for the last question in these messages."""
    for digest in islice(_questions(messages), 1):
        await store.put(kind.key(caller.id, digest), list(names))


async def find(
    store: Store, caller: Caller, messages: Sequence[Any], kind: EntryKind[list[str]] = FOUND
) -> list[str]:
    """What was found for an earlier question, or for the last one if something stands behind it."""
    if not store.may_have(caller.id, kind):
        return []
    for digest in _looked_at(messages):
        if names := await store.get(kind.key(caller.id, digest)):
            return names
    return []


def may_be_kept(store: Store, caller: Caller, messages: Sequence[Any]) -> bool:
    """Whether `find` may find something; False when it is known that there is nothing."""
    if not store.may_have(caller.id, FOUND):
        return False
    return any(store.may_hold(FOUND.key(caller.id, digest)) for digest in _looked_at(messages))


def called_in(messages: Sequence[Any]) -> Iterator[str]:
    """The names of the tools that were called in these messages."""
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                yield function["name"]


def _looked_at(messages: Sequence[Any]) -> Iterator[str]:
    """The digests of the questions for which something may have been found that is wanted now."""
    first = int(role_of(messages[-1]) == "user") if messages else 0
    return islice(_questions(messages), first, first + _LOOK_UPS)


def _questions(messages: Sequence[Any]) -> Iterator[str]:
    """For each message of a user a digest of all up to it, the last one first."""
    up_to = islice(digests(essences(messages)), 1, None)
    found = [digest for message, digest in zip(messages, up_to, strict=True) if role_of(message) == "user"]
    return reversed(found)
