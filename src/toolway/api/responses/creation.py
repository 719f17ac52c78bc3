"""The making of one response: its conversation run, its events told, its record kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio

from toolway.api.responses.items.input_items import Turn, answered_before
from toolway.api.responses.items.response_state import Event
from toolway.api.responses.preparation import Draft, Drafts, split_leading
from toolway.api.responses.records import Record, Records
from toolway.conversation.events import CallBegan, CallEnded, Chunks, HeadArrived, Outcome, RoundBegan
from toolway.engine.history.messages import assistant_message
from toolway.engine.history.split_turns import parts_of
from toolway.engine.runner import Runner
from toolway.errors import InvalidRequest, StoreError, ToolwayError
from toolway.server.json_response import Header, relayed
from toolway.types import JSON
from toolway.upstream.model_call import MakeTurn

Tell = Callable[[list[Event]], Awaitable[None]]


class Making:
    """Makes responses for every way that they are asked for: whole, streamed, in the background, over a socket."""

    def __init__(self, runner: Runner, records: Records, drafts: Drafts) -> None:
        self.runner = runner
        self.records = records
        self.drafts = drafts

    async def claim(self, draft: Draft) -> None:
        """Before the approved calls run: see that nobody answered for them. Raises InvalidRequest, StoreError.

        A refusal may come again, as it does in a conversation that the client keeps, but never after a yes. A yes may
        come again when its call has run and the response failed: then it has that result, and does not run.
        """
        answers = dict.fromkeys(draft.transcript.refused, False)
        answers |= {approved.request: True for approved in draft.transcript.approved}
        claimed = []
        try:
            for request, approve in answers.items():
                if await self.records.claim(draft.owner, request, approve=approve):
                    claimed.append(request)
                elif approve and (result := await self.records.result(draft.owner, request)):
                    draft.done[request] = result
                elif approve or not await self.records.was_refused(draft.owner, request):
                    raise answered_before(request)
        except ToolwayError:
            with suppress(StoreError):
                for request in claimed:
                    await self.records.release(draft.owner, request)
            raise

    async def make(
        self,
        draft: Draft,
        turn: MakeTurn,
        tell: Tell,
        on_head: Callable[[list[Header]], Awaitable[None]] | None = None,
        raw: bytes | None = None,
    ) -> Record:
        """Run the conversation, telling its events as they happen; the record is kept before the last ones are told.

        `on_head` gets the model server's headers before the first event. A request whose bytes are given as `raw` goes
        on from the tool results of an earlier attempt, if no item tells of them. When it fails after approved calls
        ran, their results are kept for when the approvals come again. Raises ToolwayError.
        """
        came_again = [*draft.done]
        try:
            record = await self._run(draft, turn, tell, on_head, raw)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for request, result in draft.done.items():
                    await self.records.keep_result(draft.owner, request, result)
            raise
        with suppress(StoreError):
            for request in came_again:
                await self.records.forget_result(draft.owner, request)
        return record

    async def _run(
        self,
        draft: Draft,
        turn: MakeTurn,
        tell: Tell,
        on_head: Callable[[list[Header]], Awaitable[None]] | None,
        raw: bytes | None,
    ) -> Record:
        narrator = draft.narrator
        requests = {approved.call.id: approved.request for approved in draft.transcript.approved}
        begun = False
        resumed: Sequence[JSON] = ()

        async def begin(headers: list[Header]) -> None:
            nonlocal begun
            begun = True
            if on_head:
                await on_head(headers)
            await tell(narrator.began())
            for label, listing in draft.listing.items():
                await tell(narrator.tools_listed(label, listing.tools, listing.error))
            if resumed:
                await tell(narrator.rounds_resumed(resumed))

        async def emit(event: Any) -> None:
            nonlocal resumed
            if type(event) is Chunks:
                await tell(narrator.chunks(event.items))
                return
            draft.job.conversation.note(event)
            match event:
                case HeadArrived() if not begun:
                    await begin(relayed(event.headers))
                case RoundBegan(between=between) if not begun:
                    resumed = between
                case RoundBegan():
                    await tell(narrator.turn_ended())
                case CallBegan(call=call, tool=tool):
                    if not begun:
                        await begin([])
                    await tell(narrator.call_began(call, tool, requests.get(call.id)))
                case CallEnded(call=call, result=result):
                    if request := requests.pop(call.id, None):
                        draft.done[request] = result
                    await tell(narrator.call_ended(call, result))

        approved = [approved.call for approved in draft.transcript.approved]
        done = {call: draft.done[request] for call, request in requests.items() if request in draft.done}
        if raw is None or draft.asked.mcp or approved:
            outcome = await self.runner.run(
                draft.job, emit, turn=turn, exact=draft.exact, approved=approved, done=done
            )
        else:
            outcome = await self.runner.run_again(draft.job, emit, raw, turn=turn, exact=draft.exact)
        return await self._end(draft, outcome, tell)

    async def warm_up(self, draft: Draft, tell: Tell) -> Record:
        """A response without an answer, to go on from: what the client sent is read and kept."""
        if draft.transcript.approved:
            raise InvalidRequest("An approval needs a response that is generated.", param="generate")
        await self.claim(draft)
        events = [*draft.narrator.began(), *draft.narrator.completed_empty()]
        record = draft.record(messages=draft.transcript.messages)
        if draft.asked.store:
            await self.records.save(draft.owner, record)
        await tell(events)
        return record

    async def fail(self, draft: Draft, error: ToolwayError) -> list[Event]:
        """Keep that the response failed; returns the events that say so."""
        draft.job.conversation.failed(error)
        events = draft.narrator.failed(error)
        if draft.asked.store:
            await self.records.save(draft.owner, draft.record())
        return events

    async def _end(self, draft: Draft, outcome: Outcome, tell: Tell) -> Record:
        narrator = draft.narrator
        events: list[Event] = []
        asks = {}
        for call in outcome.asked_for:
            tool = draft.job.offer.find(call.name)
            assert tool is not None  # noqa: S101 - the loop asked for it because it is one of ours
            request, more = narrator.approval_requested(call, tool)
            asks[request] = call.id
            events += more
        events += narrator.ended(outcome.message, outcome.usage)
        messages, turn = _conversation(draft, outcome, asks)
        record = draft.record(messages=messages, turn=turn)
        if draft.asked.store:
            await self.records.save(draft.owner, record)
        await tell(events)
        return record


def _conversation(draft: Draft, outcome: Outcome, asks: dict[str, str]) -> tuple[list[JSON], Turn | None]:
    """All messages up to the end of this response, and its last turn if calls of it are open."""
    asked = list(outcome.asked)
    before = [*draft.leading, *split_leading(asked)[1], *outcome.between]
    message, offer = outcome.message, draft.job.offer
    if outcome.held:
        return before, Turn(**parts_of(outcome.held), asks=asks)
    if message.tool_calls and not message.cut_short:
        return before, Turn(assistant=assistant_message(message, offer))
    said = {**message.said, "content": message.said.get("content") or ""}
    return [*before, said], None
