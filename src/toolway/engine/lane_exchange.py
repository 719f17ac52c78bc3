"""One exchange with the model server in the fast lane, read by callbacks; and what is handed over of it.

Whatever is not a plain answer in words goes the ordinary way from where it is: a whole answer that was read, or the
reader of a streamed one, of which the client may have seen a part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol
from weakref import ref

from toolway.conversation.events import (
    Chunks,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    Emit,
    Event,
    EventStream,
    HeadArrived,
    ModelAnswered,
    ModelAsked,
    Outcome,
    RoundBegan,
)
from toolway.conversation.message import ChatRequest, Message, MessageBuilder, read_answer
from toolway.engine.history import interrupted_answers
from toolway.engine.offer import Offer
from toolway.engine.resources import Resources
from toolway.engine.side_requests import SideRequest
from toolway.errors import UpstreamError
from toolway.tools.catalog import Catalog, Snapshot
from toolway.types import Caller, Header, record
from toolway.upstream.client import DRAIN_SECONDS, AnswerHead, PostHead, StartedRequest, UpstreamResponse
from toolway.upstream.model_call import IsClients, ModelCall, StreamReader, is_event_stream, resume_stream
from toolway.wire.lenient_json import MAX_DEPTH, loads_told, may_be_deeper

log = logging.getLogger("toolway.chat")


@record
class LaneCaller:
    """A caller whose requests may take the lane, and the head of what is sent to the model server for each."""

    caller: Caller
    head: PostHead


@record
class LaneRequest:
    """A request that may take the lane."""

    chat: ChatRequest
    caller: Caller
    head: PostHead
    """Of what is sent to the model server for it."""
    offer: Offer
    """Our tools in it."""
    side: SideRequest | None = None
    """What its client asks for itself, if it is that."""


@record
class ExchangeHandover:
    """The state of an exchange whose request must go the ordinary way: what was `sent`, and what subscribers heard.

    The exchange with the model server is over where a `message` came of it, else the `request` is under way. Of a
    streamed answer the `reader` has read the beginning, and the client has what could be seen of that.
    """

    sent: ChatRequest
    request: StartedRequest
    events: EventStream
    started_at: float
    """When it was sent, in monotonic seconds."""
    side: SideRequest | None = None
    """What its client asks for itself, if it is that."""
    message: Message | None = None
    headers: Sequence[Header] = ()
    reader: StreamReader | None = None
    catalog: Catalog
    tools: Snapshot
    """The tools that it began with, held in the catalog."""

    @property
    def is_unread(self) -> bool:
        """Whether whoever sends the same again gets the answer from its beginning."""
        return self.message is None and self.reader is None

    def resumed(self, call_model: ModelCall) -> ModelCall:
        """`call_model`, which gives the message that came to whoever first asks for what was sent.

        A streamed answer that has begun goes to whoever asks first: it cannot begin anew.
        """
        sent, message, reader = self.sent, self.message, self.reader
        saw_text = self.events.saw_text

        async def ask(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
            nonlocal message, reader
            if reader is not None:
                stream, reader = reader, None
                self.events.saw_text = saw_text
                return await resume_stream(self.request, stream, emit)
            is_it = request.options is sent.options and request.tools == sent.tools
            if message is None or not is_it or request.messages != sent.messages:
                return await call_model(request, emit, is_clients)
            answer, message = message, None
            await emit(HeadArrived(headers=self.headers))
            return answer

        return ask

    def close(self) -> None:
        """End the exchange with the model server, if the ordinary way has not, and hold the tools no more."""
        self.request.close()
        self.catalog.release(self.tools)


class MessageResponder(Protocol):
    """The engine's side of an answer: takes the model's message for the client of a request in the lane.

    `answer`, `end` or `take_over` is called, once, as the last, unless the client leaves.
    """

    @property
    def is_blocked(self) -> bool:
        """Whether the client takes no more of a streamed answer for now."""

    def answer(self, message: Message, head: AnswerHead) -> None:
        """The answer is plain: this message, with this head of the model server's."""

    def start(self, head: AnswerHead) -> None:
        """The answer is a stream, with this head of the model server's."""

    def write(self, chunks: Chunks) -> None:
        """More of the stream."""

    def end(self, message: Message) -> None:
        """The stream was plain to its end, and this message in all."""

    def take_over(self, handover: ExchangeHandover) -> None:
        """The request must go the ordinary way."""

    def run_detached(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what is left to be done for a client that left."""


class ModelExchange(ABC):
    """A request on its way to the model server, whose answer is looked at by callbacks."""

    def __init__(
        self,
        request: LaneRequest,
        started: StartedRequest,
        responder: MessageResponder,
        resources: Resources,
        catalog: Catalog,
    ) -> None:
        self._request = request
        self._started = started
        self._connection = started.connection
        self._responder = responder
        self._store, self._target = resources.store, resources.target
        self._catalog = catalog
        self._tools = catalog.hold()
        self._told: list[type[Event]] = []
        """What subscribers heard."""
        self._answer: UpstreamResponse | None = None
        self._is_answered = False
        """Whether the client has all of its answer. What is left to be done then, nobody waits for."""

    def begin(self, sent: ChatRequest, events: EventStream) -> None:
        """It was `sent`; `events` are told what comes of it."""
        self._sent, self._events = sent, events
        self._began = time.monotonic()
        if self._events.has_subscribers:
            request = self._request
            began = ConversationBegan(
                request=request.chat,
                offered=request.offer.tools,
                caller=request.caller,
                side=str(request.side or ""),
                stream=ref(self._events),
            )
            self._tell(began, RoundBegan(number=1), ModelAsked(request=sent))
        self._connection.call_back(self._look)

    def hand_over(self) -> None:
        """Leave it to the ordinary way, however far it is."""
        self._connection.call_back(None)
        self._hand_over()

    def client_left(self) -> None:
        """Stop the model server: nobody waits for its answer."""
        self._connection.call_back(None)
        self.close()
        self._responder.run_detached(self._keep_for_later())

    def close(self) -> None:
        """End it: nobody goes on with it."""
        self._started.close()
        self._catalog.release(self._tools)

    async def _keep_for_later(self) -> None:
        request = self._request
        await interrupted_answers.keep(self._store, request.caller, request.chat.messages, self._events)
        self._events.notify(ClientLeft())

    def _look(self) -> None:
        """Something came: take what is plain, wait for what is missing, hand over the rest."""
        try:
            self._take()
        except Exception as error:
            # A border: the event loop calls, and the ordinary way can do all that this can.
            log.exception("a bug in the fast lane")
            self._fail(error)

    @abstractmethod
    def _take(self) -> None:
        """Take what came."""

    def _fail(self, error: Exception) -> None:
        """End what a bug broke."""
        if self._is_answered:
            self.close()
        else:
            self.hand_over()

    def _wait(self) -> None:
        """For more of the answer, or for the ordinary way to tell why there will be no more."""
        if self._connection.is_coming:
            self._connection.call_back(self._look)
        else:
            self.hand_over()

    def _hand_over(
        self,
        *,
        message: Message | None = None,
        headers: Sequence[Header] = (),
        reader: StreamReader | None = None,
    ) -> None:
        self._events.heard = self._told
        self._responder.take_over(
            ExchangeHandover(
                sent=self._sent,
                request=self._started,
                events=self._events,
                started_at=self._began,
                side=self._request.side,
                message=message,
                headers=headers,
                reader=reader,
                catalog=self._catalog,
                tools=self._tools,
            )
        )

    def _take_head(self) -> UpstreamResponse:
        """The answer whose head is there; it is told of when it is taken first."""
        if self._answer is None:
            self._answer = answer = self._started.answer()
            if answer.is_success and self._events.has_subscribers:
                self._tell(HeadArrived(headers=answer.headers))
        return self._answer

    def _tell(self, *events: Event) -> None:
        for event in events:
            self._events.notify(event)
            self._told.append(type(event))

    def _finish(self, answer: UpstreamResponse, message: Message) -> None:
        """The client has its answer, and it was a plain message."""
        self._is_answered = True
        self._tell_end(answer, message)
        self.close()

    def _tell_end(self, answer: UpstreamResponse, message: Message) -> None:
        # What is learned changes the tools; the ordinary way learns by itself, once it has resumed.
        self._target.learn_from(answer.head.headers)
        if self._request.offer.has_search:
            self._target.capabilities(self._sent.options.get("model")).learn_from(message)
        if self._events.has_subscribers:
            prompt = tuple(self._request.chat.messages)
            outcome = Outcome(message=message, usage=message.usage, total_usage=message.usage, prompt=prompt)
            self._events.notify(ModelAnswered(message=message))
            self._events.notify(ConversationEnded(outcome=outcome))


class WholeExchange(ModelExchange):
    """One whose answer comes in one piece."""

    def _take(self) -> None:
        if self._connection.is_complete:
            self._end()
            return
        if self._connection.has_head and self._connection.is_coming:
            self._take_head()
        self._wait()

    def _end(self) -> None:
        """The answer is whole."""
        answer = self._take_head()
        raw = answer.take() if answer.is_success else None
        if raw is None:
            self.hand_over()
            return
        try:
            message = whole_message(raw)
            if is_for_client := message is not None and is_plain(message):
                self._responder.answer(message, answer.head)
        except Exception:
            answer.put_back(raw)
            raise
        if message is None:
            answer.put_back(raw)
            self.hand_over()
        elif is_for_client:
            self._finish(answer, message)
        else:
            self._started.close()
            self._hand_over(message=message, headers=answer.headers)


class StreamExchange(ModelExchange):
    """One whose answer is a stream, which the client gets as it comes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._builder = MessageBuilder(_nobodys)
        self._reader: StreamReader | None = None
        """None until the answer has begun, and is one that the lane can read."""
        self._drain: asyncio.TimerHandle | None = None
        """Ends the wait for what may come behind the last event."""
        self._is_drained = False
        """Whether that was waited for long enough."""

    def hand_over(self) -> None:
        """Leave it to the ordinary way, however far it is."""
        self._connection.call_back(None)
        self._stop_draining()
        self._hand_over(reader=self._reader)

    def client_left(self) -> None:
        """Stop the model server: nobody waits for its answer."""
        self._stop_draining()
        super().client_left()

    def _take(self) -> None:
        if self._reader is None and not self._connection.has_head:
            self._wait()
            return
        if (reader := self._reader or self._begin_reading()) is None:
            self.hand_over()
            return
        try:
            for chunks in reader.read(*self._connection.take_pieces()):
                self._show(chunks)
            if reader.is_over or self._connection.is_complete:
                self._end(reader)
            elif self._builder.has_calls or self._responder.is_blocked:
                self.hand_over()
            else:
                self._wait()
        except UpstreamError as error:  # the ordinary way may ask in another way
            reader.fail(error)
            self.hand_over()

    def _fail(self, error: Exception) -> None:
        if self._reader is not None and not self._is_answered:
            self._reader.fail(error)  # the client must not take what it has for a whole answer
        super()._fail(error)

    def _begin_reading(self) -> StreamReader | None:
        """Begin to answer; None: the ordinary way must see what came."""
        answer = self._take_head()
        if not (answer.is_success and is_event_stream(answer)) or answer.is_compressed:
            return None
        self._reader = StreamReader(self._builder)
        self._responder.start(answer.head)
        return self._reader

    def _show(self, chunks: Chunks) -> None:
        self._events.show(chunks)
        self._responder.write(chunks)

    def _end(self, reader: StreamReader) -> None:
        """All events are here."""
        for chunks in reader.close():
            self._show(chunks)
        message = reader.message()
        if not is_plain(message):
            self.hand_over()
        elif self._is_drained or self._connection.is_complete or not self._connection.is_coming:
            self._stop_draining()
            self._connection.call_back(None)
            self._responder.end(message)
            self._finish(self._take_head(), message)
        else:  # so that the connection can be used again
            self._connection.call_back(self._look)
            if self._drain is None:
                loop = asyncio.get_running_loop()
                self._drain = loop.call_later(DRAIN_SECONDS, self._end_drain)

    def _end_drain(self) -> None:
        self._is_drained = True
        self._look()

    def _stop_draining(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None


def whole_message(raw: bytes) -> Message | None:
    """The message of a whole answer, if nothing about it is unusual."""
    try:
        answer, is_strict = loads_told(raw)
    except ValueError:
        return None
    if not is_strict or not isinstance(answer, dict) or may_be_deeper(raw, MAX_DEPTH):
        return None
    try:
        return read_answer(answer)
    except UpstreamError:
        return None


def is_plain(message: Message) -> bool:
    """Whether an answer is one in words, and nothing in it is for anybody but the client."""
    is_said = bool(message.fields.get("content")) and "function_call" not in message.fields
    return is_said and message.finish_reason in _PLAIN_ENDINGS and not message.tool_calls


_PLAIN_ENDINGS = ("stop", "length", "content_filter")


def _nobodys(_: str) -> bool:
    """Requests in the lane bring no tools of the client's."""
    return False
