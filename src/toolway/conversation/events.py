"""What happens in one request: a union of typed events, and the outcome that ends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from toolway.conversation.message import Message
from toolway.errors import ToolwayError
from toolway.types import JSON, Header, Progress, Tool, ToolCall, ToolResult


@dataclass(frozen=True, kw_only=True)
class RoundBegan:
    """The model is asked for the `number`th time in this request; the first is 1. `between` as in Outcome."""

    number: int
    between: tuple[JSON, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadArrived:
    """The model server accepted the request of this turn: its answer will be a 200."""

    headers: Sequence[Header]


@dataclass(frozen=True, slots=True)
class Chunks:
    """What one network read brought for the client: (chunk, its bytes as they came, or None if it was changed)."""

    items: list[tuple[JSON | str, bytes | None]]


@dataclass(frozen=True, kw_only=True)
class CallBegan:
    """A call of ours is about to run; `tool` is None when nothing here has that name."""

    call: ToolCall
    tool: Tool | None


@dataclass(frozen=True, kw_only=True)
class CallProgressed:
    """A call of ours that is under way reported how far it is."""

    call: ToolCall
    tool: Tool
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class CallEnded:
    """A call of ours is over, well or badly, after `seconds`."""

    call: ToolCall
    tool: Tool | None
    result: ToolResult
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a request ended: the last message, what was said in the rounds before it, and what it all cost.

    `between` holds the messages that stood between the client's conversation and the last turn: our rounds.
    `held` is set when the client must run or approve calls and does not see all that happened: the last assistant
    message with all its calls and the results of ours, to be put back when the client returns with its results.
    `asked` is the conversation that the first turn got, `asked_for` are the calls that wait for an approval.
    """

    message: Message
    earlier: tuple[JSON, ...] = ()
    usage: JSON | None = None
    rounds: int = 1
    calls: int = 0
    between: tuple[JSON, ...] = ()
    held: tuple[JSON, ...] = ()
    asked: tuple[JSON, ...] = ()
    asked_for: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConversationBegan:
    """A request was read and can be run: its model, and how many messages and tools of ours are in it."""

    model: Any
    streamed: bool
    messages: int
    tools: int


@dataclass(frozen=True, kw_only=True)
class ConversationEnded:
    """The answer is whole."""

    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class ConversationFailed:
    """The client gets this error instead of an answer, or at the end of its stream."""

    error: ToolwayError


@dataclass(frozen=True, kw_only=True)
class ClientLeft:
    """The client is gone; what ran for it is stopped."""


Event = (
    ConversationBegan
    | RoundBegan
    | HeadArrived
    | Chunks
    | CallBegan
    | CallProgressed
    | CallEnded
    | ConversationEnded
    | ConversationFailed
    | ClientLeft
)
"""Everything that a subscriber may be told. The conversation's own beginning and end go to subscribers alone."""

Emit = Callable[[Event], Awaitable[None]]
"""Where events are pushed to; the pushing waits for a client that reads slowly."""

Subscriber = Callable[[Event], None]
"""Is told every event of one request, in order, and may not wait."""
