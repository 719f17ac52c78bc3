"""A chat completion request whose parts stay apart until it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolway.types import JSON


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """One request for the model server, its body made by `body` when it is sent.

    `options` are the members that the client sent, in its order; its `messages` and `tools` stand there for their
    places alone. `tools` None: as in the options.
    """

    options: JSON
    messages: Sequence[Any]
    tools: Any = None

    @classmethod
    def of(cls, body: JSON) -> ChatRequest:
        """The request that a client's body asks for."""
        return cls(options=body, messages=body["messages"], tools=body.get("tools"))

    @property
    def is_streamed(self) -> bool:
        """Whether the client wants its answer as a stream."""
        return bool(self.options.get("stream"))

    def with_options(self, **options: Any) -> ChatRequest:
        """The request with these members in place of its own."""
        return replace(self, options={**self.options, **options})

    def without(self, *names: str) -> ChatRequest:
        """The request without these members."""
        kept = {name: value for name, value in self.options.items() if name not in names}
        return replace(self, options=kept, tools=None if "tools" in names else self.tools)

    def body(self) -> JSON:
        """The JSON object as it goes to the model server."""
        if self.tools is None:
            return {**self.options, "messages": self.messages}
        return {**self.options, "messages": self.messages, "tools": self.tools}
