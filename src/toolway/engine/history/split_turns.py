"""Turns in which the model called the client's tools and ours, at once or one after the other.

The client gets its own calls alone. What it must not see, the full assistant message, the results of our calls and
the rounds before, waits in a store under the ids of its calls, and is put back when these return with its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolway.stores import Key, Kind, Store
from toolway.types import JSON, ToolCall


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A turn that the client sees only a part of, and the messages of the rounds that led to it."""

    before: list[JSON]
    assistant: JSON
    results: list[JSON]
    behind: list[JSON]


HELD = Kind("turn", _Held)


async def hold(
    store: Store, owner: str, calls: Sequence[ToolCall], held: Sequence[JSON], before: Sequence[JSON] = ()
) -> None:
    """Keep a turn that the client sees only a part of.

    `held` is the full assistant message and our results, `calls` are the client's, `before` are the messages of
    the rounds that led to it.
    """
    turn = _Held(before=list(before), **parts_of(held))
    await store.put(_key(owner, [call.id for call in calls]), turn)


def parts_of(held: Sequence[JSON]) -> dict[str, Any]:
    """The `assistant` message of a held turn, our `results`, and what stands `behind` all results (pictures)."""
    results = [message for message in held[1:] if message["role"] == "tool"]
    behind = [message for message in held[1:] if message["role"] != "tool"]
    return {"assistant": held[0], "results": results, "behind": behind}


async def restore(store: Store, owner: str, messages: list[Any]) -> list[Any]:
    """The conversation with each held turn put back in full, results in the order of the calls.

    A turn that the store does not know, or whose results are not all there, stays as the client sent it.
    """
    restored: list[Any] = []
    position = 0
    while position < len(messages):
        ids = _call_ids(messages[position])
        turn = await store.get(_key(owner, ids)) if ids else None
        theirs = _results_behind(messages, position) if turn else {}
        if turn and set(ids) <= set(theirs):
            ours = {result["tool_call_id"]: result for result in turn.results}
            calls = turn.assistant["tool_calls"]
            results = [{**ours, **theirs}[call["id"]] for call in calls]
            restored += [*turn.before, turn.assistant, *results, *turn.behind]
            position += len(theirs)
        else:
            restored.append(messages[position])
        position += 1
    return restored


def _call_ids(message: Any) -> list[str]:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return []
    calls = message.get("tool_calls")
    return [
        call["id"]
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict) and isinstance(call.get("id"), str)
    ]


def _results_behind(messages: list[Any], position: int) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for message in messages[position + 1 :]:
        if not isinstance(message, dict) or message.get("role") != "tool":
            break
        found[str(message.get("tool_call_id"))] = message
    return found


def _key(owner: str, ids: Sequence[str]) -> Key[_Held]:
    return HELD.key(owner, *sorted(ids))
