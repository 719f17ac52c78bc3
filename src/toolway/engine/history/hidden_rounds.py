"""The rounds behind an answer, put back when the conversation comes again with nothing but the answer's text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolway.conversation.events import Outcome
from toolway.conversation.message import SPOKEN
from toolway.stores import Kind, Store
from toolway.types import JSON
from toolway.wire.lenient_json import dumps


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What an answer in words leaves out: the rounds before it, and what its last turn itself `said`."""

    between: list[JSON]
    said: JSON


ANSWER = Kind("answer", _Answer)


async def remember(store: Store, owner: str, messages: Sequence[Any], outcome: Outcome) -> None:
    """Keep the rounds that led from these messages, as the client sent them, to an answer in words."""
    if not outcome.between or outcome.message.tool_calls:
        return
    said = [*outcome.earlier, outcome.message.said]
    answer = {"role": "assistant", "content": "".join(_text(part.get("content")) for part in said)}
    *_, (_, key) = _marks([*messages, answer])
    last = {name: outcome.message.said.get(name) or "" for name in SPOKEN if name in outcome.message.said}
    await store.put(ANSWER.key(owner, key), _Answer(between=list(outcome.between), said=last))


async def recall(store: Store, owner: str, messages: list[Any]) -> list[Any]:
    """The conversation with the rounds behind each answer that is known, byte for byte as the model saw them.

    The answer itself keeps only the words of its last turn: those before stand in the rounds. An answer that was
    changed, or that follows other messages, stays as the client sent it; system messages may change.
    """
    recalled: list[Any] = []
    marks = dict(_marks(messages))
    for position, message in enumerate(messages):
        known = None
        if position in marks:
            known = await store.get(ANSWER.key(owner, marks[position]))
        if known is not None:
            own = {name: text for name, text in known.said.items() if name in message}
            recalled += [*known.between, {**message, **own}]
        else:
            recalled.append(message)
    return recalled


def _marks(messages: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """(position, digest of the conversation up to and with it) for each answer in words."""
    digest = hashlib.sha256()
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") in ("system", "developer"):
            continue
        digest.update(dumps(_essence(message)))
        if message.get("role") == "assistant" and not message.get("tool_calls"):
            yield position, digest.hexdigest()


def _essence(message: JSON) -> list[Any]:
    """What clients do not change when they send a message again: white space they do, where they join texts."""
    calls = message.get("tool_calls")
    ids = [call.get("id") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    content = message.get("content")
    if isinstance(content, list) and not all(isinstance(p, dict) and "text" in p for p in content):
        return [message.get("role"), content, ids]
    return [message.get("role"), "".join(_text(content).split()), ids]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
