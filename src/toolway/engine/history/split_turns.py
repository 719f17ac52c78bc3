"""Turns in which the model called the client's tools and ours, at once or one after the other.

The client gets its own calls alone. What it must not see, the full assistant message, the results of our calls and
the rounds before, waits in a store under the token in the ids of its calls, which nobody else was given, and is put
back when the client returns with the same calls and their results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolway.conversation.call_ids import original_id, tokens_in, with_original_ids
from toolway.conversation.tool_calls import read_arguments
from toolway.stores import EntryKind, Store
from toolway.types import JSON, Caller


@dataclass(frozen=True, kw_only=True)
class SplitTurn:
    """A turn that the client sees only a part of, and the messages of the rounds that led to it."""

    before: list[JSON]
    assistant: JSON
    results: list[JSON]
    behind: list[JSON]

    def whole(self, results: Iterable[JSON]) -> list[JSON]:
        """All its messages, with these results besides our own, in the order of the calls."""
        by_id = {result["tool_call_id"]: result for result in (*self.results, *results)}
        ordered = [by_id[call["id"]] for call in self.assistant["tool_calls"] if call["id"] in by_id]
        return [*self.before, self.assistant, *ordered, *self.behind]


SPLIT_TURN = EntryKind("turn", SplitTurn)


async def keep(
    store: Store, caller: Caller, token: str, turn: Sequence[JSON], before: Sequence[JSON] = ()
) -> None:
    """Keep a turn that the client sees only a part of, under the token in its ids.

    `turn` is the full assistant message and our results, `before` are the messages of the rounds that led to it.
    """
    await store.put(SPLIT_TURN.key(caller.id, token), SplitTurn(before=list(before), **parts_of(turn)))


def parts_of(turn: Sequence[JSON]) -> dict[str, Any]:
    """The `assistant` message of a split turn, our `results`, and what stands `behind` all results (images)."""
    results = [message for message in turn[1:] if message["role"] == "tool"]
    behind = [message for message in turn[1:] if message["role"] != "tool"]
    return {"assistant": turn[0], "results": results, "behind": behind}


async def put_back(store: Store, caller: Caller, messages: Sequence[Any]) -> Sequence[Any]:
    """The conversation with each split turn put back in full, results in the order of the calls; all ids original.

    A turn that the store does not know, whose calls are others, or whose results are not all there, is left as it is.
    """
    if not any(map(may_have_ids, messages)):
        return messages
    whole: list[Any] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        tokens = tokens_in(message) if isinstance(message, dict) else set()
        turn = await store.get(SPLIT_TURN.key(caller.id, *tokens)) if len(tokens) == 1 else None
        client_results = _results_behind(messages, position) if turn else {}
        if (
            turn
            and _are_those_handed_out(message, turn)
            and set(_calls_by_id(message)) <= set(client_results)
        ):
            whole += turn.whole(client_results.values())
            position += len(client_results)
        else:
            whole.append(message)
        position += 1
    return with_original_ids(whole)


def may_have_ids(message: Any) -> bool:
    """Whether there may be ids of calls in a message."""
    return isinstance(message, dict) and ("tool_calls" in message or "tool_call_id" in message)


def _are_those_handed_out(message: JSON, turn: SplitTurn) -> bool:
    """Whether a message of the client's has just the calls that it was given in this turn."""
    own_results = {result["tool_call_id"] for result in turn.results}
    given = {
        identity: call
        for identity, call in _calls_by_id(turn.assistant).items()
        if identity not in own_results
    }
    return given == _calls_by_id(message)


def _calls_by_id(message: JSON) -> dict[str, Any]:
    """Name and arguments of each call; white space and the order of members make no difference."""
    return {original_id(str(call.get("id"))): _essence(call) for call in message["tool_calls"]}


def _essence(call: JSON) -> Any:
    function = call.get("function")
    if not isinstance(function, dict):
        return call.get("custom")
    text = str(function.get("arguments") or "")
    return function.get("name"), read_arguments(text) or {}


def _results_behind(messages: Sequence[Any], position: int) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for message in with_original_ids(messages[position + 1 :]):
        if not isinstance(message, dict) or message.get("role") != "tool":
            break
        found[str(message.get("tool_call_id"))] = message
    return found
