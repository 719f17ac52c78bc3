"""Sessions of many rounds: a model that follows a script, and what is wrong with the history that it was told.

In each request the model server must read all rounds in order, each once and as it wrote them, calls with their
results, and everything before byte for byte as in its last request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tests.support.model_turns import ModelTurn
from tests.support.upstream import Reply

JSON = dict[str, Any]


class SessionModel:
    """Says its turns in order, whatever it reads; the same request again gets the same turn.

    A request without the tool `own` of the client's is one that it makes beside the conversation, for a title.
    """

    def __init__(self, *turns: ModelTurn, own: str | None = None) -> None:
        self._turns = turns
        self._own = own
        self._asked: list[JSON] = []

    def answer(self, body: JSON) -> Reply:
        """The reply to a request."""
        if self._own and self._own not in [tool["function"]["name"] for tool in body.get("tools") or ()]:
            return ModelTurn(text="A talk").reply(streamed=bool(body.get("stream")))
        same = [number for number, asked in enumerate(self._asked) if asked["messages"] == body["messages"]]
        if not same:
            self._asked.append(body)
        number = same[0] if same else len(self._asked) - 1
        turn = (
            self._turns[number]
            if number < len(self._turns)
            else ModelTurn(text="(nothing more is to be said)")
        )
        return turn.reply(streamed=bool(body.get("stream")))

    @property
    def rounds(self) -> int:
        """How many turns were said."""
        return len(self._asked)

    def faults(self, *, rewrites_questions: bool = False) -> list[str]:
        """What is wrong with the requests, one sentence each.

        What the user's messages say is not compared when the client itself `rewrites_questions`.
        """
        found = [
            f"round {number + 1}: {fault}"
            for number, body in enumerate(self._asked)
            for fault in unpaired(body["messages"])
        ]
        if self.rounds != len(self._turns):
            found.append(f"{self.rounds} rounds were played of {len(self._turns)}")
        asked = [_without_questions(body) for body in self._asked] if rewrites_questions else self._asked
        for number, (before, after) in enumerate(pairwise(asked)):
            turn = self._turns[min(number, len(self._turns) - 1)]
            found += [
                f"round {number + 1} to {number + 2}: {fault}" for fault in _changes(before, after, turn)
            ]
        return found


def unpaired(messages: Sequence[JSON]) -> list[str]:
    """Calls without their results right behind them in order, results without a call, ids that are there twice."""
    faults: list[str] = []
    open_ids: list[str] = []
    for position, message in enumerate(messages):
        if message["role"] == "tool":
            if not open_ids or open_ids.pop(0) != message["tool_call_id"]:
                faults.append(
                    f"message {position} is no result of the next call: {message['tool_call_id']!r}"
                )
            continue
        if open_ids:
            faults.append(f"message {position} stands where the result of {open_ids[0]!r} should be")
        open_ids = [call["id"] for call in message.get("tool_calls") or ()]
        if len(set(open_ids)) < len(open_ids):
            faults.append(f"message {position} has calls with equal ids: {open_ids}")
    return [*faults, *([f"no result of {open_ids}"] if open_ids else [])]


def _without_questions(body: JSON) -> JSON:
    """The request with messages of the user's whose words do not matter."""
    return {
        **body,
        "messages": [{**m, "content": ""} if m["role"] == "user" else m for m in body["messages"]],
    }


def _changes(before: JSON, after: JSON, turn: ModelTurn) -> list[str]:
    faults = []
    if json.dumps(before.get("tools")) != json.dumps(after.get("tools")):
        faults.append("the tools are others")
    known, told = before["messages"], after["messages"]
    for position, message in enumerate(known):
        now = told[position] if position < len(told) else None
        if json.dumps(message) != json.dumps(now):
            return [*faults, f"message {position} was {message}, and is {now}"]
    if len(told) == len(known):
        return [*faults, "the turn is not there"]
    return [*faults, *_differences(told[len(known)], turn)]


def _differences(message: JSON, turn: ModelTurn) -> list[str]:
    """How a turn is told otherwise than it was said; reasoning may be left out, as clients do."""
    if message["role"] != "assistant":
        return [f"in place of the turn stands {message}"]
    said = [(call["id"], call["function"]) for call in turn.calls]
    told = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    content = message.get("content") or ""
    faults = [] if said == told else [f"it called {said}, and is told to have called {told}"]
    if content != turn.text:
        faults.append(f"it said {turn.text!r}, and is told to have said {content!r}")
    if message.get("reasoning_content") not in (None, turn.reasoning):
        faults.append(f"it reasoned {turn.reasoning!r}, and is told {message['reasoning_content']!r}")
    return faults
