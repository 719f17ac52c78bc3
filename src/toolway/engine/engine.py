"""The engine: opens a conversation with the model, our tools in it, whatever API its client speaks, and runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import field, replace
from functools import partial
from typing import Any
from weakref import ref

from toolway.access.policy import Policy
from toolway.access.quotas import Meter
from toolway.conversation.events import ConversationBegan, EventStream, OnFailure, Subscribe
from toolway.engine.conversation import Conversation, ConversationRequest
from toolway.engine.fast_lane import FastLane
from toolway.engine.history.approval_turns import ApprovalTurns
from toolway.engine.model_target import USER_AGENT, ModelTarget
from toolway.engine.request_options import check_models, limits_of, lowered, read_profile
from toolway.engine.request_tools import RequestTools, named_tool
from toolway.engine.resources import Resources
from toolway.engine.search_policy import SearchPolicy
from toolway.engine.side_requests import SideRequest, find_side_request
from toolway.engine.tool_results import Budget, ResultRules, ToolResults
from toolway.engine.tool_search import inner_call
from toolway.engine.tool_vectors import ToolVectors
from toolway.errors import ConnectorError
from toolway.settings.profiles import profile_suffix, split_model
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import STARTUP_WAIT, Catalog, Snapshot
from toolway.tools.client_servers import ClientServers, read_declared
from toolway.tools.profiles import no_such_profile
from toolway.tools.source_wrappers import ListedSource
from toolway.types import JSON, JSON_TYPE, Caller, Header, Tool, record
from toolway.upstream.client import Upstream
from toolway.upstream.model_info import ModelInfo


@record
class ToolsAtHand:
    """The tools of all servers, of those that the request brings along too, and which of these failed."""

    snapshot: Snapshot
    failures: Mapping[str, ConnectorError] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The labels of the servers that are here."""
        return [source.label for source in self.snapshot.sources]


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
        client_servers: ClientServers,
        store: Store,
        target: ModelTarget,
        policy: Policy,
        meter: Meter,
        vectors: ToolVectors | None = None,
        subscribers: Sequence[Subscribe] = (),
        on_failure: OnFailure | None = None,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.store = store
        self.catalog = catalog
        self.has_started = False
        """Whether no request waits any more for servers that just start."""
        self._client_servers = client_servers
        self._target = target
        self.policy = policy
        self._subscribers = subscribers
        self._on_failure = on_failure
        self._limits = limits_of(settings)
        self._search = SearchPolicy(settings.tools, store, vectors)
        self._resources = Resources(
            upstream=upstream,
            store=store,
            settings=settings,
            target=target,
            search=self._search,
            meter=meter,
            policy=policy,
        )
        self.fast_lane = FastLane(
            settings,
            self._resources,
            catalog,
            has_started=lambda: self.has_started,
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
        begun_with: Snapshot | None = None,
    ) -> AbstractAsyncContextManager[Conversation]:
        """The conversation of one request; its tools stay alive until the block ends. Raises InvalidRequest.

        `declared` are the entries of the request that name tool servers, its own or ours. `listed` are by label the
        tools that servers of its own have for it, whatever these have by now. A request that was in the fast
        lane goes on with the tools that it has `begun_with`, which are held for it.
        """
        if declared:
            return self._open_with(declared, listed, read, caller)
        return _Opening(self, read, caller, begun_with)

    @asynccontextmanager
    async def _open_with(
        self,
        declared: Sequence[JSON],
        listed: Mapping[str, Sequence[Tool]],
        read: ReadRequest,
        caller: Caller,
    ) -> AsyncIterator[Conversation]:
        await self.wait_until_tried()
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

    async def wait_until_tried(self) -> None:
        """Wait a little for tool servers and a model server, if these just start."""
        if not self.has_started:
            await self.catalog.wait_until_tried(STARTUP_WAIT)
            await self._target.wait_until_known(STARTUP_WAIT)
            self.has_started = True

    async def conversation(
        self, request: ConversationRequest, snapshot: Snapshot, caller: Caller
    ) -> Conversation:
        """The conversation of a request that was read, with the tools of this snapshot in it."""
        if (handover := request.handover) is not None:  # the lane takes none with a profile
            side = handover.side
        else:
            request = await self._with_profile(request, snapshot, caller)
            side = self._side_request(request, caller)
        if side:
            request = replace(request, options=request.options.narrowed(()))
        chat, model = request.chat, request.chat.options.get("model")
        headers = [*caller.headers, JSON_TYPE]
        model_info = partial(self._model_info, model, headers)
        tools = await self._tools_for(request, snapshot, caller, model_info)
        gate = self.policy.gate(
            caller,
            dialect=request.dialect,
            model=model,
            asks=bool(request.asks or request.approved),
            messages=chat.messages,
            wait=request.approval_wait,
            elicit=request.elicit,
        )
        conversation = Conversation(
            resources=self._resources,
            request=request,
            limits=request.options.lowered(lowered(self._limits, caller.principal.limits)),
            tools=tools,
            results=ToolResults(rules=self._rules, store=self.store, owner=caller.id, ask=model_info),
            caller=caller,
            headers=headers,
            events=handover.events if handover else self._events(),
            gate=gate,
            approval_turns=None
            if gate is None or request.takes_approvals
            else ApprovalTurns(self.policy, gate, caller),
        )
        events = conversation.events
        events.notify(
            ConversationBegan(
                request=chat, offered=tools.tools, caller=caller, side=str(side or ""), stream=ref(events)
            )
        )
        return conversation

    async def _tools_for(
        self,
        request: ConversationRequest,
        snapshot: Snapshot,
        caller: Caller,
        model_info: Callable[[], Awaitable[ModelInfo]],
    ) -> RequestTools:
        """The tools that a request may have, offered or searched."""
        chat, options = request.chat, request.options
        model = chat.options.get("model")
        if self._target.cuts_silently and snapshot.offered:
            await self._target.look_up_room(model, [*caller.headers, JSON_TYPE])
        # Only a choice of one tool is worth the question before the first round.
        choice = chat.options.get("tool_choice")
        tools = RequestTools(
            chat,
            snapshot,
            [*options.selection, *request.narrowed],
            fit=self._target.fit,
            enforce_choice=bool(choice and named_tool(choice)) and (await model_info()).ignores_choice,
            asks=request.asks,
            approved=[name for call in request.approved for name in (call.name, inner_call(call).name)],
        )
        if request.deferred:
            tools.know_clients(request.deferred)
        await self._search.apply(
            tools,
            options.tool_search or caller.principal.tool_search,
            always=options.always,
            capabilities=self._target.capabilities(model),
            most_tools=self._target.max_tools,
            info=model_info,
            caller=caller,
            messages=chat.messages,
        )
        return tools

    async def _with_profile(
        self, request: ConversationRequest, snapshot: Snapshot, caller: Caller
    ) -> ConversationRequest:
        """The request with its profile, for a model that its caller may use. Raises InvalidRequest, NotFound."""
        chat, options = read_profile(
            request.chat, request.options, self.settings.tools.profiles, self.settings.upstream.model_aliases
        )
        await self._check_profile(request.chat.options.get("model"), snapshot, caller)
        check_models(caller.principal, chat.options)
        if chat is request.chat and options is request.options:
            return request
        return replace(request, chat=chat, options=options)

    async def _check_profile(self, named: Any, snapshot: Snapshot, caller: Caller) -> None:
        """Raise NotFound for a model whose name ends like that of a profile which is not there.

        Without its profile a request would have all tools. Names of models may look so too: one that the model server
        lists, or that is an alias, is a model. Where there are no profiles, so is one whose beginning is none.
        """
        profiles, aliases = self.settings.tools.profiles, self.settings.upstream.model_aliases
        if not isinstance(named, str) or "@" not in named:
            return
        bare, suffix = profile_suffix(named)
        if not bare or split_model(named, profiles)[1] or named in [alias.name for alias in aliases]:
            return
        own = [header for header in caller.headers if header[0] != USER_AGENT[0]]
        is_model, is_bare = await self._target.infos.are_listed([named, bare], [*own, USER_AGENT])
        if not is_model and (profiles or is_bare):
            raise no_such_profile(suffix, profiles, caller.selection, snapshot.tools, param="model")

    async def _model_info(self, model: Any, headers: Sequence[Header]) -> ModelInfo:
        """What the model server says of a model to this caller; the question is Toolway's own."""
        if (known := self._target.infos.cached(model)) is not None:
            return known
        own = [header for header in headers if header[0] != USER_AGENT[0]]
        return await self._target.infos.get(model, [*own, USER_AGENT])

    def _events(self) -> EventStream:
        made = [subscriber for subscribe in self._subscribers if (subscriber := subscribe()) is not None]
        return EventStream(made, on_failure=self._on_failure, on_head=self._target.learn_from)

    def _side_request(self, request: ConversationRequest, caller: Caller) -> SideRequest | None:
        """What a client asks for itself; one that chooses tools of ours wants them."""
        if self.settings.loop.side_request_tools or request.options.selection or request.narrowed:
            return None
        return find_side_request(request.chat, caller.headers)


class _Opening(AbstractAsyncContextManager[Conversation]):
    """A block with a conversation in it, for which the tools of the catalog are held."""

    # A class, since asynccontextmanager costs a small request a twentieth.

    def __init__(
        self, engine: Engine, read: ReadRequest, caller: Caller, begun_with: Snapshot | None
    ) -> None:
        self._engine = engine
        self._begun_with = begun_with
        self._read = read
        self._caller = caller

    async def __aenter__(self) -> Conversation:
        engine = self._engine
        if not engine.has_started:
            await engine.wait_until_tried()
        self._snapshot = snapshot = engine.catalog.hold(self._begun_with)
        try:
            visible = snapshot.visible_to(self._caller.selection)
            request = self._read(ToolsAtHand(snapshot=visible))
            return await engine.conversation(request, visible, self._caller)
        except BaseException:
            engine.catalog.release(snapshot)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._engine.catalog.release(self._snapshot)
