"""The engine: opens a conversation with the model, our tools in it, whatever API its client speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from toolway.conversation.events import ConversationBegan
from toolway.conversation.request import ChatRequest
from toolway.engine.conversation import Conversation, Resources
from toolway.engine.event_stream import EventStream, Subscribe
from toolway.engine.model_target import ModelTarget
from toolway.engine.request_options import RequestOptions, limits_of, read_profile
from toolway.engine.request_tools import RequestTools, named_tool
from toolway.engine.result_text import Budget
from toolway.engine.tool_results import ResultRules, ToolResults
from toolway.errors import ConnectorError
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.tools.catalog import Catalog, Snapshot
from toolway.tools.client_servers.declaration import read_declared
from toolway.tools.client_servers.pool import DynamicServers
from toolway.tools.selection import Selection
from toolway.types import JSON, JSON_TYPE, Caller, Tool, ToolCall
from toolway.upstream.client import Upstream

STARTUP_WAIT = 2.0
"""Seconds after the start in which a request waits for tool servers that were not tried yet."""


@dataclass(frozen=True, kw_only=True)
class ToolsAtHand:
    """The tools of all servers, of those that the request brings along too, and which of these failed."""

    snapshot: Snapshot
    failures: Mapping[str, ConnectorError] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The labels of the servers that are here."""
        return [source.label for source in self.snapshot.sources]


@dataclass(frozen=True, kw_only=True)
class ConversationRequest:
    """What a dialect reads of a request: a chat completion, and what is wanted of Toolway itself.

    `narrowed` narrows the tools as `options.selection` does. Calls of a tool that `asks` wait for an approval;
    those that have one are `approved`, and run before the model is asked. With `is_complete` the messages are as
    the model saw them, so that nothing must be put back.
    """

    chat: ChatRequest
    options: RequestOptions
    narrowed: Selection = ()
    asks: Callable[[Tool], bool] | None = None
    approved: Sequence[ToolCall] = ()
    is_complete: bool = False


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
        subscribers: Sequence[Subscribe] = (),
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.store = store
        self._catalog = catalog
        self._client_servers = client_servers
        self._target = target
        self._subscribers = subscribers
        self._limits = limits_of(settings)
        self._resources = Resources(upstream=upstream, store=store, settings=settings, target=target)
        self._rules = ResultRules(
            most=Budget(result=settings.results.max_result_chars, round=settings.results.max_round_chars),
            keeps=settings.results.read_more,
            sees={"on": True, "off": False}.get(settings.results.vision),
            max_image_bytes=settings.results.max_image_bytes,
        )

    @asynccontextmanager
    async def open(
        self, read: ReadRequest, *, caller: Caller, declared: Sequence[JSON] = ()
    ) -> AsyncIterator[Conversation]:
        """The conversation of one request; its tools stay alive until the block ends. Raises InvalidRequest.

        `declared` are the entries of the request that name tool servers, its own or ours.
        """
        await self._catalog.wait_until_tried(STARTUP_WAIT)
        await self._target.settled(STARTUP_WAIT)
        with self._catalog.use() as snapshot:
            if not declared:
                yield await self._conversation(read(ToolsAtHand(snapshot=snapshot)), snapshot, caller)
                return
            labels = {source.label for source in snapshot.sources}
            brought = [server for entry in declared if (server := read_declared(entry, labels))]
            async with self._client_servers.use(brought, owner=caller.id) as reached:
                joined = snapshot.with_sources(reached.sources)
                request = read(ToolsAtHand(snapshot=joined, failures=reached.failures))
                yield await self._conversation(request, joined, caller)

    async def _conversation(
        self, request: ConversationRequest, snapshot: Snapshot, caller: Caller
    ) -> Conversation:
        chat, selection = read_profile(request.chat, self.settings.tools.profiles)
        options = request.options.narrowed(*selection)
        headers = [*caller.headers, JSON_TYPE]
        model_info = partial(self._target.infos.get, chat.options.get("model"), headers)
        # Only a choice of one tool is worth the question before the first round.
        choice = named_tool(chat.options.get("tool_choice"))
        tools = RequestTools(
            chat,
            snapshot,
            [*options.selection, *request.narrowed],
            fit=self._target.fit,
            enforce_choice=bool(choice) and (await model_info()).ignores_choice,
            asks=request.asks,
            approved=[call.name for call in request.approved],
        )
        conversation = Conversation(
            resources=self._resources,
            request=chat,
            options=options,
            limits=options.lowered(self._limits),
            tools=tools,
            results=ToolResults(rules=self._rules, store=self.store, owner=caller.id, ask=model_info),
            caller=caller,
            headers=headers,
            events=EventStream([self._target, *(subscribe() for subscribe in self._subscribers)]),
            approved=request.approved,
            is_complete=request.is_complete,
        )
        conversation.events.tell(_beginning(chat, tools))
        return conversation


def _beginning(chat: ChatRequest, tools: RequestTools) -> ConversationBegan:
    return ConversationBegan(
        model=chat.options.get("model"),
        streamed=chat.is_streamed,
        messages=len(chat.messages),
        tools=len(tools.tools),
    )
