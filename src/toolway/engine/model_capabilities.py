"""What one model and its server were found to take: capabilities learned from their answers and refusals."""

from __future__ import annotations

import time
from dataclasses import dataclass

from toolway.conversation.message import Message, cached_tokens
from toolway.wire.token_estimate import estimate_tokens

ROOM_LIFETIME = 600.0
"""Seconds after which the room of a model is found out anew: it may have been loaded with another context."""

LEFT_FREE = 0.25
"""The share of a context that a prompt made shorter leaves for the answer; tools may always have as much."""

_STEPS = 8
"""Of a room; what is over it is made shorter by whole steps."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bytes of prompt that a model has room for: what is over `limit` is brought down to `target`."""

    limit: int
    target: int
    until: float
    """When to forget it, in monotonic seconds."""
    is_silent: bool = False
    """What is over it is not refused, but forgotten without a word."""

    @property
    def context(self) -> int:
        """The same in tokens."""
        return estimate_tokens(self.limit)

    @classmethod
    def of(cls, limit: float, target: float | None = None, *, is_silent: bool = False) -> Room:
        """That of a limit that is known, or of a target that was found to fit."""
        target = limit * (1 - LEFT_FREE) if target is None else target
        until = time.monotonic() + ROOM_LIFETIME
        return cls(limit=int(limit), target=int(target), until=until, is_silent=is_silent)

    def excess(self, size: int, target: float) -> int:
        """Bytes over a target, in whole steps: within one of them a prompt made shorter keeps its beginning."""
        step = max(1, self.limit // _STEPS)
        return int(-(-(size - target) // step) * step)


@dataclass(kw_only=True)
class ModelCapabilities:
    """What one model's server was found to take, known by its refusals; lost with the process, and learned again."""

    needs_definitions: bool = False
    """It reads no conversation with calls in it unless tools are defined."""
    most_tools: int | None = None
    """So many tools it takes in one request; None: no limit is known."""
    caches_prompts: bool = False
    """It said that it need not read anew what it has read before."""
    takes_images: bool = True
    """It reads the images of tool results, where they stand."""
    refused_options: frozenset[str] = frozenset()
    """Options that it does not know, of those that a request can do without."""
    room: Room | None = None
    """How long a prompt may be; None: no limit was met of late."""
    searches: bool = False
    """The log said that its tools are searched, and why."""
    left_out: frozenset[str] | None = None
    """The tools of which the log said that the room is too small for them; None: it said nothing yet."""
    outgrown: bool = False
    """The log said that a conversation is longer than its room, and that results give way."""

    def learn_from(self, answer: Message) -> None:
        """Learn how this model best calls the tools that it finds."""
        if cached_tokens(answer.usage):
            self.caches_prompts = True
