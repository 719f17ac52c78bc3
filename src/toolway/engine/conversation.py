"""One conversation with the model: its hidden part put back, run to its end, and what the client does not see kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import anyio

from toolway.conversation.events import (
    ClientLeft,
    ConversationEnded,
    ConversationFailed,
    Emit,
    Event,
    Outcome,
)
from toolway.conversation.message import Message
from toolway.conversation.request import ChatRequest
from toolway.engine.event_stream import EventStream
from toolway.engine.history import hidden_rounds, split_turns
from toolway.engine.history.resume import Attempt
from toolway.engine.limits import Limits, LoopLimits
from toolway.engine.loop import EarlierWork, Loop, run_tool_loop
from toolway.engine.model_target import ModelTarget
from toolway.engine.rejected_tools import without_rejected_tools
from toolway.engine.request_options import RequestOptions
from toolway.engine.request_tools import RequestTools
from toolway.engine.text_tool_calls import with_text_tool_calls
from toolway.engine.tool_results import ToolResults
from toolway.errors import ToolwayError, to_public_error
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.types import Caller, Header, ToolCall, ToolResult
from toolway.upstream.client import Upstream
from toolway.upstream.model_call import Turn, TurnFactory, whole_turn


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What all conversations share."""

    upstream: Upstream
    store: Store
    settings: Settings
    target: ModelTarget


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
    approved: Sequence[ToolCall] = ()
    is_complete: bool = False

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
        self.events.deliver = deliver
        if raw is None:
            return await self._run(turn, EarlierWork(approved=self.approved, results=done or {}))
        async with Attempt(self.resources.store, self.caller.id, raw, self.events) as rounds:
            return await self._run(turn, EarlierWork(rounds=rounds))

    async def ask(self, request: ChatRequest) -> Message:
        """One exchange with the model, whose calls are not run."""
        turn = whole_turn(self.resources.upstream, self.headers)
        return await turn(request, _to_nobody, lambda _: True)

    def failed(self, raised: Exception) -> ToolwayError:
        """The error that the client gets in place of an answer; subscribers are told."""
        error = to_public_error(raised)
        self.events.tell(ConversationFailed(error=error))
        return error

    async def _run(self, turn: TurnFactory, done: EarlierWork) -> Outcome:
        sent, settings = self.request.messages, self.resources.settings
        messages = sent if self.is_complete else await self._with_hidden(sent)
        if done.rounds:
            self.results.adopt(done.rounds, sent)
        loop = Loop(
            tools=self.tools,
            limits=LoopLimits(self.limits),
            results=self.results,
            events=self.events,
            tool_timeout=settings.loop.tool_timeout,
            relays_progress=settings.loop.progress != "off",
        )
        request = replace(self.request, messages=messages)
        try:
            outcome = await run_tool_loop(request, turn=self._turn(turn), loop=loop, done=done)
        except anyio.get_cancelled_exc_class():
            self.events.tell(ClientLeft())
            raise
        await self._keep(sent, outcome)
        self.events.tell(ConversationEnded(outcome=outcome))
        return outcome

    def _turn(self, factory: TurnFactory) -> Turn:
        """How the model is asked in this conversation: from the inside out."""
        turn = factory(self.resources.upstream, self.headers)
        if self.resources.settings.loop.text_tool_calls:
            turn = with_text_tool_calls(turn, tools=self.tools)
        return without_rejected_tools(
            turn,
            tools=self.tools,
            target=self.resources.target,
            probe=whole_turn(self.resources.upstream, self.headers),
            events=self.events,
        )

    async def _with_hidden(self, sent: Sequence[object]) -> Sequence[object]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        store, owner = self.resources.store, self.caller.id
        messages = list(sent)
        if self.resources.settings.loop.replay:
            messages = await hidden_rounds.recall(store, owner, messages)
        messages = await split_turns.restore(store, owner, messages)
        if len(messages) > len(sent):
            self.results.adopt(messages, sent)
        return messages

    async def _keep(self, sent: Sequence[object], outcome: Outcome) -> None:
        """What the client does not see of this answer, for when it comes back."""
        store, owner = self.resources.store, self.caller.id
        if outcome.held and outcome.message.tool_calls:
            await split_turns.hold(store, owner, outcome.message.tool_calls, outcome.held, outcome.between)
        elif self.resources.settings.loop.replay:
            await hidden_rounds.remember(store, owner, sent, outcome)


async def _to_nobody(_: Event) -> None:
    return
