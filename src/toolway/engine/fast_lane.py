"""The fast lane: an answer without calls, at the price of one exchange with the model server and without a task.

The ordinary way, `Engine.open` and `Conversation.run`, is the truth. A request may take the lane when that way could do
no more with it than put our tools in, send it, and hand the answer on: `FastLane.request_for` is that contract, one
look. What comes of it is looked at once more (`is_plain`); all but a plain answer in words goes the ordinary way, which
gets what was asked and answered as an `ExchangeHandover`, and asks nothing twice; of a stream, from the first call on.
`tests/integration/test_fast_lane.py` and `test_streamed_lane.py` hold the lane to the same bytes in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from toolway.access.policy import Policy
from toolway.conversation.events import EventStream
from toolway.conversation.message import ChatRequest
from toolway.engine.history import failed_requests, interrupted_answers
from toolway.engine.history.approval_turns import code_in
from toolway.engine.history.failed_requests import FAILED
from toolway.engine.history.interrupted_answers import INTERRUPTED
from toolway.engine.history.split_turns import may_have_ids
from toolway.engine.lane_exchange import (
    LaneCaller,
    LaneRequest,
    MessageResponder,
    ModelExchange,
    StreamExchange,
    WholeExchange,
)
from toolway.engine.offer import NO_TOOLS, KnownOffers, Offer
from toolway.engine.request_tools import BESIDE_TOOLS, CHOOSE_TOOLS
from toolway.engine.resources import Resources
from toolway.engine.side_requests import find_side_request
from toolway.errors import UpstreamError
from toolway.settings.profiles import profile_suffix
from toolway.settings.settings import Settings
from toolway.stores.store import share_of
from toolway.tools.catalog import Catalog
from toolway.types import JSON, JSON_TYPE, Caller
from toolway.upstream.client import CHAT_COMPLETIONS, StartedRequest
from toolway.wire.lenient_json import dumps


class FastLane:
    """The lane of one engine."""

    def __init__(
        self,
        settings: Settings,
        resources: Resources,
        catalog: Catalog,
        *,
        has_started: Callable[[], bool],
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
        self._has_started = has_started
        self._make_events = make_events
        self._policy = policy

    def prepare_caller(self, caller: Caller) -> LaneCaller | None:
        """Prepare what is the same in all requests of a caller with one head; None: they are not for the lane.

        It is for callers without limits of their own, who ask nothing by headers or query.
        """
        principal = caller.principal
        if (
            caller.query
            or caller.option_headers
            or principal.quotas
            or principal.limits
            or principal.tool_search
        ):
            return None
        if share_of(caller.retry_id) != share_of(caller.id):  # their entries are looked for in one place
            return None
        try:
            head = self._resources.upstream.post_head(CHAT_COMPLETIONS, [*caller.headers, JSON_TYPE])
        except UpstreamError:  # the ordinary way says why it cannot be sent
            return None
        return LaneCaller(caller=caller, head=head)

    def request_for(self, body: JSON, raw: bytes, lane_caller: LaneCaller) -> LaneRequest | None:
        """A request that wants nothing of Toolway itself, to be asked at once; None: not by this lane.

        The lane is for one answer, whole or streamed, to a client that names no tools, of a caller who may use the
        model, to a conversation that holds no calls or questions and of which nothing can be kept; while it is known
        of the model which of our tools it is offered.
        """
        caller = lane_caller.caller
        if not (self._is_open and _is_plain(body) and _may_use_model(caller, body)):
            return None
        if self._policy.rules.rules and any(map(code_in, body["messages"])):
            return None
        if not self._has_started() or self._may_be_continued(body["messages"], raw, caller):
            return None
        chat = ChatRequest.of(body)
        side = find_side_request(chat, caller.headers) if self._knows_side_requests else None
        offer = NO_TOOLS if side else self._offer_for(chat, caller)
        if offer is None or not (offer.tools or BESIDE_TOOLS.isdisjoint(body)):
            return None
        return LaneRequest(
            chat=chat,
            caller=caller,
            head=lane_caller.head,
            offer=offer,
            side=side,
        )

    def _may_be_continued(self, messages: Sequence[Any], raw: bytes, caller: Caller) -> bool:
        """Whether an earlier attempt at this request, or an answer that broke off, may have left rounds for it."""
        if not self._store.may_have(caller.id, FAILED, INTERRUPTED):  # so nearly always
            return False
        return failed_requests.may_be_kept(self._store, caller, raw) or interrupted_answers.may_be_kept(
            self._store, caller, messages
        )

    def _offer_for(self, chat: ChatRequest, caller: Caller) -> Offer | None:
        """What the model is offered of the tools of this caller; None: that is not known without asking."""
        snapshot = self._target.fit(self._catalog.snapshot.visible_to(caller.selection))
        return self._offers.find(snapshot, chat.options.get("model"), caller, chat.messages)

    def send(self, request: LaneRequest) -> StartedRequest | None:
        """Ask the model server; None when no connection to it is idle."""
        body = request.chat.body_with(request.offer.definitions)
        return self._resources.upstream.start(request.head, dumps(body))

    def follow(
        self, request: LaneRequest, started: StartedRequest, responder: MessageResponder
    ) -> ModelExchange:
        """Have `responder` tell what comes of a request that was sent."""
        exchange: ModelExchange | None = None
        try:
            sent = request.chat.with_tools(request.offer.definitions)
            way = StreamExchange if sent.is_streamed else WholeExchange
            exchange = way(request, started, responder, self._resources, self._catalog)
            exchange.begin(sent, self._make_events())
        except Exception:
            (exchange or started).close()
            raise
        return exchange


def _is_plain(body: JSON) -> bool:
    """Whether a request is one for one answer without a word of tools or calls."""
    if body.get("n") not in (None, 1) or not CHOOSE_TOOLS.isdisjoint(body):
        return False
    if profile_suffix(body.get("model"))[0]:
        return False
    return not any(map(may_have_ids, body["messages"]))


def _may_use_model(caller: Caller, body: JSON) -> bool:
    """Whether a caller may use the model that a request names."""
    principal = caller.principal
    return not principal.models or ("models" not in body and principal.may_use_model(body.get("model")))
