"""Creates a response, with its events and its record; counts input tokens and compacts conversations."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio

from toolway.api.fields import text_in
from toolway.api.responses.items.input_items import OpenTurn, answered_before, sealed, summary_message
from toolway.api.responses.items.response_object import Event, read_usage
from toolway.api.responses.request_reader import RequestReader, ResponseJob, split_leading
from toolway.api.responses.stored_responses import StoredResponse, StoredResponses, new_id, with_ids
from toolway.conversation.call_ids import with_original_ids
from toolway.conversation.events import CallBegan, CallEnded, Chunks, HeadArrived, Outcome, RoundBegan
from toolway.conversation.events import Event as ConversationEvent
from toolway.conversation.message import Message
from toolway.engine.engine import Engine
from toolway.engine.history.split_turns import parts_of
from toolway.engine.loop import assistant_message
from toolway.errors import (
    InvalidRequest,
    NoRoomInStore,
    StoreError,
    ToolwayError,
    UpstreamError,
    UpstreamTimeout,
)
from toolway.server.asgi import relayed
from toolway.types import JSON, Header
from toolway.upstream.model_call import ModelCallFactory

Deliver = Callable[[list[Event]], Awaitable[None]]
"""Sends events of the response to its client."""

OnHead = Callable[[list[Header]], Awaitable[None]]
"""Gets the model server's headers before the first event."""


STORE_TIMEOUT = 60.0
"""Seconds for which a store that is away is waited for, by those who have something to keep or to read there."""


class ResponseCreator:
    """Makes responses for every way that they are asked for: whole, streamed, in the background, over a socket."""

    def __init__(self, engine: Engine, records: StoredResponses) -> None:
        self.settings = engine.settings
        self.records = records
        self.reader = RequestReader(engine, records)

    async def claim(self, job: ResponseJob) -> None:
        """Before the approved calls run: see that nobody answered for them. Raises InvalidRequest, StoreError.

        A no may come again, as it does in a conversation that the client keeps, but never after a yes. A yes may
        come again when its call has run and the response failed: then it has that result, and does not run.
        """
        answers = dict.fromkeys(job.input.denied, False)
        answers |= {approved.request: True for approved in job.input.approved}
        claimed = []
        try:
            for request, approve in answers.items():
                if await self.records.claim(job.owner, request, approve=approve):
                    claimed.append(request)
                elif approve and (result := await self.records.result(job.owner, request)):
                    job.approved_results[request] = result
                elif approve or not await self.records.was_denied(job.owner, request):
                    raise answered_before(request)
        except ToolwayError:
            with suppress(StoreError):
                for request in claimed:
                    await self.records.release(job.owner, request)
            raise

    async def make(
        self,
        job: ResponseJob,
        factory: ModelCallFactory,
        deliver: Deliver,
        on_head: OnHead | None = None,
        raw: bytes | None = None,
    ) -> StoredResponse:
        """Run the conversation, telling its events as they happen; the record is kept before the last ones are told.

        `on_head` gets the model server's headers before the first event. A request whose bytes are given as `raw` goes
        on from the tool results of an earlier attempt, if no item tells of them. When it fails after approved calls
        ran, their results are kept for when the approvals come again. Raises ToolwayError.
        """
        if job.request.compacts:
            return await self._compact(job, deliver, on_head)
        came_again = [*job.approved_results]
        try:
            outcome = await self._run(job, factory, deliver, on_head, raw)
            record = await self._end(job, outcome, deliver)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for request, result in job.approved_results.items():
                    await self.records.keep_result(job.owner, request, result)
            raise
        for request in came_again:
            with suppress(StoreError):
                await self.records.forget_result(job.owner, request)
        return record

    async def _run(
        self,
        job: ResponseJob,
        factory: ModelCallFactory,
        deliver: Deliver,
        on_head: OnHead | None,
        raw: bytes | None,
    ) -> Outcome:
        writer = _ConversationWriter(job, deliver, on_head)
        approved = job.input.approved
        approved_results = {
            each.call.id: job.approved_results[each.request]
            for each in approved
            if each.request in job.approved_results
        }
        if job.request.mcp or approved:
            raw = None
        if gate := job.conversation.gate:
            for each in approved:
                await gate.resume_linked(each.call, each.request)
            for request in job.input.denied:
                await gate.deny_linked(request)
        return await job.conversation.run(factory, writer.deliver, raw=raw, approved_results=approved_results)

    async def _compact(self, job: ResponseJob, deliver: Deliver, on_head: OnHead | None) -> StoredResponse:
        """A response that is a summary of the conversation, to go on from in its place."""
        message, summary = await _summarise(job)
        if on_head:
            await on_head([])
        events = job.writer.compacted(summary, message)
        messages = [*job.leading, summary_message(summary)]
        return await self._finish(job, events, deliver, messages=messages)

    async def warm_up(self, job: ResponseJob, deliver: Deliver) -> StoredResponse:
        """A response without an answer, to go on from: what the client sent is read and kept."""
        if job.input.approved:
            raise InvalidRequest("An approval needs a response that is generated.", param="generate")
        await self.claim(job)
        events = [*job.writer.began(), *job.writer.completed_empty()]
        _, history = split_leading(await job.conversation.history())
        record = await self.keep(job, job.record(messages=[*job.leading, *history]))
        await deliver(events)
        return record

    async def fail(self, job: ResponseJob, error: ToolwayError) -> list[Event]:
        """Keep that the response failed; returns the events that say so."""
        events = job.writer.failed(error)
        with suppress(StoreError):
            await self.keep(job, job.record())
        return events

    async def keep(self, job: ResponseJob, record: StoredResponse) -> StoredResponse:
        """Keep a record, if it is to be stored; returns it, with its place.

        Whoever waits for a response can do without, and reads in it that it is not stored. One that is made in the
        background is lost then: a store that is away is waited for, a while. Raises StoreError for such a one alone.
        """
        deadline = time.monotonic() + STORE_TIMEOUT
        while job.request.store:
            try:
                return await self.records.save(job.owner, record, job.previous)
            except StoreError as error:
                if not job.request.background:
                    return replace(record, resource={**record.resource, "store": False})
                if isinstance(error, NoRoomInStore) or time.monotonic() > deadline:
                    raise
            await anyio.sleep(1.0)
        return record

    async def _end(self, job: ResponseJob, outcome: Outcome, deliver: Deliver) -> StoredResponse:
        writer = job.writer
        events: list[Event] = []
        asks = {}
        for call, approval in zip(outcome.pending_approvals, job.conversation.pending, strict=True):
            tool = job.conversation.tools.find(call.name)
            assert tool is not None  # noqa: S101 - the loop asked for it because it is one of ours
            request, more = writer.approval_requested(call, tool)
            asks[request] = call.id
            if job.conversation.gate:
                await job.conversation.gate.link(approval, request)
            events += more
        events += writer.ended(outcome.message, outcome.usage)
        messages, turn = _conversation(job, outcome, asks)
        return await self._finish(job, events, deliver, messages=messages, turn=turn)

    async def _finish(
        self, job: ResponseJob, events: list[Event], deliver: Deliver, **more: Any
    ) -> StoredResponse:
        """Keep the record, then deliver the last events: that the response is whole."""
        try:
            record = await self.keep(job, job.record(**more))
        except StoreError:
            await deliver(events[:-1])
            job.writer.withdraw_end()
            raise
        if job.request.store and not record.resource["store"]:
            events[-1] = job.writer.unstored(events[-1])
        await deliver(events)
        return record


class _ConversationWriter:
    """Writes what happens in the conversation as events of the response, which begins when the model server accepts."""

    def __init__(self, job: ResponseJob, deliver: Deliver, on_head: OnHead | None) -> None:
        self._job = job
        self._writer = job.writer
        self._deliver = deliver
        self._on_head = on_head
        self._has_begun = False
        self._requests = {approved.call.id: approved.request for approved in job.input.approved}

    async def deliver(self, event: ConversationEvent) -> None:
        """Write one event of the conversation."""
        if type(event) is Chunks:
            await self._deliver(self._writer.chunks(event.items))
            return
        match event:
            case HeadArrived(headers=headers) if not self._has_begun:
                await self._begin(relayed(headers))
            case RoundBegan() if self._has_begun:
                await self._deliver(self._writer.turn_ended())
            case CallBegan(call=call, tool=tool):
                if not self._has_begun:
                    await self._begin([])
                await self._deliver(self._writer.call_began(call, tool, self._requests.get(call.id)))
            case CallEnded(call=call, result=result):
                if request := self._requests.pop(call.id, None):
                    self._job.approved_results[request] = result
                await self._deliver(self._writer.call_ended(call, result))

    async def _begin(self, headers: list[Header]) -> None:
        self._has_begun = True
        if self._on_head:
            await self._on_head(headers)
        await self._deliver(self._writer.began())
        for label, listing in self._job.listings.items():
            await self._deliver(self._writer.tools_listed(label, listing.tools, listing.error))
        if resumed := self._job.conversation.events.rounds:
            await self._deliver(self._writer.rounds_resumed(resumed))


def _conversation(
    job: ResponseJob, outcome: Outcome, asks: dict[str, str]
) -> tuple[list[JSON], OpenTurn | None]:
    """All messages up to the end of this response, and its last turn if calls of it are open."""
    before = [*job.leading, *split_leading(outcome.prompt)[1], *outcome.hidden]
    message, tools = outcome.message, job.conversation.tools
    if outcome.split_turn:
        return before, OpenTurn(**parts_of(outcome.split_turn), asks=asks)
    if message.tool_calls and not message.cut_short:
        return before, OpenTurn(assistant=with_original_ids([assistant_message(message, tools)])[0])
    answer = {**message.fields, "content": message.fields.get("content") or ""}
    return [*before, answer], None


SUMMARISE = (
    "Write a summary of the conversation so far, for somebody who will go on with it without having read it: what is "
    "wanted, what was found out and done, names, numbers and decisions that matter, and what is still open. "
    "Write the summary alone."
)

SUMMARY_TOKENS = 4096
SUMMARY_SECONDS = 120.0
"""What a summary may take; small models go on for ever at times."""

_ANSWER_OPTIONS = (
    "response_format",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)


async def count_tokens(job: ResponseJob) -> JSON:
    """How many tokens the request's input has, our tools included: the model server counts them.

    It is asked for an answer of one token, so it also reads the input into its cache. Raises UpstreamError.
    """
    conversation = job.conversation
    request = conversation.tools.put_into(conversation.chat)
    outcome = await conversation.ask(request.with_options(max_tokens=1))
    if not outcome.usage:
        raise UpstreamError("The model server does not say how many tokens it read.")
    usage = read_usage(outcome.usage) or {}
    return {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}


async def compact(job: ResponseJob) -> JSON:
    """The conversation in a few items: what users and developers said, and a summary of all.

    Raises InvalidRequest without a model, which the published schema wants here, and UpstreamError.
    """
    request = job.conversation.chat
    if "model" not in request.options:
        raise InvalidRequest(
            "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
        )
    outcome, summary = await _summarise(job)
    identity = new_id()
    item = {
        "id": f"cmp_{identity.removeprefix('resp_')}",
        "type": "compaction",
        "encrypted_content": sealed(summary),
    }
    return {
        "id": identity,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*_user_items(job, identity), item],
        "usage": read_usage(outcome.usage or {"total_tokens": 0}),
    }


async def _summarise(job: ResponseJob) -> tuple[Message, str]:
    """A summary of the conversation, by one model call. Raises UpstreamError, also for one without an end."""
    request, target = job.conversation.chat, job.conversation.resources.target
    messages = [*request.messages, {"role": "user", "content": SUMMARISE}]
    request = request.without(*_ANSWER_OPTIONS).with_messages(messages)
    if not target.is_openai:  # its reasoning models refuse this option, and end by themselves
        most = request.options.get("max_tokens")
        request = request.with_options(
            max_tokens=min(most, SUMMARY_TOKENS) if type(most) is int else SUMMARY_TOKENS
        )
    with anyio.move_on_after(SUMMARY_SECONDS):
        message = await job.conversation.ask(request)
        if summary := text_in(message.fields.get("content")).strip():
            return message, summary
        raise UpstreamError("The model wrote no summary.")
    raise UpstreamTimeout(f"The model was not done with its summary after {SUMMARY_SECONDS:g} s.")


def _user_items(job: ResponseJob, identity: str) -> list[JSON]:
    spoken = [item for item in job.request.items if item.get("role") in ("user", "developer", "system")]
    return with_ids(spoken, identity)
