"""The one stream of events of a request: to the client's side, and to everybody else who wants to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from toolway.conversation.events import (
    CallBegan,
    Chunks,
    Emit,
    Event,
    HeadArrived,
    RoundBegan,
    Subscriber,
)
from toolway.types import JSON, Header

Subscribe = Callable[[], Subscriber]
"""Makes a subscriber for one request."""


class EventStream:
    """Tells each event to the subscribers, then to the client's side, which may wait; and remembers what matters."""

    def __init__(self, subscribers: Sequence[Subscriber] = ()) -> None:
        self.deliver: Emit | None = None
        """The client's side: writes what the client may see."""
        self.saw_text = False
        """Whether the client has seen more of the turn under way than its beginning."""
        self.tools_ran = False
        """Whether any call of ours began."""
        self.head: Sequence[Header] | None = None
        """The headers of the model server's first answer."""
        self.rounds: Sequence[JSON] = ()
        """The messages of all rounds of ours that are finished."""
        self._subscribers = subscribers

    async def emit(self, event: Event) -> None:
        """Something happened in the loop."""
        if type(event) is Chunks:
            if not self.saw_text:
                self.saw_text = any(_says_something(chunk) for chunk, _ in event.items)
        else:
            self._remember(event)
        self.tell(event)
        if self.deliver is not None:
            await self.deliver(event)

    def tell(self, event: Event) -> None:
        """Something happened that is for subscribers alone."""
        for subscriber in self._subscribers:
            subscriber(event)

    def _remember(self, event: Event) -> None:
        match event:
            case RoundBegan(between=rounds):
                self.saw_text = False
                self.rounds = rounds
            case HeadArrived(headers=headers) if self.head is None:
                self.head = headers
            case CallBegan():
                self.tools_ran = True


def _says_something(chunk: JSON | str) -> bool:
    if isinstance(chunk, str):
        return True
    choices: Any = chunk.get("choices") or ()
    return any(value for choice in choices for key, value in choice["delta"].items() if key != "role")
