"""A request for a response, read and put together: its conversation, and its tools as the client gets to see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.types import Scope

from toolway.api.responses.items.content import texts_in
from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.input_items import InputItems
from toolway.api.responses.items.request import ResponseRequest, choice_of, read_request
from toolway.api.responses.items.tools import needs_approval
from toolway.api.responses.records import Record, Records, check_previous, new_id, with_ids
from toolway.engine.request_options import choices_of
from toolway.engine.runner import Job, Runner, owner_of
from toolway.errors import ConnectorError
from toolway.tools import names
from toolway.tools.catalog import Snapshot
from toolway.tools.client_servers.declaration import read_declared
from toolway.tools.client_servers.pool import DynamicServers
from toolway.tools.selection import Choice, Selection, is_selected
from toolway.types import JSON, Tool, ToolResult


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The tools of a server that the client declared, or why there are none."""

    tools: Sequence[Tool]
    error: str | None


@dataclass(frozen=True, kw_only=True)
class _AtHand:
    """The tools of all servers, of those that the request brings along too, and which of these failed."""

    snapshot: Snapshot
    failures: Mapping[str, ConnectorError]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A response that can be made now.

    `listing` is what the client gets to see of the servers that it names and has not seen, `listed` the labels of
    those that it has seen then. `items` are those of the input, with ids. `leading` are the system messages at the
    beginning of the conversation, without the instructions. `exact` says that the messages are as the model saw them.
    `done` has the results of approved calls that ran, here or for a response that failed, by their requests.
    """

    asked: ResponseRequest
    owner: str
    job: Job
    narrator: EventWriter
    transcript: InputItems
    listing: Mapping[str, Listing]
    listed: Sequence[str]
    items: Sequence[JSON]
    leading: Sequence[JSON]
    exact: bool
    done: dict[str, ToolResult] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The response's id."""
        return str(self.narrator.resource["id"])

    def record(self, **more: Any) -> Record:
        """What is known of the response by now."""
        own = sorted(self.job.results.own)
        return Record(resource=self.narrator.resource, items=self.items, listed=self.listed, own=own, **more)


class Drafts:
    """Makes drafts of requests."""

    def __init__(self, runner: Runner, records: Records, dynamic: DynamicServers) -> None:
        self._runner = runner
        self._records = records
        self._dynamic = dynamic

    @asynccontextmanager
    async def open(self, scope: Scope, body: JSON, previous: Record | None = None) -> AsyncIterator[Draft]:
        """Read a request. Raises InvalidRequest, also for what it names and is not here.

        `previous` is the record of `previous_response_id`, for callers that know it otherwise than by the store.
        """
        asked = read_request(body)
        owner = owner_of(scope)
        if previous is None and asked.previous:
            previous = check_previous(await self._records.find(owner, asked.previous), asked.previous)
        items = [await self._resolved(item, owner) for item in asked.items]
        async with self._at_hand(asked, owner) as at_hand:
            yield await self._drafted(scope, replace(asked, items=items), owner, at_hand, previous)

    @asynccontextmanager
    async def _at_hand(self, asked: ResponseRequest, owner: str) -> AsyncIterator[_AtHand]:
        await self._runner.settled()
        with self._runner.catalog.use() as snapshot:
            labels = {source.label for source in snapshot.sources}
            brought = [server for entry in asked.mcp if (server := read_declared(entry, labels))]
            async with self._dynamic.use(brought, owner=owner) as reached:
                yield _AtHand(snapshot=snapshot.with_sources(reached.sources), failures=reached.failures)

    async def _drafted(
        self, scope: Scope, asked: ResponseRequest, owner: str, at_hand: _AtHand, previous: Record | None
    ) -> Draft:
        snapshot, failures = at_hand.snapshot, at_hand.failures
        transcript = _transcript(asked, snapshot, previous)
        history = transcript.close()
        leading, rest = split_leading(history)
        front = _instructions(asked, leading)
        body, narrowed = _chosen(asked, snapshot)
        wishes = self._runner.wishes(scope, {**body, "messages": [*front, *rest]}, snapshot)
        declared = choices_of(asked.mcp, [*(source.label for source in snapshot.sources), *failures])
        # What is listed holds for a conversation, so the choice of one response does not narrow it.
        listable = [*wishes.selection, declared]
        selection = [*wishes.selection, *narrowed, *([declared] if declared else [])]
        bounds = wishes.bounds
        if asked.max_tool_calls is not None:
            bounds = replace(bounds, max_calls=min(bounds.max_calls, asked.max_tool_calls))
        entries = {entry["server_label"]: entry for entry in asked.mcp}
        job = await self._runner.prepare(
            replace(wishes, selection=selection, bounds=bounds),
            snapshot,
            owner,
            asks=(lambda tool: needs_approval(entries.get(tool.server, {}), tool.name)) if entries else None,
            approved=[approved.call.name for approved in transcript.approved],
        )
        job.results.adopt_calls(history, {*transcript.own, *(previous.own if previous else ())})
        seen = transcript.listed | set(previous.listed if previous else ())
        listing = {
            label: Listing(tools=(), error=failures[label].message)
            if label in failures
            else _listing(job.offer.snapshot, label, listable)
            for label in entries
            if label not in seen
        }
        identity = new_id()
        return Draft(
            asked=asked,
            owner=owner,
            job=replace(job, body=_without_idle_options(job)),
            narrator=EventWriter(asked, identity),
            transcript=transcript,
            listing=listing,
            listed=sorted(seen | {label for label in entries if label in seen or not listing[label].error}),
            items=with_ids(asked.items, identity),
            leading=leading,
            exact=previous is not None,
        )

    async def _resolved(self, item: JSON, owner: str) -> JSON:
        """The item that an item_reference stands for; any other item as it is."""
        is_reference = item.get("type") == "item_reference" or item.keys() == {"id"}
        return await self._records.item(owner, str(item.get("id"))) if is_reference else item


def _transcript(asked: ResponseRequest, snapshot: Snapshot, previous: Record | None) -> InputItems:
    def expose(label: str, name: str) -> str:
        return next(iter(_exposed(snapshot, label, name)), names.legal(name))

    messages, turn = (previous.messages, previous.turn) if previous else ((), None)
    transcript = InputItems(expose, messages, turn)
    for number, item in enumerate(asked.items):
        transcript.add(item, f"input[{number}]")
    return transcript


def _exposed(snapshot: Snapshot, label: str, name: str | None) -> list[str]:
    """The names under which the model sees a tool of a server, or all of its tools."""
    return [
        known
        for known, tool in snapshot.tools.items()
        if tool.server == label and name in (None, known, tool.name)
    ]


def split_leading(history: Sequence[JSON]) -> tuple[list[JSON], list[JSON]]:
    """System messages at the beginning, and the rest."""
    count = next((n for n, message in enumerate(history) if message["role"] != "system"), len(history))
    return list(history[:count]), list(history[count:])


def _instructions(asked: ResponseRequest, leading: Sequence[JSON]) -> list[JSON]:
    """One system message, since many templates take no second one."""
    texts = [asked.instructions, *(text for message in leading for text in texts_in(message["content"]))]
    said = "\n\n".join(text for text in texts if text)
    return [{"role": "system", "content": said}] if said else []


def _chosen(asked: ResponseRequest, snapshot: Snapshot) -> tuple[JSON, list[list[Choice]]]:
    """The chat body with the request's `tool_choice`, and what that narrows our tools to."""
    choice, allowed = choice_of(asked, lambda label, name: _exposed(snapshot, label, name))
    body = asked.chat if choice is None else {**asked.chat, "tool_choice": choice}
    if asked.stream or asked.background:
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    if allowed is None:
        return body, []
    if tools := [tool for tool in body.get("tools", ()) if tool["function"]["name"] in allowed]:
        body = {**body, "tools": tools}
    else:
        body = {key: value for key, value in body.items() if key != "tools"}
    return body, [[Choice(patterns=tuple(allowed))]]


def _listing(snapshot: Snapshot, label: str, selection: Selection) -> Listing:
    status = next(source.status for source in snapshot.sources if source.label == label)
    known = [(name, tool) for name, tool in snapshot.offered.items() if tool.server == label]
    # Its own error may hold addresses, which are the operator's affair.
    error = (
        None if known or status.state in ("ready", "stopped") else f"The server is not there: {status.state}."
    )
    return Listing(tools=[tool for name, tool in known if is_selected(name, tool, selection)], error=error)


def _without_idle_options(job: Job) -> JSON:
    """OpenAI refuses options of tools where there are none."""
    if job.offer.tools or job.body.get("tools"):
        return job.body
    return {k: v for k, v in job.body.items() if k not in ("tool_choice", "parallel_tool_calls")}
