"""One conversation with the model and our tools in it, whatever API its client speaks: prepared, run, remembered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import anyio
from starlette.types import Scope

from toolway.conversation.events import Outcome, RoundBegan
from toolway.conversation.message import Message
from toolway.engine.history import hidden_rounds, split_turns
from toolway.engine.history.resume import Attempt
from toolway.engine.limits import Bounds, Governor
from toolway.engine.loop import Limits, run_tool_loop
from toolway.engine.model_target import Backend
from toolway.engine.rejected_tools import careful_turn
from toolway.engine.request_options import Wishes, bounds_of, read_wishes
from toolway.engine.request_tools import Offer, named_tool
from toolway.engine.result_text import Budget
from toolway.engine.text_tool_calls import listening_turn
from toolway.engine.tool_results import Results, Rules
from toolway.errors import ToolwayError
from toolway.server.auth import CALLER, CREDENTIALS, upstream_headers
from toolway.server.json_response import JSON_TYPE, Header
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.telemetry.conversation_log import Conversation
from toolway.tools.catalog import Catalog, Snapshot
from toolway.types import JSON, Emit, Tool, ToolCall, ToolResult
from toolway.upstream.client import Upstream
from toolway.upstream.model_call import MakeTurn, Turn, whole_turn

log = logging.getLogger("toolway.chat")

STARTUP_WAIT = 2.0
"""Seconds after the start in which a request waits for tool servers that were not tried yet."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, ready to be run. `body` is that of a chat completion; its `messages` are as the client sent them."""

    body: JSON
    offer: Offer
    results: Results
    bounds: Bounds
    headers: Sequence[Header]
    owner: str
    conversation: Conversation


class Runner:
    """Makes jobs and runs them."""

    def __init__(
        self, upstream: Upstream, catalog: Catalog, store: Store, settings: Settings, backend: Backend
    ) -> None:
        self.upstream = upstream
        self.catalog = catalog
        self.store = store
        self.settings = settings
        self._backend = backend
        self._bounds = bounds_of(settings)
        self._infos = backend.infos
        self._limits = Limits(
            tool_timeout=settings.loop.tool_timeout, relays_progress=settings.loop.progress != "off"
        )
        self._rules = Rules(
            most=Budget(result=settings.results.max_result_chars, round=settings.results.max_round_chars),
            keeps=settings.results.read_more,
            sees={"on": True, "off": False}.get(settings.results.vision),
            max_image_bytes=settings.results.max_image_bytes,
        )

    async def settled(self) -> None:
        """Wait a little for servers that just start."""
        await self.catalog.wait_until_tried(STARTUP_WAIT)
        await self._backend.settled(STARTUP_WAIT)

    def wishes(self, scope: Scope, body: JSON, snapshot: Snapshot) -> Wishes:
        """What the request asks of Toolway itself. Raises InvalidRequest."""
        return read_wishes(
            body,
            upstream_headers(scope, self.settings.upstream),
            bounds=self._bounds,
            profiles=self.settings.tools.profiles,
            servers=(source.label for source in snapshot.sources),
        )

    async def prepare(
        self,
        wishes: Wishes,
        snapshot: Snapshot,
        owner: str,
        *,
        asks: Callable[[Tool], bool] | None = None,
        approved: Collection[str] = (),
    ) -> Job:
        """The job for these wishes; calls of a tool that `asks` wait for somebody's approval, as `Offer` says."""
        headers, body = [*wishes.headers, JSON_TYPE], wishes.body
        ask = partial(self._infos.get, body.get("model"), headers)
        # Only a choice of one tool is worth the question before the first round.
        enforce = bool(named_tool(body.get("tool_choice"))) and (await ask()).ignores_choice
        snapshot = self._backend.fit(snapshot)
        offer = Offer(body, snapshot, wishes.selection, enforce_choice=enforce, asks=asks, approved=approved)
        return Job(
            body=body,
            offer=offer,
            results=Results(rules=self._rules, store=self.store, owner=owner, ask=ask),
            bounds=wishes.bounds,
            headers=headers,
            owner=owner,
            conversation=Conversation(body, tools=len(offer.tools)),
        )

    async def run(
        self,
        job: Job,
        emit: Emit,
        *,
        turn: MakeTurn,
        exact: bool = False,
        approved: Sequence[ToolCall] = (),
        done: Mapping[str, ToolResult] | None = None,
        resumed: Sequence[JSON] = (),
    ) -> Outcome:
        """Run a job to its end, asking by `turn`. Raises what the loop raises.

        With `exact` the messages are as the model saw them, so that nothing must be put back.
        """
        sent = job.body["messages"]
        messages = sent if exact else await self._put_back(job, sent)
        if resumed:
            job.results.adopt(resumed, sent)
        try:
            outcome = await run_tool_loop(
                {**job.body, "messages": messages},
                turn=self._careful(turn(self.upstream, job.headers), job),
                offer=job.offer,
                governor=Governor(job.bounds),
                results=job.results,
                limits=self._limits,
                emit=emit,
                approved=approved,
                done=done,
                resumed=resumed,
            )
        except anyio.get_cancelled_exc_class():
            job.conversation.left()
            raise
        await self._keep(job, sent, outcome)
        job.conversation.ended(outcome)
        return outcome

    async def run_again(
        self, job: Job, emit: Emit, raw: bytes, *, turn: MakeTurn, exact: bool = False
    ) -> Outcome:
        """The same, behind the rounds of an attempt at these bytes that came to nothing a short while ago."""

        async def watch(event: Any) -> None:
            if type(event) is RoundBegan:
                attempt.rounds = event.between
            await emit(event)

        async with Attempt(self.store, job.owner, raw) as attempt:
            return await self.run(job, watch, turn=turn, exact=exact, resumed=attempt.rounds)

    async def ask(self, job: Job, body: JSON, turn: MakeTurn) -> Message:
        """One exchange with the model, whose calls are not run."""

        async def nobody(_: Any) -> None:
            pass

        return await turn(self.upstream, job.headers)(body, nobody, lambda _: True)

    def _careful(self, turn: Turn, job: Job) -> Turn:
        probe = whole_turn(self.upstream, job.headers)
        turn = careful_turn(turn, offer=job.offer, backend=self._backend, probe=probe)
        return listening_turn(turn, offer=job.offer) if self.settings.loop.text_tool_calls else turn

    async def _put_back(self, job: Job, sent: list[Any]) -> list[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        messages = sent
        if self.settings.loop.replay:
            messages = await hidden_rounds.recall(self.store, job.owner, messages)
        messages = await split_turns.restore(self.store, job.owner, messages)
        if len(messages) > len(sent):
            job.results.adopt(messages, sent)
        return messages

    async def _keep(self, job: Job, sent: list[Any], outcome: Outcome) -> None:
        """What the client does not see of this answer, for when it comes back."""
        if outcome.held and outcome.message.tool_calls:
            calls = outcome.message.tool_calls
            await split_turns.hold(self.store, job.owner, calls, outcome.held, outcome.between)
        elif self.settings.loop.replay:
            await hidden_rounds.remember(self.store, job.owner, sent, outcome)


def known(error: Exception) -> ToolwayError:
    """The error to show: ours as it is; a bug is logged and shown without its details."""
    if isinstance(error, ToolwayError):
        # Who keeps it in a variable would keep each frame it came through, and what they held.
        return error.with_traceback(None)
    log.error("a bug in Toolway", exc_info=error)
    return ToolwayError("Toolway itself failed at this request; its log says why.")


def owner_of(scope: Scope) -> str:
    """Whose conversations these are: a digest of the credentials."""
    credentials = (value for name, value in scope["headers"] if name in CREDENTIALS)
    return _digest(scope.get(CALLER, ""), *credentials)


@lru_cache(maxsize=1024)
def _digest(caller: str, *credentials: bytes) -> str:
    return hashlib.sha256(b"\0".join([caller.encode(), *credentials])).hexdigest()
