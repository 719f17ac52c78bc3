"""The only loop: ask the model, run the calls it makes, ask again, until it answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import anyio
from anyio.abc import TaskGroup

from toolway.conversation.events import CallBegan, CallEnded, CallProgressed, Chunks, Outcome, RoundBegan
from toolway.conversation.message import Message, add_usage
from toolway.conversation.tool_calls import read_arguments
from toolway.engine.history.messages import assistant_message, filled
from toolway.engine.limits import Governor
from toolway.engine.request_tools import Offer, for_next_round
from toolway.engine.result_text import tool_message
from toolway.engine.tool_results import READER, Results
from toolway.errors import UpstreamError
from toolway.schema.validate import validation_error, without_unset_nulls
from toolway.tools import names
from toolway.types import JSON, Emit, Progress, Tool, ToolCall, ToolResult
from toolway.upstream.context_overflow import excess_of, is_overflow
from toolway.upstream.model_call import Turn


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`tool_timeout` in seconds for tools that have none of their own; progress is an event only if it is relayed."""

    tool_timeout: float
    relays_progress: bool = False


@dataclass(kw_only=True)
class _Account:
    begin: int
    earlier: list[JSON] = field(default_factory=list)
    usage: JSON | None = None
    rounds: int = 0
    calls: int = 0

    @classmethod
    def behind(cls, messages: Sequence[JSON], resumed: Sequence[JSON], *, calls: int) -> _Account:
        said = [message for message in resumed if message["role"] == "assistant"]
        return cls(begin=len(messages), earlier=said, rounds=len(said), calls=calls)

    def between(self, body: JSON) -> tuple[JSON, ...]:
        return tuple(body["messages"][self.begin :])

    def add(self, message: Message) -> None:
        self.rounds += 1
        self.usage = add_usage(self.usage, message.usage)

    def outcome(
        self, message: Message, body: JSON, held: Sequence[JSON] = (), asked_for: Sequence[ToolCall] = ()
    ) -> Outcome:
        return Outcome(
            message=message,
            earlier=tuple(self.earlier),
            usage=self.usage,
            rounds=self.rounds,
            calls=self.calls,
            between=self.between(body),
            held=tuple(held),
            asked=tuple(body["messages"][: self.begin]),
            asked_for=tuple(asked_for),
        )


async def run_tool_loop(
    body: JSON,
    *,
    turn: Turn,
    offer: Offer,
    governor: Governor,
    results: Results,
    limits: Limits,
    emit: Emit,
    approved: Sequence[ToolCall] = (),
    done: Mapping[str, ToolResult] | None = None,
    resumed: Sequence[JSON] = (),
) -> Outcome:
    """Ask until the model answers, calls a tool of the client's or one that must be approved, or the governor ends it.

    Calls that are not the client's are ours, known or not: an unknown one gets an error that the model reads.
    In a mixed turn ours run to the end, and the message handed back holds the client's calls alone.
    `approved` calls of ours, whose empty results wait in `body`, run before the model is asked; those that an attempt
    before this one ran are not run again, but have the result that `done` tells under their id. `resumed` are the
    messages of rounds that such an attempt had finished: it goes on behind them.
    Raises what `turn` raises.
    """
    run = _Run(offer=offer, governor=governor, results=results, limits=limits, emit=emit)
    if approved:
        # What is done holds for these calls alone: some models number theirs anew in each round.
        answers = await run_calls(approved, replace(run, done=done or {}))
        body = {**body, "messages": filled(body["messages"], answers)}
    account = _Account.behind(body["messages"], resumed, calls=len(approved))
    if resumed:
        body = for_next_round({**body, "messages": [*body["messages"], *resumed]})
    body = _with_reader(offer.put_into(body), offer, results)
    objection: str | None = None
    while True:
        await emit(RoundBegan(number=account.rounds + 1, between=account.between(body)))
        message, body = await _ask(body, turn, run, first=not account.rounds)
        account.add(message)
        ours = [call for call in message.tool_calls if not offer.is_clients(call.name)]
        if objection and ours:
            message = await _close(message, objection, emit)
        if objection or message.cut_short or not ours:
            return account.outcome(_for_client(message, offer), body, _unseen(message, account, offer))
        objection = governor.objection(account.rounds, ours)
        asked_for: list[ToolCall] = []
        if objection:
            answers = [_refusal(call, objection) for call in ours]
        else:
            # Nobody can be asked about arguments that cannot be read; the model is told.
            asked_for = [
                c for c in ours if offer.must_ask(c.name) and read_arguments(c.arguments) is not None
            ]
            ours = [call for call in ours if call not in asked_for]
            answers = await run_calls(ours, run)
            account.calls += len(ours)
        replay = assistant_message(message, offer)
        if len(ours) < len(message.tool_calls):
            return account.outcome(_for_client(message, offer), body, (replay, *answers), asked_for)
        account.earlier.append(message.said)
        body = for_next_round({**body, "messages": [*body["messages"], replay, *answers]})
        body = offer.withdraw_from(body) if objection else _with_reader(body, offer, results)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the rounds of one request share."""

    offer: Offer
    governor: Governor
    results: Results
    limits: Limits
    emit: Emit
    done: Mapping[str, ToolResult] = field(default_factory=dict)
    """Results of calls that need not run, by the ids of the calls."""


async def _ask(body: JSON, turn: Turn, run: _Run, *, first: bool) -> tuple[Message, JSON]:
    """One turn; when the model server says that the conversation is too long, once more with shorter results.

    Also returns the body that was answered.
    """
    asked = run.offer.for_first_round(body) if first else body
    if not run.results.own:
        return await turn(asked, run.emit, run.offer.is_clients), body
    said = False

    async def listen(event: object) -> None:
        nonlocal said
        said = said or type(event) is Chunks
        await run.emit(event)

    try:
        return await turn(asked, listen, run.offer.is_clients), body
    except UpstreamError as error:
        if said or not is_overflow(error):
            raise
        shorter = await run.results.shrink(body["messages"], excess_of(error))
        if shorter is None:
            raise
    body = _with_reader({**body, "messages": shorter}, run.offer, run.results)
    asked = run.offer.for_first_round(body) if first else body
    return await turn(asked, run.emit, run.offer.is_clients), body


def _with_reader(body: JSON, offer: Offer, results: Results) -> JSON:
    """From the first cut on, the tool that reads on is offered: last, so that the prompt keeps its beginning."""
    if results.cut and "tools" in body and offer.add(READER):
        return offer.put_into(body)
    return body


async def run_calls(calls: Sequence[ToolCall], run: _Run) -> list[JSON]:
    """Run calls side by side; their messages for the model, in order. Never raises for a tool's trouble."""
    refusals = run.governor.admit(calls)
    results = [ToolResult(text=why or "", is_error=True) for why in refusals]
    admitted = [position for position, why in enumerate(refusals) if why is None]
    if len(admitted) == 1 and not run.limits.relays_progress:  # a task group costs more than all else here
        results[admitted[0]] = await _run_call(calls[admitted[0]], run)
        return await run.results.messages(calls, results)
    async with anyio.create_task_group() as group:

        async def work(position: int) -> None:
            results[position] = await _run_call(calls[position], run, group)

        for position in admitted:
            group.start_soon(work, position)
    return await run.results.messages(calls, results)


async def _run_call(call: ToolCall, run: _Run, group: TaskGroup | None = None) -> ToolResult:
    tool = run.offer.find(call.name)
    await run.emit(CallBegan(call=call, tool=tool))
    started = time.monotonic()
    relay = None
    if tool and group and run.limits.relays_progress:
        relay = _Relay(call, tool, run.emit, group)
    result = run.done.get(call.id) or await _result_of(call, tool, run, relay)
    if relay:
        relay.over = True
    run.governor.note(call, result)
    await run.emit(CallEnded(call=call, tool=tool, result=result, seconds=time.monotonic() - started))
    return result


class _Relay:
    """Hands a call's progress on as events; when the client is slower than the tool, only the newest."""

    def __init__(self, call: ToolCall, tool: Tool, emit: Emit, group: TaskGroup) -> None:
        self._call = call
        self._tool = tool
        self._emit = emit
        self._group = group
        self._newest: Progress | None = None
        self._busy = False
        self.over = False
        """Set when the call has its result: what is reported later is no news."""

    def __call__(self, progress: Progress) -> None:
        self._newest = progress
        if not self._busy and not self.over:
            self._busy = True
            self._group.start_soon(self._send)

    async def _send(self) -> None:
        while (newest := self._newest) and not self.over:
            self._newest = None
            await self._emit(CallProgressed(call=self._call, tool=self._tool, progress=newest))
        self._busy = False


async def _result_of(
    call: ToolCall, tool: Tool | None, run: _Run, report: Callable[[Progress], None] | None
) -> ToolResult:
    if tool is None:
        return _unknown(call.name, [*run.offer.tools, *run.offer.clients])
    arguments = read_arguments(call.arguments)
    if arguments is None:
        return ToolResult(
            text=f"the arguments of {call.name} are not a JSON object: {call.arguments[:500]!r}. Call it again.",
            is_error=True,
        )
    seconds = run.governor.seconds_left
    patience = tool.timeout or run.limits.tool_timeout
    latest = anyio.current_time() + seconds
    with anyio.move_on_after(min(patience, seconds)) as scope:

        def extend(progress: Progress) -> None:
            scope.deadline = min(anyio.current_time() + patience, latest)
            if report:
                report(progress)

        if tool is READER:
            arguments = without_unset_nulls(tool, arguments)
            fault = validation_error(tool, arguments)
            return ToolResult(text=fault, is_error=True) if fault else await run.results.read(arguments)
        return await run.offer.snapshot.call(tool, arguments, extend)
    return ToolResult(text=f"{call.name} did not answer in time and was given up", is_error=True)


def _unknown(name: str, tools: Sequence[str]) -> ToolResult:
    close = names.closest(name, tools)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Use only the tools you were given."
    return ToolResult(text=f"there is no tool named {name[:100]!r}. {hint}", is_error=True)


def _refusal(call: ToolCall, reason: str) -> JSON:
    return tool_message(call, f"Error: not run: {reason}. Answer now with what you have.")


def _unseen(message: Message, account: _Account, offer: Offer) -> Sequence[JSON]:
    """What to hold when the client must run its calls after rounds of ours, of which it knows nothing."""
    if not message.tool_calls or not account.earlier or message.cut_short:
        return ()
    theirs = all(offer.is_clients(call.name) for call in message.tool_calls)
    return (assistant_message(message, offer),) if theirs else ()


async def _close(message: Message, reason: str, emit: Emit) -> Message:
    """A model that still calls tools after they were withdrawn: what it said is the answer, else the reason is."""
    if message.said.get("content"):
        return message
    text = f"(No answer: {reason}.)"
    await emit(Chunks([({"choices": [{"index": 0, "delta": {"content": text}}]}, None)]))
    return replace(message, said={**message.said, "content": text})


def _for_client(message: Message, offer: Offer) -> Message:
    """The message without our calls, and with a finish_reason that fits what is left."""
    if message.finish_reason and not message.tool_calls:
        return message
    theirs = tuple(call for call in message.tool_calls if offer.is_clients(call.name))
    finish = message.finish_reason
    if len(theirs) < len(message.tool_calls) and not message.cut_short:
        finish = "tool_calls" if theirs else "stop"
    return replace(message, tool_calls=theirs, finish_reason=finish or ("tool_calls" if theirs else "stop"))
