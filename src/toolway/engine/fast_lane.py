"""The fast lane: a whole answer without calls, at the price of one exchange with the model server and without a task.

The ordinary way, `Engine.open` and `Conversation.run`, is the truth. A request may take the lane when that way could do
no more with it than put our tools in, send it, and hand the answer on: `FastLane.request_for` is that contract, one
look. What comes of it is looked at once more (`is_plain`); all but a plain answer in words goes the ordinary way, which
gets what was asked and answered as a `Handover`, and asks nothing twice.
`tests/integration/test_fast_lane.py` holds the lane to the same bytes in both directions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol
from weakref import ref

from toolway.access.policy import Policy
from toolway.conversation.events import (
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
from toolway.conversation.message import ChatRequest, Message, read_answer
from toolway.engine.history import failed_requests, interrupted_answers
from toolway.engine.history.approval_turns import code_in
from toolway.engine.history.split_turns import may_have_ids
from toolway.engine.model_target import ModelTarget
from toolway.engine.offer import NO_TOOLS, KnownOffers, Offer
from toolway.engine.request_tools import BESIDE_TOOLS, CHOOSE_TOOLS
from toolway.engine.resources import Resources
from toolway.engine.side_requests import SideRequest, find_side_request
from toolway.errors import UpstreamError
from toolway.settings.groups import profile_suffix
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import Catalog
from toolway.types import JSON, JSON_TYPE, Caller, Header, record
from toolway.upstream.client import CHAT_COMPLETIONS, StartedRequest, UpstreamResponse
from toolway.upstream.model_call import IsClients, Turn
from toolway.wire.lenient_json import MAX_DEPTH, dumps, loads_told

log = logging.getLogger("toolway.chat")


@record
class LaneRequest:
    """A request that may take the lane."""

    chat: ChatRequest
    caller: Caller
    offer: Offer
    """Our tools in it."""
    events: EventStream
    side: SideRequest | None = None
    """What its client asks for itself, if it is that."""


@record
class Handover:
    """What the lane did for a request that must go the ordinary way: what was `sent`, and what subscribers heard.

    The exchange with the model server is over where a `message` came of it, else the `request` is under way.
    """

    sent: ChatRequest
    request: StartedRequest
    events: EventStream
    started: float
    """When it was sent, in monotonic seconds."""
    message: Message | None = None
    headers: Sequence[Header] = ()

    def resumed(self, turn: Turn) -> Turn:
        """`turn`, which gives the message that came to whoever first asks for what was sent."""
        sent, message = self.sent, self.message

        async def ask(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
            nonlocal message
            is_it = request.options is sent.options and request.tools == sent.tools
            if message is None or not is_it or request.messages != sent.messages:
                return await turn(request, emit, is_clients)
            answer, message = message, None
            await emit(HeadArrived(headers=self.headers))
            return answer

        return ask

    def close(self) -> None:
        """End the exchange with the model server, if the ordinary way has not."""
        self.request.close()


class MessageClient(Protocol):
    """Whoever waits for the answer to a request in the lane; one of both is called, once, unless it leaves."""

    def answer(self, message: Message, headers: Sequence[Header]) -> None:
        """The answer is plain: this message, with these headers of the model server."""

    def go_on(self, handover: Handover) -> None:
        """The request must go the ordinary way."""

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what is left to be done for a client that left."""


class FastLane:
    """The lane of one engine."""

    def __init__(
        self,
        settings: Settings,
        resources: Resources,
        catalog: Catalog,
        *,
        is_settled: Callable[[], bool],
        make_events: Callable[[], EventStream],
        policy: Policy,
    ) -> None:
        loop = settings.loop
        renames = settings.tools.profiles or settings.upstream.model_aliases
        self._is_open = not (loop.replay or loop.text_tool_calls or renames)
        self._knows_side_requests = not loop.side_request_tools
        self._resources = resources
        self._store, self._target = resources.store, resources.target
        self._offers = KnownOffers(resources.search, self._target, self._store)
        self._catalog = catalog
        self._is_settled = is_settled
        self._make_events = make_events
        self._policy = policy

    def request_for(self, body: JSON, raw: bytes, caller: Caller) -> LaneRequest | None:
        """A request that wants nothing of Toolway itself, to be asked at once; None: not by this lane.

        The lane is for one whole answer to a client that names no tools, of a caller who may use the model and has no
        limits of its own, to a conversation that holds no calls or questions and of which nothing can be kept; while
        it is known of the model which of our tools it is offered.
        """
        if not (self._is_open and _is_plain(body) and _is_free(caller, body)):
            return None
        if self._policy.rules.rules and any(map(code_in, body["messages"])):
            return None
        if not self._is_settled() or self._may_be_continued(body["messages"], raw, caller):
            return None
        chat = ChatRequest.of(body)
        side = find_side_request(chat, caller.headers) if self._knows_side_requests else None
        offer = NO_TOOLS if side else self._offer_for(chat, caller)
        if offer is None or not (offer.tools or BESIDE_TOOLS.isdisjoint(body)):
            return None
        return LaneRequest(chat=chat, caller=caller, offer=offer, events=self._make_events(), side=side)

    def _may_be_continued(self, messages: Sequence[Any], raw: bytes, caller: Caller) -> bool:
        """Whether an earlier attempt at this request, or an answer that broke off, may have left rounds for it."""
        return failed_requests.may_be_kept(self._store, caller, raw) or interrupted_answers.may_be_kept(
            self._store, caller, messages
        )

    def _offer_for(self, chat: ChatRequest, caller: Caller) -> Offer | None:
        """What the model is offered of the tools of this caller; None: that is not known without asking."""
        snapshot = self._target.fit(self._catalog.snapshot.visible_to(caller.selection))
        return self._offers.find(snapshot, chat.options.get("model"), caller, chat.messages)

    def ask(self, request: LaneRequest, client: MessageClient) -> ModelExchange | None:
        """Ask the model server once, for `client`; None when no connection to it is idle."""
        sent = request.chat.with_tools(request.offer.definitions)
        headers = [*request.caller.headers, JSON_TYPE]
        try:
            started = self._resources.upstream.start(CHAT_COMPLETIONS, headers, dumps(sent.body()))
        except UpstreamError:  # the ordinary way says why it cannot be sent
            return None
        if started is None:
            return None
        exchange = ModelExchange(request, started, client, self._store, self._target)
        exchange.begin(sent)
        return exchange


class ModelExchange:
    """A request on its way to the model server, whose answer is looked at by callbacks."""

    def __init__(
        self,
        request: LaneRequest,
        started: StartedRequest,
        client: MessageClient,
        store: Store,
        target: ModelTarget,
    ) -> None:
        self._request = request
        self._events = request.events
        self._started = started
        self._connection = started.connection
        self._client = client
        self._store = store
        self._target = target
        self._told: list[type[Event]] = []
        """What subscribers heard."""
        self._answer: UpstreamResponse | None = None

    def begin(self, sent: ChatRequest) -> None:
        """It was `sent`."""
        self._sent = sent
        self._began = time.monotonic()
        self._connection.call_back(self._look)
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

    def hand_over(self, message: Message | None = None, headers: Sequence[Header] = ()) -> None:
        """Leave it to the ordinary way, however far it is."""
        if message is None:
            self._connection.call_back(None)
        self._events.heard = self._told
        self._client.go_on(
            Handover(
                sent=self._sent,
                request=self._started,
                events=self._events,
                started=self._began,
                message=message,
                headers=headers,
            )
        )

    def client_left(self) -> None:
        """Stop the model server: nobody waits for its answer."""
        self._connection.call_back(None)
        self._started.close()
        self._client.run(self._leave())

    async def _leave(self) -> None:
        request = self._request
        await interrupted_answers.keep(self._store, request.caller, request.chat.messages, self._events)
        self._events.notify(ClientLeft())

    def _look(self) -> None:
        """Something came: hand on what is whole and plain, wait for what is not whole, hand over the rest."""
        try:
            if self._connection.is_complete:
                self._end()
            elif self._connection.is_coming:
                if self._connection.has_head:
                    self._take_head()
                self._connection.call_back(self._look)
            else:
                self.hand_over()
        except Exception:  # a border: the event loop calls, and the ordinary way can do all that this can
            log.exception("a bug in the fast lane")
            self.hand_over()

    def _end(self) -> None:
        """The answer is whole."""
        answer = self._take_head()
        raw = answer.take() if answer.is_success else None
        if raw is None:
            self.hand_over()
        elif (message := whole_message(raw)) is None:
            answer.put_back(raw)
            self.hand_over()
        else:
            self._started.close()
            if is_plain(message):
                # What is learned changes the tools; the ordinary way learns by itself, once it has resumed.
                self._target.learn_from(answer.headers)
                if (offer := self._request.offer).has_search:
                    offer.learn_from(message, self._target, self._sent.options.get("model"))
                if self._events.has_subscribers:
                    _tell_end(self._request, message)
                self._client.answer(message, answer.headers)
            else:
                self.hand_over(message, answer.headers)

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


def _is_plain(body: JSON) -> bool:
    """Whether a request is one for a whole answer without a word of tools or calls."""
    if body.get("stream") or body.get("n") not in (None, 1) or not CHOOSE_TOOLS.isdisjoint(body):
        return False
    if profile_suffix(body.get("model"))[0]:
        return False
    return not any(map(may_have_ids, body["messages"]))


def _tell_end(request: LaneRequest, message: Message) -> None:
    prompt = tuple(request.chat.messages)
    outcome = Outcome(message=message, usage=message.usage, total_usage=message.usage, prompt=prompt)
    request.events.notify(ModelAnswered(message=message))
    request.events.notify(ConversationEnded(outcome=outcome))


def whole_message(raw: bytes) -> Message | None:
    """The message of a whole answer, if nothing about it is unusual."""
    try:
        answer, is_strict = loads_told(raw)
    except ValueError:
        return None
    if not is_strict or not isinstance(answer, dict) or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
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


def _is_free(caller: Caller, body: JSON) -> bool:
    """Whether a caller may use the model that a request names, without limits, and asks nothing by headers or query."""
    if caller.query or caller.option_headers:
        return False
    principal = caller.principal
    if principal.quotas or principal.limits or principal.tool_search:
        return False
    return not principal.models or ("models" not in body and principal.may_use_model(body.get("model")))
