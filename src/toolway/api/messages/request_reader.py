"""A request for a message, read and put together: its conversation, and what the client gets to see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.types import Scope

from toolway.api.deferred_tools import DeferredTools, search_tool, searchable
from toolway.api.messages.connector import knows_listings
from toolway.api.messages.content import Media
from toolway.api.messages.input_messages import InputMessages, definitions_text
from toolway.api.messages.request import (
    OPTIONAL,
    SEARCH_TOOLS,
    MessagesRequest,
    as_functions,
    read_tool,
)
from toolway.api.option_headers import read_option_headers
from toolway.conversation.message import ChatRequest
from toolway.dialects import MESSAGES
from toolway.engine.conversation import Conversation, ConversationRequest
from toolway.engine.engine import Engine, ToolsAtHand
from toolway.engine.request_options import RequestOptions
from toolway.server.caller import openai_caller_of
from toolway.types import JSON


@dataclass(frozen=True, kw_only=True)
class MessageJob:
    """What it takes to make one message: the request as it was read, and its conversation with the model."""

    request: MessagesRequest
    conversation: Conversation
    media: Media
    listings: Sequence[JSON] = ()
    """What the client is told of the tools of its servers."""
    searched: DeferredTools | None = None
    """The deferred tools, if the model can search them."""


class RequestReader:
    """Opens the conversations of requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def open(self, scope: Scope, request: MessagesRequest) -> AsyncIterator[MessageJob]:
        """Read the conversation of a request. Raises InvalidRequest, ConnectorError."""
        caller = openai_caller_of(scope, self._engine.settings.upstream)
        options = read_option_headers(caller.option_headers)
        builder = _ConversationBuilder(request, options, is_openai=self._engine.target.is_openai)
        tells_listings = knows_listings(scope["headers"])
        async with self._engine.open(
            builder.conversation, caller=caller, declared=request.mcp, listed=request.listed
        ) as conversation:
            conversation.results.adopt_calls(conversation.chat.messages, builder.input.own)
            hidden = builder.hidden
            conversation.tools.hold_back(hidden.keys())
            yield MessageJob(
                request=request,
                conversation=conversation,
                media=builder.input.media,
                listings=builder.listings if tells_listings else (),
                searched=_searched(request, conversation, hidden),
            )


class _ConversationBuilder:
    """One request on its way to a conversation."""

    def __init__(self, request: MessagesRequest, options: RequestOptions, *, is_openai: bool) -> None:
        self._request = request
        self._toolways = options
        self._is_openai = is_openai

    def conversation(self, tools: ToolsAtHand) -> ConversationRequest:
        """The conversation that the request goes on with."""
        request = self._request
        for failure in tools.failures.values():
            raise failure
        snapshot, toolsets = tools.snapshot, request.toolsets
        self.listings = [toolset.listing(snapshot) for toolset in toolsets if toolset.tools is None]
        self._deferred = dict(request.deferred)
        for toolset in toolsets:
            self._deferred |= toolset.deferred(snapshot)
        self.input = InputMessages(
            snapshot.names_of, self._deferred, late_role="system" if self._is_openai else "user"
        )
        messages = self.input.read(request.messages)
        system = [*request.system, *self.input.system]
        if system:
            messages = [{"role": "system", "content": "\n\n".join(system)}, *messages]
        declared = [toolset.choice(snapshot, without=self.input.removed) for toolset in toolsets]
        return ConversationRequest(
            chat=ChatRequest.of({**self._options(), "messages": messages}),
            dialect=MESSAGES.name,
            options=self._toolways,
            narrowed=[declared] if toolsets else [],
            pauses=bool(toolsets or request.searches),
            optional=OPTIONAL,
            gives_ids=True,
        )

    @property
    def hidden(self) -> dict[str, JSON]:
        """The deferred tools that nothing in the conversation has shown to the model, of the client and of servers."""
        return {name: tool for name, tool in self._deferred.items() if name not in self.input.loaded}

    def _options(self) -> JSON:
        options = self._request.options
        if functions := as_functions(self._offered()):
            options = {**options, "tools": functions}
        if self._is_openai:  # its reasoning models know no other name
            options = {
                ("max_completion_tokens" if name == "max_tokens" else name): v for name, v in options.items()
            }
            return {name: value for name, value in options.items() if name != "top_k"}
        if self.input.ends_with_prefill:
            return {**options, **PREFILL}
        return options

    def _offered(self) -> Sequence[JSON]:
        """The client's tools that the model sees: those that were found stand behind all others, in their order."""
        request, given = self._request, self.input
        inline = [read_tool(entry, "tool_addition.definition") for entry in given.defined]
        found = [request.deferred[name] for name in given.loaded if name in request.deferred]
        tools = [*request.tools, *found, *(tool for tool in inline if tool)]
        return [tool for tool in tools if tool["name"] not in given.removed]


def _searched(
    request: MessagesRequest, conversation: Conversation, hidden: Mapping[str, JSON]
) -> DeferredTools | None:
    """Offer the search tools of a request over those deferred tools that the model does not see yet."""
    if not request.searches or not hidden or conversation.chat.options.get("tool_choice") == "none":
        return None

    def load(names: Sequence[str]) -> None:
        tools = conversation.tools
        new = [name for name in names if name in request.deferred and name not in tools.clients]
        tools.join_clients(as_functions([hidden[name] for name in new]))
        tools.join(name for name in names if name not in request.deferred)

    searched = DeferredTools(
        {name: searchable({**tool, "name": name}, "input_schema") for name, tool in hidden.items()},
        load,
        lambda names: definitions_text(names, hidden),
        conversation.tools.search_name,
    )
    for name, kind in request.searches.items():
        by_pattern = kind.startswith(f"{SEARCH_TOOLS}regex")
        conversation.tools.bring(
            search_tool(name, by_pattern=by_pattern), searched.by_pattern if by_pattern else searched.by_words
        )
    return searched


PREFILL = {"add_generation_prompt": False, "continue_final_message": True}
"""What makes vLLM and SGLang go on with the last message; llama.cpp does so by itself, others refuse or ignore it."""
