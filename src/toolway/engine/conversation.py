"""One conversation with the model, our tools in it: what is wanted of it, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import anyio

from toolway.access.approvals import Approval
from toolway.access.gate import CallGate, Elicit
from toolway.conversation.call_ids import for_client, new_token, with_original_ids, with_public_ids
from toolway.conversation.events import (
    Chunks,
    ClientLeft,
    ConversationEnded,
    Emit,
    Event,
    EventStream,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    Outcome,
    emit_to_nobody,
)
from toolway.conversation.message import ChatRequest, Message
from toolway.dialects import CHAT, DialectName
from toolway.engine.history import hidden_rounds, interrupted_answers, split_turns
from toolway.engine.history.approval_turns import ApprovalTurns, RestoredConversation
from toolway.engine.history.failed_requests import Attempt
from toolway.engine.lane_exchange import ExchangeHandover
from toolway.engine.limits import Limits, LoopLimits
from toolway.engine.loop import NOTHING_EARLIER, EarlierWork, Loop, run_tool_loop
from toolway.engine.refused_tools import without_refused_tools
from toolway.engine.request_options import RequestOptions
from toolway.engine.request_tools import RequestTools
from toolway.engine.resources import Resources
from toolway.engine.text_tool_calls import with_text_tool_calls
from toolway.engine.token_count import are_counted, with_token_count
from toolway.engine.tool_results import ToolResults
from toolway.errors import SERVER_STOPS, ToolwayError, UpstreamError, to_public_error
from toolway.types import JSON, Caller, Header, Selection, Tool, ToolCall, ToolResult, record
from toolway.upstream.client import Upstream
from toolway.upstream.model_call import ModelCall, ModelCallFactory, whole_model_call


@record
class ConversationRequest:
    """What a dialect reads of a request: a chat completion, and what is wanted of Toolway itself.

    `dialect` is the API that the client speaks. `narrowed` narrows the tools as `options.selection` does. Calls of a
    tool that `asks` wait for an approval; those that have one are `approved`, and run before the model is asked. One
    that `takes_approvals` tells its client of calls that wait; for any other the answer is a question in words. In the
    first `complete` messages, which are as the model saw them, nothing must be put back. A client that sees the
    rounds `pauses` at their limit. `optional` options are left out where the model server refuses them. With
    `gives_ids` the client gets ids of ours for its calls in any case: some take one that comes twice for the same call.
    """

    chat: ChatRequest
    options: RequestOptions
    dialect: DialectName = CHAT.name
    narrowed: Selection = ()
    asks: Callable[[Tool], bool] | None = None
    approved: Sequence[ToolCall] = ()
    takes_approvals: bool = False
    complete: int = 0
    pauses: bool = False
    prefills: bool = True
    """Whether the API takes an assistant message at the end as the beginning of its answer."""
    optional: frozenset[str] = frozenset()
    gives_ids: bool = False
    approval_wait: float | None = None
    """Seconds for which its calls wait for a person before it goes on; None: as it is configured."""
    elicit: Elicit | None = None
    """Asks the person at the client about a call."""
    shows_progress: bool = False
    """Whether its client is told how far a call is, also where TOOLWAY_PROGRESS is off."""
    handover: ExchangeHandover | None = None
    """What the fast lane did for this request."""
    deferred: Mapping[str, JSON] = field(default_factory=dict)
    """Functions of the client's by name that the model does not see yet; a call of one is the client's."""


@dataclass(kw_only=True)
class Conversation:
    """One request, ready to be run once; made by `Engine.open`. Its messages are as the client sent them."""

    resources: Resources
    request: ConversationRequest
    """What the dialect read, for the model and with the options that it means."""
    limits: Limits
    tools: RequestTools
    results: ToolResults
    caller: Caller
    headers: Sequence[Header]
    events: EventStream
    gate: CallGate | None = None
    approval_turns: ApprovalTurns | None = None
    """The questions of this conversation, where it asks in words."""
    pending: Sequence[Approval] = ()
    """The approvals of the outcome's calls that wait."""

    @property
    def chat(self) -> ChatRequest:
        """The chat completion that it asks for."""
        return self.request.chat

    @cached_property
    def token(self) -> str:
        """What stands in the ids of the calls that leave."""
        return new_token()

    async def run(
        self,
        factory: ModelCallFactory,
        deliver: Emit | None = None,
        *,
        raw: bytes | None = None,
        approved_results: Mapping[str, ToolResult] | None = None,
    ) -> Outcome:
        """Run to the end, asking by the model calls of `factory`; `deliver` writes what the client may see.

        A request whose bytes are given as `raw` goes on behind the rounds of an attempt at the same bytes that came
        to nothing a short while ago. `approved_results` are those of approved calls that need not run again.
        Raises what the loop raises.
        """
        # Decided once: tools may be left out meanwhile, and all of an answer must name a call alike.
        gives_ids, tools = self.request.gives_ids, self.tools
        hands_out_calls = bool(
            (tools.clients and (tools.tools or gives_ids)) or (gives_ids and self.request.pauses)
        )
        self.events.deliver = self._with_public_ids(deliver) if deliver and hands_out_calls else deliver
        try:
            outcome = await self._run_behind(factory, raw, approved_results or {})
        finally:
            self.events.deliver = None  # it may lead back here, and the garbage collector is dear
        return for_client(outcome, self.token) if hands_out_calls else outcome

    async def history(self) -> Sequence[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        sent = self.chat.messages
        return await self._with_hidden(sent, await self._interrupted(sent))

    async def ask(self, request: ChatRequest) -> Message:
        """One exchange with the model about this conversation, whose calls are not run."""
        messages = await self._with_hidden(request.messages, await self._interrupted(request.messages))
        return await self._whole_model_call()(request.with_messages(messages), emit_to_nobody, lambda _: True)

    @property
    def _upstream(self) -> Upstream:
        upstream = self.resources.upstream.with_query(self.caller.query)
        handover = self.request.handover
        return upstream.resuming(handover.request) if handover and handover.is_unread else upstream

    def failed(self, raised: Exception) -> ToolwayError:
        """The error that the client gets in place of an answer; subscribers are told."""
        error = to_public_error(raised)
        self.events.fail(error)
        return error

    async def _run_behind(
        self, factory: ModelCallFactory, raw: bytes | None, approved_results: Mapping[str, ToolResult]
    ) -> Outcome:
        """Run behind what was done for this request before."""
        if raw is None:
            return await self._run(
                factory, EarlierWork(approved=self.request.approved, results=approved_results)
            )
        is_first = self.request.handover is not None  # the lane takes no others
        store, caller = self.resources.store, self.caller
        async with Attempt(store, caller, raw, self.events, is_first=is_first) as rounds:
            return await self._run(factory, EarlierWork(rounds=rounds) if rounds else NOTHING_EARLIER)

    async def _run(self, factory: ModelCallFactory, earlier: EarlierWork) -> Outcome:
        sent = messages = self.chat.messages
        before = None
        if self.request.handover is None:  # the lane takes none that hides anything
            places = await self._interrupted(sent)
            messages = await self._with_hidden(sent, places)
            if before := interrupted_answers.continued(sent, places):
                earlier = replace(earlier, is_unseen=True)
        if restored := self.approval_turns and await self.approval_turns.put_back(messages):
            if restored.question:
                return await self._ask_again(restored.question)
            earlier = self._with_restored(restored, messages, earlier)
            messages = restored.messages
        if earlier.rounds:
            self.results.adopt(earlier.rounds, sent)
        loop = self._loop()
        request = self._without_refused_options(self.chat.with_messages(messages), loop)
        try:
            outcome = await run_tool_loop(
                request, call_model=self._model_call(factory), loop=loop, earlier=earlier
            )
        except BaseException as error:
            await self._broke_off(error, before)
            raise
        finally:
            if restored:
                await restored.close()
        self.pending = loop.pending
        if self.approval_turns and outcome.pending_approvals:
            outcome = await self.approval_turns.ask(outcome, loop.pending, sent, self.events)
        else:
            await self._keep(sent, outcome, before)
        self.events.notify(ConversationEnded(outcome=outcome))
        if self.resources.settings.loop.usage == "sum":
            outcome = replace(outcome, usage=outcome.total_usage)
        return outcome

    def _loop(self) -> Loop:
        request, settings, principal = self.request, self.resources.settings.loop, self.caller.principal
        return Loop(
            tools=self.tools,
            limits=LoopLimits(self.limits, request.handover.started_at if request.handover else None),
            results=self.results,
            events=self.events,
            tool_timeout=settings.tool_timeout,
            relays_progress=request.shows_progress or settings.progress != "off",
            retry_wait=settings.retry_wait,
            capabilities=self.resources.target.capabilities(request.chat.options.get("model")),
            pauses=request.pauses,
            optional=request.optional,
            gate=self.gate,
            takes_approvals=request.takes_approvals,
            slot=partial(self.resources.meter.call, principal) if principal.quotas else nullcontext,
            check=partial(self.resources.policy.check, self.caller),
        )

    async def _broke_off(self, error: BaseException, before: interrupted_answers.Continuation | None) -> None:
        """Keep what ran for a client that gets no answer, and tell subscribers if it left."""
        if not self.request.pauses:
            sent = self.chat.messages
            with anyio.CancelScope(shield=True):
                await interrupted_answers.keep(self.resources.store, self.caller, sent, self.events, before)
        if isinstance(error, anyio.get_cancelled_exc_class()) and SERVER_STOPS not in error.args:
            self.events.notify(ClientLeft())

    async def _ask_again(self, question: str) -> Outcome:
        """The outcome of a request whose answer to a question was unclear."""
        assert self.approval_turns  # noqa: S101 - it has asked before
        outcome = await self.approval_turns.ask_again(question, self.chat, self.events)
        self.events.notify(ConversationEnded(outcome=outcome))
        return outcome

    def _without_refused_options(self, request: ChatRequest, loop: Loop) -> ChatRequest:
        """The request without those optional options that the model server refuses."""
        refused = self.request.optional & loop.capabilities.refused_options
        return request.without(*refused) if refused else request

    def _with_restored(
        self, restored: RestoredConversation, before: Sequence[Any], earlier: EarlierWork
    ) -> EarlierWork:
        """What must be run before the model is asked, when the user's message answers a question."""
        if restored.messages is not before:
            self.results.adopt(restored.messages, with_original_ids(self.chat.messages))
        if not restored.approved:
            return earlier
        self.tools.approve([call.name for call in restored.approved])
        return replace(earlier, approved=restored.approved, fill=restored.fill)

    def _with_public_ids(self, deliver: Emit) -> Emit:
        async def deliver_public(event: Event) -> None:
            await deliver(with_public_ids(event, self.token) if type(event) is Chunks else event)

        return deliver_public

    def _model_call(self, factory: ModelCallFactory) -> ModelCall:
        """How the model is asked in this conversation.

        From the inside out: one exchange as the client wants it, or what the fast lane had of it, told to subscribers,
        its tokens counted, calls that the model writes as text read, and asked again without tools that the model
        server refuses.
        """
        call_model = factory(self._upstream, self.headers)
        if self.request.handover:
            call_model = self.request.handover.resumed(call_model)
        if self.events.has_subscribers:
            call_model = _with_events(call_model, self.events)
        call_model = self._with_token_count(call_model)
        if self.resources.settings.loop.text_tool_calls:
            call_model = with_text_tool_calls(call_model, tools=self.tools)
        return without_refused_tools(
            call_model,
            tools=self.tools,
            target=self.resources.target,
            probe=self._whole_model_call,
            events=self.events,
        )

    def _whole_model_call(self) -> ModelCall:
        return self._with_token_count(whole_model_call(self._upstream, self.headers))

    def _with_token_count(self, call_model: ModelCall) -> ModelCall:
        """`call_model`, whose tokens are counted for a caller who may not use as many as it likes."""
        principal = self.caller.principal
        if not are_counted(principal):
            return call_model
        return with_token_count(call_model, partial(self.resources.meter.spend, principal))

    async def _interrupted(self, sent: Sequence[Any]) -> Sequence[interrupted_answers.Place]:
        """Where rounds of interrupted answers belong."""
        return await interrupted_answers.find(
            self.resources.store,
            self.caller,
            sent,
            complete=self.request.complete,
            prefills=self.request.prefills,
        )

    async def _with_hidden(
        self, sent: Sequence[Any], places: Sequence[interrupted_answers.Place]
    ) -> Sequence[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        store = self.resources.store
        messages = sent
        if self.resources.settings.loop.replay:
            messages = await hidden_rounds.put_back(store, self.caller, sent, self.request.complete)
        messages = await split_turns.put_back(store, self.caller, messages)
        if places:
            messages = interrupted_answers.put_back(messages, places)
        if len(messages) > len(sent):
            self.results.adopt(messages, with_original_ids(sent))
        return messages

    async def _keep(
        self, sent: Sequence[object], outcome: Outcome, before: interrupted_answers.Continuation | None
    ) -> None:
        """What the client does not see of this answer, for when it comes back."""
        store = self.resources.store
        await self.resources.search.keep(self.tools, self.caller, sent)
        if before is not None:
            sent, outcome = before.sent, before.one(outcome)
        if outcome.split_turn and outcome.message.tool_calls:
            hidden = () if self.request.pauses else outcome.hidden
            await split_turns.keep(store, self.caller, self.token, outcome.split_turn, hidden)
        elif self.resources.settings.loop.replay and not self.request.pauses:
            await hidden_rounds.keep(store, self.caller, sent, outcome)


def _with_events(call_model: ModelCall, events: EventStream) -> ModelCall:
    """`call_model`, of which subscribers hear each request as it goes out, and what came of it."""

    async def ask(request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]) -> Message:
        events.notify(ModelAsked(request=request))
        try:
            message = await call_model(request, emit, is_clients)
        except UpstreamError as error:
            events.notify(ModelFailed(error=error))
            raise
        events.notify(ModelAnswered(message=message))
        return message

    return ask
