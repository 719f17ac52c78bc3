"""Replay of hidden rounds: put back behind an answer when the client sends the conversation with its text alone.

A text is no proof of whose it is. Each answer is kept in two places: with all that stood before it, and with the
question before it alone, for clients that change what they sent earlier. What is found in the one, else in the other,
is put back only while no other answer that looks the same had other rounds behind it; then it is nobody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from toolway.conversation.events import Outcome
from toolway.conversation.message import TEXT_FIELDS
from toolway.errors import StoreError
from toolway.stores import Key, Kind, Store
from toolway.types import JSON, Caller
from toolway.wire.lenient_json import dumps


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What an answer in words leaves out: the rounds before it, and what its last turn itself `fields`."""

    hidden: list[JSON]
    fields: JSON
    is_ambiguous: bool = False
    """Whether another conversation that looks the same had other rounds: then nobody gets them."""


ANSWER = Kind("answer", _Answer, version=2)
AMBIGUOUS = _Answer(hidden=[], fields={}, is_ambiguous=True)


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """An answer in words, by what the client shows: digests of all up to it, and of question and answer."""

    position: int
    whole: str
    exchange: str


async def remember(store: Store, caller: Caller, messages: Sequence[Any], outcome: Outcome) -> None:
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
    kept = _Answer(hidden=list(outcome.hidden), fields=last)
    with suppress(StoreError):  # what could not be kept is not put back
        for key in _keys(caller, mark):
            if not await store.add(key, kept) and not _is_alike(await store.get(key, certain=True), kept):
                await store.put(key, AMBIGUOUS, certain=True)


async def recall(store: Store, caller: Caller, messages: list[Any], complete: int = 0) -> list[Any]:
    """The conversation with the rounds behind each answer that is known, byte for byte as the model saw them.

    The first `complete` messages have them already.

    The answer itself keeps only the words of its last turn: those before stand in the rounds. An answer that was
    changed stays as the client sent it; what stood before it may change, but for the question.
    """
    recalled: list[Any] = []
    marks = {mark.position: mark for mark in _marks(messages) if mark.position >= complete}
    for position, message in enumerate(messages):
        known = await _find(store, caller, marks[position]) if position in marks else None
        if known is not None and known.hidden:
            recalled += [*known.hidden, _last_turn(message, known.fields)]
        else:
            recalled.append(message)
    return recalled


async def _find(store: Store, caller: Caller, mark: _Mark) -> _Answer | None:
    for key in _keys(caller, mark):
        if (found := await store.get(key)) is not None:
            return None if found.is_ambiguous else found
    return None


def _keys(caller: Caller, mark: _Mark) -> list[Key[_Answer]]:
    """Where an answer is kept, the surest place first. Whoever has no key must show all that stood before it."""
    whole = ANSWER.key(caller.id, "whole", mark.whole)
    return [whole, ANSWER.key(caller.id, "exchange", mark.exchange)] if caller.is_known else [whole]


def _is_alike(one: _Answer | None, other: _Answer) -> bool:
    """Whether two answers had the same calls and results behind them, whatever ids these have."""
    return one is not None and not one.is_ambiguous and _without_ids(one) == _without_ids(other)


def _without_ids(answer: _Answer) -> list[Any]:
    return [
        [
            {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")},
            [call.get("function") for call in message.get("tool_calls") or ()],
        ]
        for message in answer.hidden
    ]


def _marks(messages: Sequence[Any]) -> Iterator[_Mark]:
    """Each answer in words; system messages, which clients change, are passed over."""
    whole, question = hashlib.sha256(), b""
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") in ("system", "developer"):
            continue
        told = dumps(essence(message))
        whole.update(told)
        if message.get("role") == "assistant" and not message.get("tool_calls"):
            exchange = hashlib.sha256(question + told).hexdigest()
            yield _Mark(position=position, whole=whole.hexdigest(), exchange=exchange)
        elif message.get("role") == "user":
            question = told


def essence(message: JSON) -> list[Any]:
    """What clients do not change when they send a message again: white space they do, where they join texts."""
    calls = message.get("tool_calls")
    ids = [call.get("id") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    content = message.get("content")
    if isinstance(content, list) and not all(isinstance(p, dict) and "text" in p for p in content):
        return [message.get("role"), content, ids]
    return [message.get("role"), "".join(text_of(content).split()), ids]


def text_of(content: Any) -> str:
    """The words of a message's content."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _last_turn(message: JSON, fields: JSON) -> JSON:
    """The answer with the words of its last turn alone, and of that one's reasoning if the client kept any."""
    has_thoughts = any(name in message for name in TEXT_FIELDS if name not in ("content", "refusal"))
    own = {name: value for name, value in fields.items() if has_thoughts or name in ("content", "refusal")}
    rest = {name: value for name, value in message.items() if name not in TEXT_FIELDS}
    return {**rest, "content": "", **own}
