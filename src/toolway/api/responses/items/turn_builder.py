"""The assistant turn that items are assembled into: its text and reasoning, its calls, and their results so far."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from toolway.conversation.message import joined
from toolway.errors import InvalidRequest
from toolway.types import JSON

_OF_A_ROUND = re.compile(r"mcpr?_([0-9a-f]+)[0-9a-f]{4}(r[0-9a-f]+)")
_JOINED = frozenset({"role", "content", "reasoning_content", "tool_calls"})


class TurnBuilder:
    """Takes what items tell of one turn; `close` gives its messages. It can begin as one that was kept."""

    def __init__(
        self, assistant: JSON | None = None, results: Sequence[JSON] = (), behind: Sequence[JSON] = ()
    ) -> None:
        before = assistant or {}
        self._rest = {
            key: value for key, value in before.items() if key not in ("role", "content", "tool_calls")
        }
        self._texts: list[str | list[Any]] = [before["content"]] if before.get("content") else []
        thought = before.get("reasoning_content")
        self._thoughts: list[str | list[Any]] = [thought] if thought else []
        self.calls: dict[str, JSON] = {call["id"]: call for call in before.get("tool_calls", ())}
        self.results = {message["tool_call_id"]: message for message in results}
        self._behind = list(behind)
        self._cut: set[str] = set()
        self._open = self.calls.keys() - self.results.keys()
        self.round: str | None = None
        """The round in which the calls of ours were made, if their ids tell it (`round_of`)."""

    @property
    def is_settled(self) -> bool:
        """Whether each call has its result, so that calls of the client's that follow are of another turn."""
        return bool(self.calls) and not self._open

    @property
    def has_spoken(self) -> bool:
        """Whether what the model says next is of another turn."""
        return self.is_settled or (bool(self._texts) and not self.calls)

    def add_text(self, text: str) -> None:
        """More of the answer."""
        self._texts.append(text)

    def add_reasoning(self, thought: str) -> None:
        """More of the reasoning."""
        self._thoughts.append(thought)

    def add_call(self, identity: str, name: str, arguments: str, *, where: str, is_cut: bool = False) -> None:
        """One more call; one that `is_cut` needs no result. Raises InvalidRequest for an id that is there."""
        if identity in self.calls:
            raise InvalidRequest(f"There are two calls with the id {identity[:100]!r}.", param=where)
        function = {"name": name, "arguments": arguments}
        self.calls[identity] = {"id": identity, "type": "function", "function": function}
        self._open.add(identity)
        if is_cut:
            self._cut.add(identity)

    def add_result(self, identity: str, text: str, behind: Sequence[JSON] = ()) -> JSON:
        """The message with the result of a call; `behind` are messages that stand after all results."""
        message = {"role": "tool", "tool_call_id": identity, "content": text}
        self.results[identity] = message
        self._open.discard(identity)
        self._behind += behind
        return message

    def close(self) -> list[JSON]:
        """The whole turn. Raises InvalidRequest for a call without a result."""
        for identity in self._open & self._cut:
            del self.calls[identity]
        for identity in self.calls:
            if identity not in self.results:
                raise InvalidRequest(
                    f"No tool output found for function call {identity[:100]}.", param="input"
                )
        message: JSON = {"role": "assistant", "content": joined(self._texts), **self._rest}
        if self._thoughts:
            message["reasoning_content"] = joined(self._thoughts)
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
        return [message, *(self.results[identity] for identity in self.calls), *self._behind]


def round_mark(number: int) -> str:
    """What stands at the end of the id of a call that was made in this round of a response."""
    return f"r{number:02x}"


def round_of(identity: str) -> str | None:
    """The same text for all calls of ours that were made at once, by their ids; None for other ids.

    A client that keeps the conversation itself sends them one after the other, whichever rounds they are of.
    """
    match = _OF_A_ROUND.fullmatch(identity)
    return "".join(match.groups()) if match else None
