"""The ids of tool calls as the client sees them: unguessable, recognisable, with the model server's own ids inside.

Many model servers number their calls anew in each turn (`call_0`, `functions.NAME:0`), so that their ids say nothing
about whose call it is. A client gets `{id}-tw-{token}`: the token is that of one turn, random, and known to nobody but
who was given it. Before a conversation goes to the model server its ids are what the model server wrote, which needs no
memory: the token is cut off.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from toolway.conversation.chunk_template import TextRun
from toolway.conversation.events import Chunks, Outcome
from toolway.types import JSON

_BYTES = 10
"""80 random bits, which cannot be tried out. One call makes them: 20 letters, one after the other, cost a tenth of a
small request."""
_PUBLIC = re.compile(rf"(?s)(.*)-tw-([0-9a-f]{{{2 * _BYTES}}})")


def new_token() -> str:
    """The token of one turn."""
    return secrets.token_hex(_BYTES)


def public_id(identity: str, token: str) -> str:
    """The id that the client gets for a call that the model server named so."""
    return f"{identity}-tw-{token}"


def original_id(identity: str) -> str:
    """What the model server called the call; an id that is not of ours is its own."""
    found = _PUBLIC.fullmatch(identity)
    return found[1] if found else identity


def token_in(identity: str) -> str | None:
    """The token in an id of ours; None in any other."""
    found = _PUBLIC.fullmatch(identity)
    return found[2] if found else None


def with_public_ids(chunks: Chunks, token: str) -> Chunks:
    """The chunks with the client's ids; a chunk that is passed on as it came holds no call."""
    if isinstance(chunks.items, TextRun):
        return chunks
    items = [(_public_chunk(item, token) if raw is None else item, raw) for item, raw in chunks.items]
    return Chunks(items)


def _public_chunk(chunk: JSON | str, token: str) -> JSON | str:
    choices: Any = chunk.get("choices") if isinstance(chunk, dict) else None
    calls = choices[0]["delta"].get("tool_calls") if choices else None
    if not calls or isinstance(chunk, str):
        return chunk
    delta = {**choices[0]["delta"], "tool_calls": [_public_call(call, token) for call in calls]}
    return {**chunk, "choices": [{**choices[0], "delta": delta}]}


def _public_call(call: JSON, token: str) -> JSON:
    return {**call, "id": public_id(call["id"], token)} if call.get("id") else call


def for_client(outcome: Outcome, token: str) -> Outcome:
    """The outcome with the client's ids in the message that it gets."""
    message = outcome.message
    calls = tuple(replace(call, id=public_id(call.id, token)) for call in message.tool_calls)
    return replace(outcome, message=replace(message, tool_calls=calls)) if calls else outcome


def with_original_ids(messages: Sequence[Any]) -> list[Any]:
    """The conversation with the ids that the model server gave its calls."""
    return [_original_message(message) for message in messages]


def _original_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    if message.get("role") == "tool":
        identity = message.get("tool_call_id")
        if isinstance(identity, str) and (original := original_id(identity)) is not identity:
            return {**message, "tool_call_id": original}
    elif tokens_in(message):
        return {**message, "tool_calls": [_original_call(call) for call in message["tool_calls"]]}
    return message


def _original_call(call: Any) -> Any:
    identity = call.get("id") if isinstance(call, dict) else None
    return {**call, "id": original_id(identity)} if isinstance(identity, str) else call


def tokens_in(message: JSON) -> set[str]:
    """The tokens in the ids of an assistant message's calls."""
    return {token for identity in ids_in(message) if (token := token_in(identity))}


def ids_in(message: JSON) -> Iterable[str]:
    """The ids of an assistant message's calls."""
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and isinstance(call.get("id"), str):
            yield call["id"]
