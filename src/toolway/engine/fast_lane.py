"""The fast lane: a whole answer without calls, at the price of one exchange with the model server.

The ordinary way, `Engine.open` and `Conversation.run`, is the truth. A request may take the lane when that way could do
no more with it than put our tools in, send it, and hand the answer on: `FastLane.request_for` is that contract, one
look. What comes of it is looked at once more (`plain_message`); all but a plain answer in words goes the ordinary way,
which gets what was asked and answered as a `StartedRequest` and asks nothing twice.
`tests/integration/test_fast_lane.py` holds the lane to the same bytes in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import anyio

from toolway.access.policy import Policy
from toolway.conversation.events import (
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    Event,
    EventStream,
    HeadArrived,
    ModelAnswered,
    ModelAsked,
    Outcome,
    RoundBegan,
)
from toolway.conversation.message import ChatRequest, Message, read_answer
from toolway.engine.history import interrupted
from toolway.engine.history.approval_turns import code_in
from toolway.engine.history.resume import ATTEMPT, Attempt
from toolway.engine.history.split_turns import may_have_ids
from toolway.engine.recovery import ModelHabits
from toolway.engine.request_tools import CHOOSE_TOOLS
from toolway.engine.resources import Resources
from toolway.engine.side_requests import find_side_request
from toolway.engine.token_count import are_counted, tokens_of
from toolway.errors import UpstreamError
from toolway.settings.groups import profile_suffix
from toolway.settings.settings import Settings
from toolway.tools.catalog import Catalog, Snapshot
from toolway.types import JSON, JSON_TYPE, Caller, Header, record
from toolway.upstream.client import CHAT_COMPLETIONS, StartedRequest
from toolway.wire.lenient_json import MAX_DEPTH, dumps, loads_told


@record
class LaneRequest:
    """A request that may take the lane."""

    chat: ChatRequest
    caller: Caller
    snapshot: Snapshot
    """Our tools, as the model server takes them."""
    events: EventStream


@record
class Handover:
    """What the lane did for a request that must go the ordinary way: what was asked, and what subscribers heard."""

    request: StartedRequest
    events: EventStream


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
        self._catalog = catalog
        self._is_settled = is_settled
        self._make_events = make_events
        self._policy = policy

    async def request_for(self, body: JSON, raw: bytes, caller: Caller) -> LaneRequest | None:
        """A request that wants nothing of Toolway itself, to be asked at once; None: not by this lane.

        `body` is what was read of the bytes `raw`. The lane is for one whole answer to a client that names no tools, of
        a caller who may use the model, to a conversation that holds no calls or questions and of which nothing is
        kept; while our tools are offered as they are, by all that is known of the model.
        """
        if not (self._is_open and _is_plain(body) and _is_free(caller, body)):
            return None
        if self._policy.rules.rules and any(map(code_in, body["messages"])):
            return None
        if not self._is_settled() or await self._is_kept(body, raw, caller):
            return None
        snapshot = self._target.fit(self._catalog.snapshot.visible_to(caller.selection))
        if not snapshot.offered or not self._takes_all(snapshot, body.get("model")):
            return None
        chat = ChatRequest.of(body)
        if self._knows_side_requests and find_side_request(chat, caller.headers):
            return None
        return LaneRequest(chat=chat, caller=caller, snapshot=snapshot, events=self._make_events())

    def _takes_all(self, snapshot: Snapshot, model: Any) -> bool:
        """Whether the model is offered all these tools, as far as is known without asking."""
        target = self._target
        if target.cuts_silently or target.habits(model) != NO_HABITS:
            return False
        return self._resources.search.leaves_alone(
            len(snapshot.offered), snapshot.size, most_tools=target.max_tools, known=target.infos.known(model)
        )

    async def ask(self, request: LaneRequest) -> tuple[Message, Sequence[Header]] | Handover:
        """Ask the model server once: its message and its headers, or what the ordinary way goes on with."""
        events, sent = request.events, request.chat.with_tools(request.snapshot.all_definitions)
        told = _Notifier(events)
        if events.has_subscribers:
            chat, offered = request.chat, request.snapshot.offered
            began = ConversationBegan(
                request=chat, offered=offered, caller=request.caller, stream=ref(events)
            )
            told(began, RoundBegan(number=1), ModelAsked(request=sent))
        headers = [*request.caller.headers, JSON_TYPE]
        started = StartedRequest(self._resources.upstream, CHAT_COMPLETIONS, headers, dumps(sent.body()))
        try:
            answer = await started.send()
            if answer.is_success:
                self._target.learn_from(answer.headers)
                if events.has_subscribers:
                    told(HeadArrived(headers=answer.headers))
                raw = await answer.read()
                if message := plain_message(raw):
                    self._count(request, sent, message)
                    await started.close()
                    if events.has_subscribers:
                        _tell_end(request, message)
                    return message, answer.headers
                answer.put_back(raw)
        except UpstreamError as error:
            started.error = error
        except BaseException as error:
            self._count(request, sent, None)
            await started.close()
            with anyio.CancelScope(shield=True):
                await interrupted.keep(self._store, request.caller, request.chat.messages, events)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                events.notify(ClientLeft())
            raise
        events.heard = told.types
        return Handover(request=started, events=events)

    def _count(self, request: LaneRequest, sent: ChatRequest, message: Message | None) -> None:
        """Count the tokens of a caller who may not use as many as it likes."""
        principal = request.caller.principal
        if principal.quotas and are_counted(principal):
            self._resources.meter.spend(principal, tokens_of(sent, message))

    async def _is_kept(self, body: JSON, raw: bytes, caller: Caller) -> bool:
        """Whether an earlier attempt at this request, or an answer that broke off, left rounds that belong into it."""
        if not self._store.may_have(caller.id, ATTEMPT, interrupted.ATTEMPTS):
            return False
        attempt = Attempt(self._store, caller.retry_id, raw, EventStream())
        return await attempt.is_known() or bool(await interrupted.find(self._store, caller, body["messages"]))


def _is_plain(body: JSON) -> bool:
    """Whether a request is one for a whole answer without a word of tools or calls."""
    if body.get("stream") or body.get("n") not in (None, 1) or not CHOOSE_TOOLS.isdisjoint(body):
        return False
    if profile_suffix(body.get("model"))[0]:
        return False
    return not any(may_have_ids(message) for message in body["messages"])


class _Notifier:
    """Tells subscribers, and remembers of what."""

    def __init__(self, events: EventStream) -> None:
        self.types: list[type[Event]] = []
        self._events = events

    def __call__(self, *events: Event) -> None:
        for event in events:
            self._events.notify(event)
            self.types.append(type(event))


def _tell_end(request: LaneRequest, message: Message) -> None:
    prompt = tuple(request.chat.messages)
    outcome = Outcome(message=message, usage=message.usage, total_usage=message.usage, prompt=prompt)
    request.events.notify(ModelAnswered(message=message))
    request.events.notify(ConversationEnded(outcome=outcome))


def plain_message(raw: bytes) -> Message | None:
    """The message of a whole answer in words, if nothing in it is for anybody but the client."""
    try:
        answer, is_strict = loads_told(raw)
    except ValueError:
        return None
    if not is_strict or not isinstance(answer, dict) or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        return None
    try:
        message = read_answer(answer)
    except UpstreamError:
        return None
    is_said = bool(message.fields.get("content")) and "function_call" not in message.fields
    return message if is_said and message.finish_reason in _PLAIN_ENDINGS and not message.tool_calls else None


NO_HABITS = ModelHabits()

_PLAIN_ENDINGS = ("stop", "length", "content_filter")


def _is_free(caller: Caller, body: JSON) -> bool:
    """Whether a caller may use the model that a request names, and asks nothing by headers or query."""
    if caller.query or caller.option_headers:
        return False
    principal = caller.principal
    return not principal.models or ("models" not in body and principal.may_use_model(body.get("model")))
