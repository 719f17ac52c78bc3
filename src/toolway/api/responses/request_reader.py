"""A request for a response, read and put together: its conversation, and its tools as the client gets to see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import Scope

from toolway.api.deferred_tools import DeferredTools, search_tool, searchable
from toolway.api.fields import texts_in
from toolway.api.option_headers import read_option_headers
from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.input_items import InputItems
from toolway.api.responses.items.request import ResponseRequest, choice_of, needs_approval, read_request
from toolway.api.responses.items.tool_search import Search, declarations, found_text
from toolway.api.responses.stored_responses import (
    StoredResponse,
    StoredResponses,
    check_previous,
    new_id,
    with_ids,
)
from toolway.conversation.message import ChatRequest
from toolway.dialects import RESPONSES
from toolway.engine.conversation import Conversation, ConversationRequest
from toolway.engine.engine import Engine, ToolsAtHand
from toolway.engine.request_options import RequestOptions, choices_of, with_deferred
from toolway.server.caller import caller_of
from toolway.tools import names
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, Choice, Selection, Tool, ToolResult, is_selected, record


@dataclass(frozen=True, kw_only=True)
class ToolListing:
    """The tools of a server that the client declared, or why there are none."""

    tools: Sequence[Tool]
    error: str | None


@record
class ResponseJob:
    """What it takes to make one response: the request as it was read, and its conversation with the model.

    `listings` are what the client gets to see of the servers that it names and has not seen, `shown_servers` the labels
    of those that it has seen then. `items` are those of the input, with ids. `leading` are the system messages at the
    beginning of the conversation, without the instructions; `previous` is the response that it goes on from.
    `approved_results` are those of approved calls that ran, here or for a response that failed, by their requests.
    """

    request: ResponseRequest
    conversation: Conversation
    writer: EventWriter
    input: InputItems
    listings: Mapping[str, ToolListing]
    shown_servers: Sequence[str]
    items: Sequence[JSON]
    leading: Sequence[JSON]
    previous: StoredResponse | None = None
    approved_results: dict[str, ToolResult] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Whose response it is."""
        return self.conversation.caller.id

    @property
    def identity(self) -> str:
        """The response's id."""
        return str(self.writer.resource["id"])

    def record(self, **more: Any) -> StoredResponse:
        """What is known of the response by now."""
        own = sorted(self.conversation.results.own)
        return StoredResponse(
            resource=self.writer.resource, items=self.items, listed=self.shown_servers, own=own, **more
        )


class RequestReader:
    """Reads requests, and opens what it takes to answer them."""

    def __init__(self, engine: Engine, records: StoredResponses) -> None:
        self._engine = engine
        self._records = records

    @asynccontextmanager
    async def open(
        self, scope: Scope, body: JSON, previous: StoredResponse | None = None
    ) -> AsyncIterator[ResponseJob]:
        """Read a request. Raises InvalidRequest, also for what it names and is not here.

        `previous` is the record of `previous_response_id`, for callers that know it otherwise than by the store.
        """
        request = read_request(body)
        caller = caller_of(scope, self._engine.settings.upstream)
        if previous is None and request.previous:
            previous = check_previous(await self._records.find(caller.id, request.previous), request.previous)
        if any(map(_is_reference, request.items)):
            request = replace(
                request, items=[await self._resolved(item, caller.id) for item in request.items]
            )
        late_role = "system" if self._engine.target.is_openai else "user"
        options = read_option_headers(caller.option_headers)
        builder = _ConversationBuilder(request, options, previous, late_role)
        async with self._engine.open(builder.request, caller=caller, declared=request.mcp) as conversation:
            yield builder.job(conversation)

    async def _resolved(self, item: JSON, owner: str) -> JSON:
        """The item that an item_reference stands for; any other item as it is."""
        return await self._records.item(owner, str(item.get("id"))) if _is_reference(item) else item


def _is_reference(item: JSON) -> bool:
    return item.get("type") == "item_reference" or item.keys() == {"id"}


class _ConversationBuilder:
    """One request on its way to a job: first what it asks of the engine, then what its client gets to see."""

    def __init__(
        self,
        request: ResponseRequest,
        options: RequestOptions,
        previous: StoredResponse | None,
        late_role: str,
    ) -> None:
        self._request = request
        self._options = options
        self._previous = previous
        self._late_role = late_role
        self._entries = {entry["server_label"]: entry for entry in request.mcp}

    def request(self, tools: ToolsAtHand) -> ConversationRequest:
        """The conversation that the request goes on with. Raises InvalidRequest."""
        request, snapshot = self._request, tools.snapshot
        self._failures = tools.failures
        self._search = search = Search.of(request, snapshot.tools)
        self._input = _read_items(request, snapshot, self._previous, search)
        self._history = self._input.close()
        self._leading, rest = split_leading(self._history)
        labels = [*tools.labels, *tools.failures] if request.mcp else []
        self._declared = choices_of(request.mcp, labels) if request.mcp else []
        body, narrowed = _with_tool_choice(request, snapshot)
        self._hidden: JSON = {}
        if search:
            body, self._hidden = search.hide(request, body, search.loaded_in(self._history))
            self._request = search.declared_in(request)
        rest = [_with_role(message, self._late_role) for message in rest]
        messages = [*_instructions(request, self._leading), *rest]
        return ConversationRequest(
            chat=ChatRequest.of({**body, "messages": messages}),
            options=with_deferred(self._limited(self._options), request.mcp, labels)
            if request.mcp
            else self._limited(self._options),
            dialect=RESPONSES.name,
            takes_approvals=True,
            prefills=False,
            narrowed=[*narrowed, *([self._declared] if self._declared else [])],
            asks=self._needs_approval if self._entries else None,
            approved=[approved.call for approved in self._input.approved],
            complete=max(0, len(messages) - len(self._history) + self._input.kept),
        )

    def job(self, conversation: Conversation) -> ResponseJob:
        """The response that can be made now."""
        previous, identity = self._previous, new_id()
        own = {*self._input.own, *(previous.own if previous else ())}
        conversation.results.adopt_calls(self._history, own)
        request = self._request
        writer = EventWriter(request, identity, is_heard=request.stream or request.background)
        self._offer_search(conversation, writer)
        if not (conversation.tools.tools or conversation.chat.tools):  # OpenAI refuses options of tools then
            chat = conversation.chat.without("tool_choice", "parallel_tool_calls")
            conversation.request = replace(conversation.request, chat=chat)
        seen = self._input.shown_servers | set(previous.listed if previous else ())
        listings = {label: self._listing(label, conversation) for label in self._entries if label not in seen}
        shown = {label for label in self._entries if label in seen or not listings[label].error}
        return ResponseJob(
            request=self._request,
            conversation=conversation,
            writer=writer,
            input=self._input,
            listings=listings,
            shown_servers=sorted(seen | shown),
            items=with_ids(self._request.items, identity),
            leading=self._leading,
            previous=previous,
        )

    def _offer_search(self, conversation: Conversation, writer: EventWriter) -> None:
        """Let the model search the hidden tools; a call of one that it did not look up is the client's all the same."""
        search, hidden, request = self._search, self._hidden, self._request
        if not hidden:
            return
        conversation.tools.know_clients(hidden)
        if search is None or search.is_clients or request.given.get("tool_choice") == "none":
            return

        def load(names: Sequence[str]) -> None:
            conversation.tools.join_clients([hidden[name] for name in names])

        writer.searched = DeferredTools(
            {name: searchable(function["function"]) for name, function in hidden.items()},
            load,
            lambda names: found_text(declarations(request, names), request.model_name),
            conversation.tools.search_name,
        )
        tool = search_tool(search.name)
        writer.search = tool.name
        conversation.tools.bring(tool, writer.searched.by_words)

    def _limited(self, options: RequestOptions) -> RequestOptions:
        """The options with the request's own `max_tool_calls`, if that is less."""
        if self._request.max_tool_calls is None:
            return options
        limits = [most for most in (options.max_calls, self._request.max_tool_calls) if most is not None]
        return replace(options, max_calls=min(limits))

    def _needs_approval(self, tool: Tool) -> bool:
        return needs_approval(self._entries.get(tool.server, {}), tool.name)

    def _listing(self, label: str, conversation: Conversation) -> ToolListing:
        if label in self._failures:
            return ToolListing(tools=(), error=self._failures[label].message)
        # What is listed holds for a conversation, so the choice of one response does not narrow it.
        listable = [*conversation.request.options.selection, self._declared]
        return _listing(conversation.tools.snapshot, label, listable)


def _read_items(
    request: ResponseRequest, snapshot: Snapshot, previous: StoredResponse | None, search: Search | None
) -> InputItems:
    def expose(label: str, name: str) -> str:
        return next(iter(snapshot.names_of(label, name)), names.legal(name))

    messages, turn = (previous.messages, previous.turn) if previous else ((), None)
    name = search.name if search else None
    items = InputItems(expose, messages, turn, client_name=request.model_name, search=name)
    for number, item in enumerate(request.items):
        items.add(item, f"input[{number}]")
    return items


def split_leading(history: Sequence[JSON]) -> tuple[list[JSON], list[JSON]]:
    """System messages at the beginning, and the rest."""
    count = 0
    while count < len(history) and history[count]["role"] == "system":
        count += 1
    return list(history[:count]), list(history[count:])


def _instructions(request: ResponseRequest, leading: Sequence[JSON]) -> list[JSON]:
    """One system message, since many templates take no second one."""
    texts = [request.instructions, *(text for message in leading for text in texts_in(message["content"]))]
    whole = "\n\n".join(text for text in texts if text)
    return [{"role": "system", "content": whole}] if whole else []


def _with_role(message: JSON, late_role: str) -> JSON:
    """A system message behind others as a text that the model server takes there; any other message as it is.

    Templates of open models refuse a second system message, or one that does not come first.
    """
    if message["role"] != "system":
        return message
    return {"role": late_role, "content": "\n\n".join(texts_in(message["content"]))}


def _with_tool_choice(request: ResponseRequest, snapshot: Snapshot) -> tuple[JSON, list[list[Choice]]]:
    """The chat body with the request's `tool_choice`, and what that narrows our tools to."""
    choice, allowed = choice_of(request, snapshot.names_of)
    body = request.chat if choice is None else {**request.chat, "tool_choice": choice}
    if request.stream or request.background:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    if allowed is None:
        return body, []
    if tools := [tool for tool in body.get("tools", ()) if tool["function"]["name"] in allowed]:
        body = {**body, "tools": tools}
    else:
        body = {key: value for key, value in body.items() if key != "tools"}
    return body, [[Choice(patterns=tuple(allowed))]]


def _listing(snapshot: Snapshot, label: str, selection: Selection) -> ToolListing:
    status = next(source.status for source in snapshot.sources if source.label == label)
    known = [(name, tool) for name, tool in snapshot.offered.items() if tool.server == label]
    # Its own error may hold addresses, which are the operator's affair.
    error = (
        None if known or status.state in ("ready", "stopped") else f"The server is not there: {status.state}."
    )
    return ToolListing(
        tools=[tool for name, tool in known if is_selected(name, tool, selection)], error=error
    )
