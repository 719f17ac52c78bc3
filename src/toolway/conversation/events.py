"""What happens in one request: a union of typed events, the stream that tells them, and the outcome that ends it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType

from toolway.conversation.chunk_template import TextRun
from toolway.conversation.message import ChatRequest, Message
from toolway.errors import ToolwayError, UpstreamError
from toolway.types import JSON, Caller, Header, Progress, Tool, ToolCall, ToolResult, record


@record
class RoundBegan:
    """The model is asked for the `number`th time in this request; the first is 1. `hidden` as in Outcome."""

    number: int
    hidden: tuple[JSON, ...] = ()


@record
class ModelAsked:
    """This request goes to the model server. A round may ask several times, until it is answered."""

    request: ChatRequest


@record
class ModelAnswered:
    """The model server's answer to the newest request is whole; calls that it wrote as text are still text."""

    message: Message


@record
class ModelFailed:
    """The newest request got no answer, or was refused; it may be asked again in another way."""

    error: UpstreamError


@record
class HeadArrived:
    """The model server accepted the request of this round: its answer will be a 200."""

    headers: Sequence[Header]


@dataclass(slots=True)  # one is made of each network read: `frozen` would triple its price
class Chunks:
    """What one network read brought for the client: (chunk, its bytes as they came, or None if it was changed)."""

    items: list[tuple[JSON | str, bytes | None]] | TextRun


@record
class TextBegan:
    """The client sees the first words of this round; subscribers are told this in place of all chunks."""


@record
class CallBegan:
    """A call of ours is about to run; `tool` is None when nothing here has that name."""

    call: ToolCall
    tool: Tool | None


@record
class CallProgressed:
    """A call of ours that is under way reported how far it is; the client's side is told if it shows progress."""

    call: ToolCall
    tool: Tool
    progress: Progress


@record
class CallEnded:
    """A call of ours is over, well or badly, after `seconds`."""

    call: ToolCall
    tool: Tool | None
    result: ToolResult
    seconds: float


@record
class Outcome:
    """How a request ended: the last message, what was said in the rounds before it, and what it all cost.

    `hidden` holds the messages that stood between the client's conversation and the last message: our rounds.
    `split_turn` is set when the client must run or approve calls and does not see all that happened: the last assistant
    message with all its calls and the results of ours, to be put back when the client returns with its results.
    `prompt` is the conversation that the first round got, `pending_approvals` are the calls that wait for an approval.
    """

    message: Message
    earlier: tuple[JSON, ...] = ()
    usage: JSON | None = None
    """As the client reads it."""
    total_usage: JSON | None = None
    """The usage of all rounds together."""
    rounds: int = 1
    calls: int = 0
    hidden: tuple[JSON, ...] = ()
    split_turn: tuple[JSON, ...] = ()
    prompt: tuple[JSON, ...] = ()
    pending_approvals: tuple[ToolCall, ...] = ()
    is_paused: bool = False
    """Whether the limit of rounds is reached, and the client goes on by sending back what it was shown."""


@record
class ConversationBegan:
    """A request was read and can be run."""

    request: ChatRequest
    """As the client sent it."""
    offered: Mapping[str, Tool] = field(default_factory=dict)
    """The tools of ours that are in it, by the names that the model sees."""
    caller: Caller | None = None
    side: str = ""
    """What the client asks for itself beside the conversation of its user; it gets no tools of ours then."""
    stream: ReferenceType[EventStream] | None = None
    """The stream that tells this, by which a subscriber can watch the text. Weakly: it holds its subscribers, and what
    a reference cycle holds waits for the garbage collector.
    """

    @property
    def model(self) -> Any:
        """What the client calls the model."""
        return self.request.options.get("model")

    @property
    def streamed(self) -> bool:
        return self.request.is_streamed

    @property
    def messages(self) -> int:
        """How many messages the client sent."""
        return len(self.request.messages)

    @property
    def tools(self) -> int:
        """How many tools of ours are in it."""
        return len(self.offered)


@record
class ConversationEnded:
    """The answer is whole."""

    outcome: Outcome


@record
class ConversationFailed:
    """The client gets this error instead of an answer, or at the end of its stream."""

    error: ToolwayError
    seconds: float = 0.0
    """Since the request began."""


@record
class ClientLeft:
    """The client is gone; what ran for it is stopped."""


Event = (
    ConversationBegan
    | RoundBegan
    | ModelAsked
    | ModelAnswered
    | ModelFailed
    | HeadArrived
    | Chunks
    | TextBegan
    | CallBegan
    | CallProgressed
    | CallEnded
    | ConversationEnded
    | ConversationFailed
    | ClientLeft
)
"""Everything that happens. The conversation's own beginning and end, what the model server is asked and answers, and
TextBegan go to subscribers alone.
"""

Emit = Callable[[Event], Awaitable[None]]
"""Where events are pushed to; the pushing waits for a client that reads slowly."""


async def emit_to_nobody(_: Event) -> None:
    """Where events go that nobody is told of."""


Subscriber = Callable[[Event], None]
"""Is told every event of one request but its chunks, in order, and may not wait."""


Subscribe = Callable[[], Subscriber | None]
"""Makes a subscriber for one request, if any."""

OnFailure = Callable[[ConversationFailed], None]
"""Is told of the errors of all requests, behind their subscribers."""


_REMEMBERED = frozenset({RoundBegan, HeadArrived, CallBegan})


class EventStream:
    """Tells each event to the subscribers, then to the client's side, which may wait; and remembers what matters."""

    deliver: Emit | None = None
    """The client's side: writes what the client may see."""
    saw_text = False
    """Whether the client has seen more of the message under way than its beginning."""
    tools_ran = False
    """Whether any call of ours began."""
    head: Sequence[Header] | None = None
    """The headers of the model server's first answer."""
    rounds: Sequence[JSON] = ()
    """The messages of all rounds of ours that are finished."""
    cut: Sequence[JSON] = ()
    """Those of a round whose calls were cancelled while they ran."""
    watcher: Callable[[Chunks], None] | None = None
    """Is told of all chunks too, while somebody looks at the text as it comes; may not wait."""
    heard: Sequence[type[Event]] = ()
    """What subscribers were told already, in this order; they do not hear it twice."""

    def __init__(
        self,
        subscribers: Sequence[Subscriber] = (),
        *,
        on_failure: OnFailure | None = None,
        on_head: Callable[[Sequence[Header]], None] | None = None,
    ) -> None:
        self.has_subscribers = bool(subscribers)
        """Whether anybody hears of a request in which nothing fails."""
        self._began = time.monotonic()
        self._subscribers = subscribers
        self._on_failure = on_failure
        self._on_head = on_head
        self._unfinished: list[Chunks] = []

    async def emit(self, event: Event) -> None:
        """Something happened in the loop."""
        if type(event) is Chunks:
            self.show(event)
        else:
            if type(event) in _REMEMBERED:
                self._remember(event)
            self.notify(event)
        if self.deliver is not None:
            await self.deliver(event)

    def unfinished_text(self) -> str:
        """What the client was sent of the message under way, if there were rounds before it."""
        return "".join(_text_in(chunk) for event in self._unfinished for chunk, _ in event.items)

    def notify(self, event: Event) -> None:
        """Something happened that is for subscribers alone."""
        if self.heard:
            first, *self.heard = self.heard
            if first is type(event):
                return
            self.heard = ()
        for subscriber in self._subscribers:
            subscriber(event)

    def fail(self, error: ToolwayError) -> None:
        """The client gets this error."""
        event = ConversationFailed(error=error, seconds=time.monotonic() - self._began)
        self.notify(event)
        if self._on_failure is not None:
            self._on_failure(event)

    def show(self, chunks: Chunks) -> None:
        """The client is about to get these."""
        if not self.saw_text:
            for chunk, _ in chunks.items:
                if _says_something(chunk):
                    self.saw_text = True
                    self.notify(TextBegan())
                    break
        if self.watcher is not None:
            self.watcher(chunks)
        if self.rounds:
            self._unfinished.append(chunks)

    def _remember(self, event: Event) -> None:
        if type(event) is RoundBegan:
            self.saw_text = False
            self.rounds = event.hidden
            self._unfinished.clear()
        elif type(event) is HeadArrived:
            if self.head is None:
                self.head = event.headers
            if self._on_head is not None:
                self._on_head(event.headers)
        else:
            self.tools_ran = True


def _says_something(chunk: JSON | str) -> bool:
    if isinstance(chunk, str):
        return True
    choices: Any = chunk.get("choices") or ()
    return any(value for choice in choices for key, value in choice["delta"].items() if key != "role")


def _text_in(chunk: JSON | str) -> str:
    if isinstance(chunk, str):
        return chunk
    choices: Any = chunk.get("choices") or ()
    return "".join(text for choice in choices if isinstance(text := choice["delta"].get("content"), str))
