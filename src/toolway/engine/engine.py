"""The engine: opens a conversation with the model, our tools in it, whatever API its client speaks, and runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any
from weakref import ref

import anyio

from toolway.access.approvals import Approval
from toolway.access.gate import CallGate, Elicit
from toolway.access.policy import Policy
from toolway.access.quotas import Meter
from toolway.conversation.call_ids import for_client, new_token, with_original_ids, with_public_ids
from toolway.conversation.events import (
    Chunks,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    Emit,
    Event,
    EventStream,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    Outcome,
    Subscribe,
    Subscriber,
    emit_to_nobody,
    is_quiet,
)
from toolway.conversation.message import ChatRequest, Message
from toolway.engine.fast_lane import Begun, FastLane
from toolway.engine.history import hidden_rounds, interrupted, split_turns
from toolway.engine.history.approval_turns import ApprovalTurns, Restored
from toolway.engine.history.resume import Attempt
from toolway.engine.limits import Limits, LoopLimits
from toolway.engine.loop import EarlierWork, Loop, run_tool_loop
from toolway.engine.model_target import USER_AGENT, ModelTarget
from toolway.engine.rejected_tools import without_rejected_tools
from toolway.engine.request_options import RequestOptions, check_models, limits_of, lowered, read_profile
from toolway.engine.request_tools import RequestTools, named_tool
from toolway.engine.resources import Resources
from toolway.engine.search_policy import SearchPolicy
from toolway.engine.side_requests import SideRequest, find_side_request
from toolway.engine.text_tool_calls import with_text_tool_calls
from toolway.engine.token_count import are_counted, with_token_count
from toolway.engine.tool_results import Budget, ResultRules, ToolResults
from toolway.engine.tool_search import inner_call
from toolway.engine.tool_vectors import ToolVectors
from toolway.errors import ConnectorError, ToolwayError, UpstreamError, to_public_error
from toolway.settings.groups import profile_suffix, split_model
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import STARTUP_WAIT, Catalog, Snapshot
from toolway.tools.client_servers import DynamicServers, read_declared
from toolway.tools.listed import ListedSource
from toolway.tools.profiles import no_such_profile
from toolway.types import JSON, JSON_TYPE, Caller, Header, Selection, Tool, ToolCall, ToolResult, record
from toolway.upstream.client import BegunRequest, Upstream
from toolway.upstream.model_call import Turn, TurnFactory, whole_turn
from toolway.upstream.model_info import ModelInfo


@dataclass(kw_only=True)
class Conversation:
    """One request, ready to be run once; made by `Engine.open`. Its messages are as the client sent them."""

    resources: Resources
    request: ChatRequest
    options: RequestOptions
    limits: Limits
    tools: RequestTools
    results: ToolResults
    caller: Caller
    headers: Sequence[Header]
    events: EventStream
    gate: CallGate | None = None
    turns: ApprovalTurns | None = None
    """The questions of this conversation, where it asks in words."""
    approved: Sequence[ToolCall] = ()
    takes_approvals: bool = False
    complete: int = 0
    prefills: bool = True
    pauses: bool = False
    optional: frozenset[str] = frozenset()
    gives_ids: bool = False
    begun: BegunRequest | None = None
    pending: Sequence[Approval] = ()
    """The approvals of the outcome's calls that wait."""

    @cached_property
    def token(self) -> str:
        """What stands in the ids of the calls that leave."""
        return new_token()

    async def run(
        self,
        turn: TurnFactory,
        deliver: Emit | None = None,
        *,
        raw: bytes | None = None,
        done: Mapping[str, ToolResult] | None = None,
    ) -> Outcome:
        """Run to the end, asking by `turn`; `deliver` writes what the client may see. Raises what the loop raises.

        A request whose bytes are given as `raw` goes on behind the rounds of an attempt at the same bytes that came
        to nothing a short while ago. `done` has the results of approved calls that need not run again.
        """
        # Decided once: tools may be left out meanwhile, and all of an answer must name a call alike.
        hands_out_calls = bool(
            (self.tools.clients and (self.tools.tools or self.gives_ids)) or (self.gives_ids and self.pauses)
        )
        self.events.deliver = self._with_public_ids(deliver) if deliver and hands_out_calls else deliver
        try:
            outcome = await self._run_behind(turn, raw, done or {})
        finally:
            self.events.deliver = None  # it may lead back here, and the garbage collector is dear
        return for_client(outcome, self.token) if hands_out_calls else outcome

    async def history(self) -> Sequence[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        sent = self.request.messages
        return await self._with_hidden(sent, await self._interrupted(sent))

    async def ask(self, request: ChatRequest) -> Message:
        """One exchange with the model about this conversation, whose calls are not run."""
        turn = self._counted(whole_turn(self._upstream, self.headers))
        messages = await self._with_hidden(request.messages, await self._interrupted(request.messages))
        return await turn(request.with_messages(messages), emit_to_nobody, lambda _: True)

    @property
    def _upstream(self) -> Upstream:
        upstream = self.resources.upstream.with_query(self.caller.query)
        return upstream.going_on(self.begun) if self.begun else upstream

    def failed(self, raised: Exception) -> ToolwayError:
        """The error that the client gets in place of an answer; subscribers are told."""
        error = to_public_error(raised)
        self.events.notify(ConversationFailed(error=error))
        return error

    async def _run_behind(
        self, turn: TurnFactory, raw: bytes | None, done: Mapping[str, ToolResult]
    ) -> Outcome:
        """Run behind what was done for this request before."""
        if raw is None:
            return await self._run(turn, EarlierWork(approved=self.approved, results=done))
        async with Attempt(self.resources.store, self.caller.retry_id, raw, self.events) as rounds:
            return await self._run(turn, EarlierWork(rounds=rounds))

    async def _run(self, turn: TurnFactory, done: EarlierWork) -> Outcome:
        sent, settings = self.request.messages, self.resources.settings
        places = await self._interrupted(sent)
        messages = await self._with_hidden(sent, places)
        if before := interrupted.continued(sent, places):
            done = replace(done, is_unseen=True)
        if restored := self.turns and await self.turns.restore(messages):
            if restored.question:
                return await self._ask_again(restored.question)
            done = self._with_restored(restored, messages, done)
            messages = restored.messages
        if done.rounds:
            self.results.adopt(done.rounds, sent)
        loop = Loop(
            tools=self.tools,
            limits=LoopLimits(self.limits),
            results=self.results,
            events=self.events,
            tool_timeout=settings.loop.tool_timeout,
            relays_progress=settings.loop.progress != "off",
            retry_wait=settings.loop.retry_wait,
            habits=self.resources.target.habits(self.request.options.get("model")),
            pauses=self.pauses,
            optional=self.optional,
            gate=self.gate,
            takes_approvals=self.takes_approvals,
            slot=partial(self.resources.meter.call, self.caller.principal)
            if self.caller.principal.quotas
            else nullcontext,
        )
        request = self._taken(self.request.with_messages(messages), loop)
        try:
            outcome = await run_tool_loop(request, turn=self._turn(turn), loop=loop, done=done)
        except BaseException as error:
            if not self.pauses:
                with anyio.CancelScope(shield=True):
                    await interrupted.keep(self.resources.store, self.caller, sent, self.events, before)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                self.events.notify(ClientLeft())
            raise
        finally:
            if restored:
                await restored.settle()
        self.pending = loop.pending
        if self.turns and outcome.pending_approvals:
            outcome = await self.turns.ask(outcome, loop.pending, sent, self.events)
        else:
            await self._keep(sent, outcome, before)
        self.events.notify(ConversationEnded(outcome=outcome))
        if settings.loop.usage == "sum":
            outcome = replace(outcome, usage=outcome.total_usage)
        return outcome

    async def _ask_again(self, question: str) -> Outcome:
        """The outcome of a request whose answer to a question was unclear."""
        assert self.turns  # noqa: S101 - it has asked before
        outcome = await self.turns.ask_again(question, self.request, self.events)
        self.events.notify(ConversationEnded(outcome=outcome))
        return outcome

    def _taken(self, request: ChatRequest, loop: Loop) -> ChatRequest:
        """The request without those optional options that the model server refuses."""
        refused = self.optional & loop.habits.refused_options
        return request.without(*refused) if refused else request

    def _with_restored(self, restored: Restored, before: Sequence[Any], done: EarlierWork) -> EarlierWork:
        """What must be run before the model is asked, when the user's message answers a question."""
        if restored.messages is not before:
            self.results.adopt(restored.messages, with_original_ids(self.request.messages))
        if not restored.approved:
            return done
        self.tools.approve([call.name for call in restored.approved])
        return replace(done, approved=restored.approved, fill=restored.fill)

    def _with_public_ids(self, deliver: Emit) -> Emit:
        async def deliver_public(event: Event) -> None:
            await deliver(with_public_ids(event, self.token) if type(event) is Chunks else event)

        return deliver_public

    def _turn(self, factory: TurnFactory) -> Turn:
        """How the model is asked in this conversation: from the inside out."""
        turn = factory(self._upstream, self.headers)
        if self.events.has_subscribers:
            turn = _told(turn, self.events)
        turn = self._counted(turn)
        if self.resources.settings.loop.text_tool_calls:
            turn = with_text_tool_calls(turn, tools=self.tools)
        return without_rejected_tools(
            turn,
            tools=self.tools,
            target=self.resources.target,
            probe=self._counted(whole_turn(self._upstream, self.headers)),
            events=self.events,
        )

    def _counted(self, turn: Turn) -> Turn:
        """`turn`, whose tokens are counted for a caller who may not use as many as it likes."""
        principal = self.caller.principal
        if not are_counted(principal):
            return turn
        return with_token_count(turn, partial(self.resources.meter.spend, principal))

    async def _interrupted(self, sent: Sequence[Any]) -> Sequence[interrupted.Place]:
        """Where rounds of interrupted answers belong."""
        return await interrupted.find(
            self.resources.store, self.caller, sent, complete=self.complete, prefills=self.prefills
        )

    async def _with_hidden(self, sent: Sequence[Any], places: Sequence[interrupted.Place]) -> Sequence[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        store, owner = self.resources.store, self.caller.id
        messages = list(sent)
        if self.resources.settings.loop.replay:
            messages = await hidden_rounds.recall(store, self.caller, messages, self.complete)
        messages = await split_turns.restore(store, owner, messages)
        if places:
            messages = interrupted.put_back(messages, places)
        if len(messages) > len(sent):
            self.results.adopt(messages, with_original_ids(sent))
        return messages

    async def _keep(
        self, sent: Sequence[object], outcome: Outcome, before: interrupted.Continued | None
    ) -> None:
        """What the client does not see of this answer, for when it comes back."""
        store, owner = self.resources.store, self.caller.id
        await self.resources.search.keep(self.tools, self.caller, sent)
        if before is not None:
            sent, outcome = before.sent, before.one(outcome)
        if outcome.split_turn and outcome.message.tool_calls:
            hidden = () if self.pauses else outcome.hidden
            await split_turns.keep(store, owner, self.token, outcome.split_turn, hidden)
        elif self.resources.settings.loop.replay and not self.pauses:
            await hidden_rounds.remember(store, self.caller, sent, outcome)


def _told(turn: Turn, events: EventStream) -> Turn:
    """`turn`, of which subscribers hear each request as it goes out, and what came of it."""

    async def ask(request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]) -> Message:
        events.notify(ModelAsked(request=request))
        try:
            message = await turn(request, emit, is_clients)
        except UpstreamError as error:
            events.notify(ModelFailed(error=error))
            raise
        events.notify(ModelAnswered(message=message))
        return message

    return ask


@record
class ToolsAtHand:
    """The tools of all servers, of those that the request brings along too, and which of these failed."""

    snapshot: Snapshot
    failures: Mapping[str, ConnectorError] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The labels of the servers that are here."""
        return [source.label for source in self.snapshot.sources]


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
    dialect: str = "chat"
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
    begun: Begun | None = None
    """What the fast lane did for this request."""


ReadRequest = Callable[[ToolsAtHand], ConversationRequest]
"""Reads a request with the tools at hand in view. May raise InvalidRequest."""


class Engine:
    """Opens conversations. `subscribers` are asked for one subscriber each, for the events of each request."""

    def __init__(
        self,
        *,
        settings: Settings,
        upstream: Upstream,
        catalog: Catalog,
        client_servers: DynamicServers,
        store: Store,
        target: ModelTarget,
        policy: Policy,
        meter: Meter,
        vectors: ToolVectors | None = None,
        subscribers: Sequence[Subscribe] = (),
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.store = store
        self.catalog = catalog
        self._is_settled = False
        self._client_servers = client_servers
        self._target = target
        self.policy = policy
        self._subscribers = subscribers
        self._limits = limits_of(settings)
        self._search = SearchPolicy(settings.tools, store, vectors)
        self._resources = Resources(
            upstream=upstream, store=store, settings=settings, target=target, search=self._search, meter=meter
        )
        self.fast_lane = FastLane(
            settings,
            self._resources,
            catalog,
            is_settled=lambda: self._is_settled,
            make_events=self._events,
            policy=policy,
        )
        self._rules = ResultRules(
            most=Budget(result=settings.results.max_result_chars, round=settings.results.max_round_chars),
            keeps=settings.results.read_more,
            sees={"on": True, "off": False}.get(settings.results.vision),
            max_image_bytes=settings.results.max_image_bytes,
        )

    @property
    def target(self) -> ModelTarget:
        """The model server, as far as it is known."""
        return self._target

    def open(
        self,
        read: ReadRequest,
        *,
        caller: Caller,
        declared: Sequence[JSON] = (),
        listed: Mapping[str, Sequence[Tool]] = {},
    ) -> AbstractAsyncContextManager[Conversation]:
        """The conversation of one request; its tools stay alive until the block ends. Raises InvalidRequest.

        `declared` are the entries of the request that name tool servers, its own or ours. `listed` are by label the
        tools that servers of its own have for it, whatever these have by now.
        """
        return self._open_with(declared, listed, read, caller) if declared else _Opening(self, read, caller)

    @asynccontextmanager
    async def _open_with(
        self,
        declared: Sequence[JSON],
        listed: Mapping[str, Sequence[Tool]],
        read: ReadRequest,
        caller: Caller,
    ) -> AsyncIterator[Conversation]:
        await self.settled()
        with self.catalog.use() as everything:
            snapshot = everything.visible_to(caller.selection)
            labels = {source.label for source in snapshot.sources}
            brought = [server for entry in declared if (server := read_declared(entry, labels))]
            async with self._client_servers.use(brought, owner=caller.id) as reached:
                sources = [
                    ListedSource(source, listed[source.label]) if source.label in listed else source
                    for source in reached.sources
                ]
                joined = snapshot.with_sources(sources).visible_to(caller.selection)
                request = read(ToolsAtHand(snapshot=joined, failures=reached.failures))
                yield await self.conversation(request, joined, caller)

    async def settled(self) -> None:
        """Wait a little for tool servers and a model server, if these just start."""
        if not self._is_settled:
            await self.catalog.wait_until_tried(STARTUP_WAIT)
            await self._target.wait_until_known(STARTUP_WAIT)
            self._is_settled = True

    async def conversation(
        self, request: ConversationRequest, snapshot: Snapshot, caller: Caller
    ) -> Conversation:
        """The conversation of a request that was read, with the tools of this snapshot in it."""
        chat, options = read_profile(
            request.chat, request.options, self.settings.tools.profiles, self.settings.upstream.model_aliases
        )
        await self._check_profile(request.chat.options.get("model"), snapshot, caller)
        check_models(caller.principal, chat.options)
        side = self._side_request(request, caller)
        if side:
            options = options.narrowed(())
        headers = [*caller.headers, JSON_TYPE]
        model_info = partial(self._model_info, chat.options.get("model"), headers)
        if self._target.cuts_silently and snapshot.offered:
            await self._target.look_up_room(chat.options.get("model"), headers)
        # Only a choice of one tool is worth the question before the first round.
        choice = named_tool(chat.options.get("tool_choice"))
        tools = RequestTools(
            chat,
            snapshot,
            [*options.selection, *request.narrowed],
            fit=self._target.fit,
            enforce_choice=bool(choice) and (await model_info()).ignores_choice,
            asks=request.asks,
            approved=[name for call in request.approved for name in (call.name, inner_call(call).name)],
        )
        await self._search.apply(
            tools,
            options.tool_search or caller.principal.tool_search,
            always=options.always,
            habits=self._target.habits(chat.options.get("model")),
            most_tools=self._target.max_tools,
            info=model_info,
            caller=caller,
            messages=chat.messages,
        )
        gate = self.policy.gate(
            caller,
            dialect=request.dialect,
            model=chat.options.get("model"),
            asks=bool(request.asks or request.approved),
            messages=chat.messages,
            wait=request.approval_wait,
            elicit=request.elicit,
        )
        conversation = Conversation(
            resources=self._resources,
            request=chat,
            options=options,
            limits=options.lowered(lowered(self._limits, caller.principal.limits)),
            tools=tools,
            results=ToolResults(rules=self._rules, store=self.store, owner=caller.id, ask=model_info),
            caller=caller,
            headers=headers,
            events=request.begun.events if request.begun else self._events(),
            gate=gate,
            turns=None
            if gate is None or request.takes_approvals
            else ApprovalTurns(self.policy, gate, caller),
            approved=request.approved,
            takes_approvals=request.takes_approvals,
            complete=request.complete,
            prefills=request.prefills,
            pauses=request.pauses,
            optional=request.optional,
            gives_ids=request.gives_ids,
            begun=request.begun.request if request.begun else None,
        )
        aside = f"{side.client}'s {side.purpose}" if side else ""
        events = conversation.events
        events.notify(
            ConversationBegan(
                request=chat, offered=tools.tools, caller=caller, side=aside, stream=ref(events)
            )
        )
        return conversation

    async def _check_profile(self, named: Any, snapshot: Snapshot, caller: Caller) -> None:
        """Raise NotFound for a model whose name ends like that of a profile which is not there.

        Without its profile a request would have all tools. Names of models may look so too: one that the model server
        lists, or that is an alias, is a model. Where there are no profiles, so is one whose beginning is none.
        """
        profiles, aliases = self.settings.tools.profiles, self.settings.upstream.model_aliases
        bare, suffix = profile_suffix(named)
        if not bare or split_model(named, profiles)[1] or named in [alias.name for alias in aliases]:
            return
        own = [header for header in caller.headers if header[0] != USER_AGENT[0]]
        is_model, is_bare = await self._target.infos.are_listed([named, bare], [*own, USER_AGENT])
        if not is_model and (profiles or is_bare):
            raise no_such_profile(suffix, profiles, caller.selection, snapshot.tools, param="model")

    async def _model_info(self, model: Any, headers: Sequence[Header]) -> ModelInfo:
        """What the model server says of a model to this caller; the question is Toolway's own."""
        own = [header for header in headers if header[0] != USER_AGENT[0]]
        return await self._target.infos.get(model, [*own, USER_AGENT])

    def _events(self) -> EventStream:
        subscribers: list[Subscriber] = []
        of_failures: list[Subscriber] = []
        for subscribe in self._subscribers:
            if (subscriber := subscribe()) is not None:
                (of_failures if is_quiet(subscribe) else subscribers).append(subscriber)
        return EventStream(subscribers, of_failures=of_failures, on_head=self._target.learn_from)

    def _side_request(self, request: ConversationRequest, caller: Caller) -> SideRequest | None:
        """What a client asks for itself; one that chooses tools of ours wants them."""
        if self.settings.loop.side_request_tools or request.options.selection or request.narrowed:
            return None
        if request.begun:  # the fast lane takes none
            return None
        return find_side_request(request.chat, caller.headers)


class _Opening(AbstractAsyncContextManager[Conversation]):
    """A block with a conversation in it, for which the tools of the catalog are held."""

    # A class, since asynccontextmanager costs a small request a twentieth.

    def __init__(self, engine: Engine, read: ReadRequest, caller: Caller) -> None:
        self._engine = engine
        self._read = read
        self._caller = caller

    async def __aenter__(self) -> Conversation:
        engine = self._engine
        await engine.settled()
        self._snapshot = snapshot = engine.catalog.hold()
        try:
            visible = snapshot.visible_to(self._caller.selection)
            request = self._read(ToolsAtHand(snapshot=visible))
            return await engine.conversation(request, visible, self._caller)
        except BaseException:
            engine.catalog.release(snapshot)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._engine.catalog.release(self._snapshot)
