"""Hidden rounds: put back before an answer when the client sends the conversation with its text alone.

A text is no proof of whose it is. Each answer is kept in two places: with all that stood before it, and with the
question before it alone, for clients that change what they sent earlier. What is found in the one, else in the other,
is put back only while no other answer that looks the same had other rounds behind it; then it is nobody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from toolway.conversation.events import Outcome
from toolway.conversation.message import TEXT_FIELDS
from toolway.engine.history.digests import digests, essences, role_of, text_of
from toolway.errors import StoreError
from toolway.stores import EntryKind, Key, Store
from toolway.types import JSON, Caller


@dataclass(frozen=True, kw_only=True)
class HiddenRounds:
    """What an answer in words leaves out: the rounds before it, and what its last turn itself `fields`."""

    hidden: list[JSON]
    fields: JSON
    is_ambiguous: bool = False
    """Whether another conversation that looks the same had other rounds: then nobody gets them."""


ANSWER = EntryKind("answer", HiddenRounds, version=2)
AMBIGUOUS = HiddenRounds(hidden=[], fields={}, is_ambiguous=True)


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """An answer in words, by what the client shows: digests of all up to it, and of question and answer."""

    position: int
    whole: str
    exchange: str


async def keep(store: Store, caller: Caller, messages: Sequence[Any], outcome: Outcome) -> None:
    """Keep the rounds that led from these messages, as the client sent them, to an answer in words.

    An answer without any is kept too: a conversation that had none must not get those of another.
    """
    if outcome.message.tool_calls:
        return
    fields = [*outcome.earlier, outcome.message.fields]
    answer = {"role": "assistant", "content": "".join(text_of(part.get("content")) for part in fields)}
    *_, mark = _marks([*messages, answer])
    last = {
        name: outcome.message.fields.get(name) or "" for name in TEXT_FIELDS if name in outcome.message.fields
    }
    kept = HiddenRounds(hidden=list(outcome.hidden), fields=last)
    with suppress(StoreError):  # what could not be kept is not put back
        for key in _keys(caller, mark):
            if not await store.add(key, kept) and not _is_alike(await store.get(key, certain=True), kept):
                await store.put(key, AMBIGUOUS, certain=True)


async def put_back(store: Store, caller: Caller, messages: Sequence[Any], complete: int = 0) -> Sequence[Any]:
    """The conversation with the rounds before each answer that is known, byte for byte as the model saw them.

    The first `complete` messages have them already.

    The answer itself keeps only the words of its last turn: those before stand in the rounds. An answer that was
    changed stays as the client sent it; what stood before it may change, but for the question.
    """
    whole: list[Any] = []
    marks = {mark.position: mark for mark in _marks(messages) if mark.position >= complete}
    for position, message in enumerate(messages):
        known = await _find(store, caller, marks[position]) if position in marks else None
        if known is not None and known.hidden:
            whole += [*known.hidden, _last_turn(message, known.fields)]
        else:
            whole.append(message)
    return whole


async def _find(store: Store, caller: Caller, mark: _Mark) -> HiddenRounds | None:
    for key in _keys(caller, mark):
        if (found := await store.get(key)) is not None:
            return None if found.is_ambiguous else found
    return None


def _keys(caller: Caller, mark: _Mark) -> list[Key[HiddenRounds]]:
    """Where an answer is kept, the surest place first. Whoever has no key must show all that stood before it."""
    whole = ANSWER.key(caller.id, "whole", mark.whole)
    return [whole, ANSWER.key(caller.id, "exchange", mark.exchange)] if caller.is_known else [whole]


def _is_alike(one: HiddenRounds | None, other: HiddenRounds) -> bool:
    """Whether two answers had the same calls and results behind them, whatever ids these have."""
    return one is not None and not one.is_ambiguous and _without_ids(one) == _without_ids(other)


def _without_ids(answer: HiddenRounds) -> list[Any]:
    return [
        [
            {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")},
            [call.get("function") for call in message.get("tool_calls") or ()],
        ]
        for message in answer.hidden
    ]


def _marks(messages: Sequence[Any]) -> Iterator[_Mark]:
    """Each answer in words."""
    parts, question = list(essences(messages)), b""
    wholes = islice(digests(parts), 1, None)
    for position, (message, part, whole) in enumerate(zip(messages, parts, wholes, strict=True)):
        match role_of(message):
            case "user":
                question = part
            case "assistant" if not message.get("tool_calls"):
                exchange = hashlib.sha256(question + part).hexdigest()
                yield _Mark(position=position, whole=whole, exchange=exchange)


def _last_turn(message: JSON, fields: JSON) -> JSON:
    """The answer with the words of its last turn alone, and of that one's reasoning if the client kept any."""
    has_reasoning = any(name in message for name in TEXT_FIELDS if name not in ("content", "refusal"))
    own = {name: value for name, value in fields.items() if has_reasoning or name in ("content", "refusal")}
    rest = {name: value for name, value in message.items() if name not in TEXT_FIELDS}
    return {**rest, "content": "", **own}
