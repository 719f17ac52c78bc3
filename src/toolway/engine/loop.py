"""The only loop: ask the model, run the calls it makes, ask again with the results, until it answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from anyio.abc import TaskGroup

from toolway.access.approvals import Approval
from toolway.access.gate import CallGate
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    CallProgressed,
    Chunks,
    EventStream,
    Outcome,
    RoundBegan,
)
from toolway.conversation.message import (
    ChatRequest,
    Message,
    add_usage,
    own_answer,
    usage_for_client,
)
from toolway.conversation.tool_calls import call_object, read_arguments
from toolway.engine.limits import LoopLimits
from toolway.engine.model_capabilities import ModelCapabilities
from toolway.engine.recovery import Recovery, fit_results, fit_tools
from toolway.engine.request_tools import RequestTools
from toolway.engine.tool_results import READER, ToolResults, fill_results, text_of, tool_message
from toolway.errors import OverQuota, QuotasUnknown, UpstreamError
from toolway.tools import names
from toolway.tools.invoke import invoke
from toolway.types import JSON, OnProgress, Progress, Tool, ToolCall, ToolResult, record
from toolway.upstream.model_call import ModelCall
from toolway.upstream.refusals import is_refusal
from toolway.wire.lenient_json import dumps_text

log = logging.getLogger("toolway.chat")

OF_CALLS = ("tool_calls", "function_call")
"""The finish_reasons that say that the client has calls to run."""


@record
class Loop:
    """What the rounds of one request share."""

    tools: RequestTools
    limits: LoopLimits
    results: ToolResults
    events: EventStream
    tool_timeout: float
    """Seconds for tools that have no timeout of their own."""
    relays_progress: bool = False
    """Progress of calls is an event only if somebody shows it."""
    retry_wait: float = 0.0
    """Seconds that a request whose tools ran may wait for a model server that says "later"."""
    capabilities: ModelCapabilities = field(default_factory=ModelCapabilities)
    """What was learned of the model that is asked."""
    pauses: bool = False
    """Whether the client sees the rounds and goes on when their limit is reached."""
    optional: frozenset[str] = frozenset()
    """Options of the request that may be left out when the model server refuses them."""
    gate: CallGate | None = None
    """What calls pass before they run."""
    takes_approvals: bool = False
    """Whether the dialect tells its client of calls that wait, also beside calls that are the client's to run."""
    pending: list[Approval] = field(default_factory=list)
    """The approvals of the calls that are left waiting when the loop ends."""
    slot: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """In which each call runs. May raise OverQuota or QuotasUnknown."""
    check: Callable[[], None] = lambda: None
    """Raises Unauthorized where no more calls may be run."""


@record
class EarlierWork:
    """What was done for a request before it is run.

    `approved` calls of ours, whose empty results wait in its messages, run before the model is asked; those that an
    attempt before this one ran are not run again, but have the result that `results` has under their id. `rounds` are
    the messages of rounds that such an attempt had finished: the loop goes on behind them.
    """

    approved: Sequence[ToolCall] = ()
    results: Mapping[str, ToolResult] = field(default_factory=dict)
    rounds: Sequence[JSON] = ()
    fill: Callable[[Sequence[JSON]], Awaitable[Sequence[Any]]] | None = None
    """Makes the conversation with the results of the approved calls in it, which it keeps."""
    is_unseen: bool = False
    """Whether rounds that the client never saw stand at the end of its messages."""


NOTHING_EARLIER = EarlierWork()


@dataclass(kw_only=True)
class _Account:
    """What the rounds so far said, cost and added to the conversation."""

    begin: int
    is_unseen: bool = False
    earlier: list[JSON] = field(default_factory=list)
    usage: JSON | None = None
    total_usage: JSON | None = None
    rounds: int = 0
    calls: int = 0

    @classmethod
    def of(cls, request: ChatRequest, earlier: EarlierWork) -> _Account:
        account = cls(begin=len(request.messages), is_unseen=earlier.is_unseen, calls=len(earlier.approved))
        if earlier.rounds:
            account.earlier += [message for message in earlier.rounds if message["role"] == "assistant"]
            account.rounds = len(account.earlier)
        return account

    def hidden(self, request: ChatRequest) -> tuple[JSON, ...]:
        return tuple(request.messages[self.begin :])

    def add(self, message: Message) -> None:
        self.rounds += 1
        self.usage = message.usage or self.usage
        self.total_usage = add_usage(self.total_usage, message.usage)

    def outcome(
        self,
        message: Message,
        request: ChatRequest,
        split_turn: Sequence[JSON] = (),
        pending_approvals: Sequence[ToolCall] = (),
    ) -> Outcome:
        return Outcome(
            message=message,
            earlier=tuple(self.earlier),
            usage=usage_for_client(self.usage, self.total_usage, rounds=self.rounds),
            total_usage=self.total_usage,
            rounds=self.rounds,
            calls=self.calls,
            hidden=self.hidden(request),
            split_turn=tuple(split_turn),
            prompt=tuple(request.messages[: self.begin]),
            pending_approvals=tuple(pending_approvals),
        )


async def run_tool_loop(
    request: ChatRequest, *, call_model: ModelCall, loop: Loop, earlier: EarlierWork = NOTHING_EARLIER
) -> Outcome:
    """Ask until the model answers, calls a tool of the client's or one that must be approved, or a limit ends it.

    Calls that are not the client's are ours, known or not: an unknown one gets an error that the model reads.
    In a mixed turn ours run to the end, and the message handed back holds the client's calls alone.
    Raises what `call_model` raises.
    """
    tools = loop.tools
    tools.keeps_definitions = loop.capabilities.needs_definitions
    loop.results.shows_images = loop.capabilities.takes_images
    if earlier.approved:
        # What ran before holds for these calls alone: some models number theirs anew in each round.
        answers = await run_calls([tools.resolve(call) for call in earlier.approved], loop, earlier.results)
        whole = await earlier.fill(answers) if earlier.fill else fill_results(request.messages, answers)
        request = request.with_messages(whole)
    account = _Account.of(request, earlier)
    if earlier.rounds:
        request = _behind(request, earlier.rounds)
        tools.begin_next_round()
    stop_reason: str | None = None
    while True:
        await loop.events.emit(RoundBegan(number=account.rounds + 1, hidden=account.hidden(request)))
        try:
            message, request = await _ask(request, call_model, loop)
        except UpstreamError as error:
            if not stop_reason or loop.events.saw_text or not is_refusal(error):
                raise
            log.warning("the model server refuses to answer without calling tools: %s", error.message)
            message = await _close(own_answer(request.options.get("model")), stop_reason, loop.events)
        account.add(message)
        ours = [tools.resolve(call) for call in message.tool_calls if not tools.is_clients(call.name)]
        if stop_reason and ours:
            message = await _close(message, stop_reason, loop.events)
        if stop_reason or message.cut_short or not ours:
            return account.outcome(_for_client(message, tools), request, _unseen(message, account, tools))
        assistant = assistant_message(message, tools)
        stop_reason = loop.limits.stop_reason(account.rounds, ours)
        unapproved: list[ToolCall] = []
        if stop_reason:
            answers = [_refusal(call, stop_reason) for call in ours]
        else:
            unapproved = await _unapproved(ours, loop, may_wait=len(ours) == len(message.tool_calls))
            ours = [call for call in ours if call not in unapproved]
            answers = await _run_round(assistant, ours, loop)
            account.calls += len(ours)
            await tools.renew(ours)
        if len(ours) < len(message.tool_calls):
            return account.outcome(_for_client(message, tools), request, (assistant, *answers), unapproved)
        account.earlier.append(message.fields)
        request = _behind(request, [assistant, *answers])
        tools.begin_next_round()
        if stop_reason:
            tools.withdraw()
        elif loop.pauses and loop.limits.rounds_are_used(account.rounds):
            del account.earlier[-1]
            paused = replace(message, tool_calls=(), finish_reason="stop")
            return replace(account.outcome(paused, request), is_paused=True)


async def _unapproved(calls: Sequence[ToolCall], loop: Loop, *, may_wait: bool) -> list[ToolCall]:
    """The calls that must wait for a person beyond this request; whoever is at hand was asked.

    Nobody can be asked about arguments that cannot be read; the model is told.
    """
    tools, gate = loop.tools, loop.gate
    if gate is None and not tools.may_ask:
        return []
    asked = [
        (call, tool)
        for call in calls
        if (tool := tools.find(call.name))
        and not tools.is_search(tool)
        and (tools.must_ask(call.name) or (gate and gate.must_ask(_exact(call, tools), tool)))
        and read_arguments(call.arguments) is not None
    ]
    if not asked or gate is None:
        return [call for call, _ in asked]
    started = time.monotonic()
    exact = [(_exact(call, tools), tool) for call, tool in asked]
    left = await gate.ask_for_approval(exact, may_stay_open=may_wait or loop.takes_approvals)
    loop.limits.extend(time.monotonic() - started)
    loop.pending.extend(approval for approval in left if approval)
    return [call for (call, _), approval in zip(asked, left, strict=True) if approval]


def _exact(call: ToolCall, tools: RequestTools) -> ToolCall:
    """The call under the name that its tool really has."""
    name = tools.exact_name(call.name)
    return call if name == call.name else replace(call, name=name)


def _behind(request: ChatRequest, messages: Sequence[JSON]) -> ChatRequest:
    return request.with_messages([*request.messages, *messages])


async def _ask(request: ChatRequest, call_model: ModelCall, loop: Loop) -> tuple[Message, ChatRequest]:
    """One message of the model, asked for in other ways while the client has seen nothing and one is left to try.

    Also returns the request that was answered.
    """
    recovery: Recovery | None = None
    changed: ChatRequest | None = request
    while changed is not None:
        request, changed = changed, None
        if loop.capabilities.room:
            request = await fit_results(request, loop.tools, loop.results, loop.capabilities)
        if loop.results.cut:  # last, so that the prompt keeps its beginning
            loop.tools.add(READER)
        sent = fit_tools(request, loop.tools, loop.capabilities)
        asked = recovery.with_note(sent) if recovery else sent
        try:
            message = await call_model(asked, loop.events.emit, loop.tools.is_clients)
        except UpstreamError as error:
            recovery = recovery or _recovery(loop)
            if loop.events.saw_text:
                raise
            if (changed := await recovery.changed(request, error, sent)) is None:
                raise recovery.explained(error) from None
            continue
        if not (message.tool_calls or message.fields.get("content")):
            recovery = recovery or _recovery(loop)
            changed = await recovery.changed_for_silence(request, message)
        if recovery:
            recovery.succeeded()
    if loop.tools.search:
        loop.capabilities.learn_from(message)
    return message, request


def _recovery(loop: Loop) -> Recovery:
    has_worked = loop.events.tools_ran or loop.events.rounds
    return Recovery(
        tools=loop.tools,
        results=loop.results,
        capabilities=loop.capabilities,
        limits=loop.limits,
        retry_wait=loop.retry_wait if has_worked else 0.0,
        optional=loop.optional,
    )


async def _run_round(assistant: JSON, calls: Sequence[ToolCall], loop: Loop) -> list[JSON]:
    """`run_calls` of an `assistant` message. When it is cancelled, `EventStream.cut` gets what is known by then."""
    results = [_CANCELLED] * len(calls)
    try:
        return await run_calls(calls, loop, results=results)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            told = await loop.results.messages(calls, results)
        ours = {message["tool_call_id"]: message for message in told if message["role"] == "tool"}
        others = [message for message in told if message["role"] != "tool"]
        answers = [ours.get(call["id"]) or _not_run(call["id"]) for call in assistant["tool_calls"]]
        loop.events.cut = (assistant, *answers, *others)
        raise


_CANCELLED = ToolResult(
    text="cancelled, since the client left while it ran. What it did until then is not known.", is_error=True
)


def _not_run(identity: str) -> JSON:
    """What stands behind a call of the client's that never reached it."""
    text = text_of(ToolResult(text="not run, since the answer was interrupted.", is_error=True))
    return {"role": "tool", "tool_call_id": identity, "content": text}


async def run_calls(
    calls: Sequence[ToolCall],
    loop: Loop,
    known_results: Mapping[str, ToolResult] | None = None,
    *,
    results: list[ToolResult] | None = None,
) -> list[JSON]:
    """Run calls side by side; their messages for the model, in order. Never raises for a tool's trouble.

    Raises Unauthorized, before the first of them, where no more may be run.

    `known_results` are those of calls that need not run, by the ids of the calls. `results`, one for each call, are
    replaced as they come.
    """
    loop.check()
    results = results or [_CANCELLED] * len(calls)
    runnable = []
    for position, why in enumerate(loop.limits.check_calls(calls)):
        if why is None:
            runnable.append(position)
        else:
            results[position] = ToolResult(text=why, is_error=True)
    known_results = known_results or {}
    if len(runnable) == 1 and not loop.relays_progress:  # a task group costs more than all else here
        call = calls[runnable[0]]
        results[runnable[0]] = await _run_call(call, loop, known_results.get(call.id))
        return await loop.results.messages(calls, results)
    async with anyio.create_task_group() as group:

        async def work(position: int) -> None:
            call = calls[position]
            results[position] = await _run_call(call, loop, known_results.get(call.id), group)

        for position in runnable:
            group.start_soon(work, position)
    return await loop.results.messages(calls, results)


async def _run_call(
    call: ToolCall, loop: Loop, result: ToolResult | None, group: TaskGroup | None = None
) -> ToolResult:
    tool = loop.tools.find(call.name)
    await loop.events.emit(CallBegan(call=call, tool=tool))
    started = time.monotonic()
    relay = _ProgressRelay(call, tool, loop.events, group if loop.relays_progress else None) if tool else None
    result = result or await _result_of(call, tool, loop, relay)
    if relay:
        relay.over = True
    loop.limits.record(call, result)
    seconds = time.monotonic() - started
    await loop.events.emit(CallEnded(call=call, tool=tool, result=result, seconds=seconds))
    return result


async def _result_of(
    call: ToolCall, tool: Tool | None, loop: Loop, on_progress: OnProgress | None
) -> ToolResult:
    if tool is None and loop.tools.is_away(call.name):
        text = f"the tool {call.name[:100]!r} is not available now: its server is away. Go on without it."
        return ToolResult(text=text, is_error=True)
    if tool is None:
        known = [*loop.tools.tools, *loop.tools.reachable, *loop.tools.clients]
        return _unknown(call.name, known, loop.tools.snapshot.untried)
    is_builtin = tool is READER or loop.tools.is_search(tool)
    try:
        async with nullcontext() if is_builtin else loop.slot():
            return await invoke(
                _exact(call, loop.tools),
                tool,
                loop.results.read if tool is READER else loop.tools.run,
                tool_timeout=loop.tool_timeout,
                seconds_left=loop.limits.seconds_left,
                on_progress=on_progress,
                gate=None if is_builtin else loop.gate,
            )
    except (OverQuota, QuotasUnknown) as error:
        return ToolResult(text=f"not run: {error.message} Go on without it.", is_error=True)


class _ProgressRelay:
    """Hands a call's progress on as events; when the client is slower than the tool, only the newest.

    Without a `group` the subscribers alone are told.
    """

    def __init__(self, call: ToolCall, tool: Tool, events: EventStream, group: TaskGroup | None) -> None:
        self._call = call
        self._tool = tool
        self._events = events
        self._group = group
        self._newest: Progress | None = None
        self._busy = False
        self.over = False
        """Set when the call has its result: what is reported later is no news."""

    def __call__(self, progress: Progress) -> None:
        if self._group is None:
            if not self.over:
                self._events.notify(CallProgressed(call=self._call, tool=self._tool, progress=progress))
            return
        self._newest = progress
        if not self._busy and not self.over:
            self._busy = True
            self._group.start_soon(self._send)

    async def _send(self) -> None:
        while (newest := self._newest) and not self.over:
            self._newest = None
            await self._events.emit(CallProgressed(call=self._call, tool=self._tool, progress=newest))
        self._busy = False


def _unknown(name: str, known: Sequence[str], untried: Sequence[str]) -> ToolResult:
    hint = names.hint(name, known, untried) or "Use only the tools you were given."
    return ToolResult(text=f"there is no tool named {name[:100]!r}. {hint}", is_error=True)


def _refusal(call: ToolCall, reason: str) -> JSON:
    return tool_message(call, f"Error: not run: {reason}. Answer now with what you have.")


def _unseen(message: Message, account: _Account, tools: RequestTools) -> Sequence[JSON]:
    """What to hold when the client must run its calls after rounds of ours, of which it knows nothing."""
    if not message.tool_calls or message.cut_short or not (account.earlier or account.is_unseen):
        return ()
    only_clients = all(tools.is_clients(call.name) for call in message.tool_calls)
    return (assistant_message(message, tools),) if only_clients else ()


async def _close(message: Message, reason: str, events: EventStream) -> Message:
    """A model that still calls tools after they were withdrawn: what it said is the answer, else the reason is."""
    if message.fields.get("content"):
        return message
    text = f"(No answer: {reason}.)"
    await events.emit(Chunks([({"choices": [{"index": 0, "delta": {"content": text}}]}, None)]))
    return replace(message, fields={**message.fields, "content": text})


def _for_client(message: Message, tools: RequestTools) -> Message:
    """The message without our calls, and with a finish_reason that fits what is left."""
    if message.finish_reason in OF_CALLS and not message.tool_calls and "function_call" not in message.fields:
        return replace(message, finish_reason="stop")  # there are clients that ask again for ever
    if message.finish_reason and not message.tool_calls:
        return message
    remaining = tuple(call for call in message.tool_calls if tools.is_clients(call.name))
    finish = message.finish_reason
    if len(remaining) < len(message.tool_calls) and not message.cut_short:
        finish = "tool_calls" if remaining else "stop"
    return replace(
        message, tool_calls=remaining, finish_reason=finish or ("tool_calls" if remaining else "stop")
    )


def assistant_message(message: Message, tools: RequestTools) -> JSON:
    """What the model said, as the next request repeats it to the model.

    Content is never null (llama-cpp-python), names are legal (OpenAI), arguments are always a JSON object
    (llama.cpp answers 500 to anything else), everything unknown goes back as it came (Gemini's signatures).
    """
    return {
        **message.fields,
        "content": message.fields.get("content") or "",
        "tool_calls": [_replayed_call(call, tools) for call in message.tool_calls],
    }


def _replayed_call(call: ToolCall, tools: RequestTools) -> JSON:
    name, arguments = tools.exact_name(call.name), _replayed_arguments(call.arguments)
    return call_object(ToolCall(id=call.id, name=name, arguments=arguments, extra=call.extra))


def _replayed_arguments(text: str) -> str:
    arguments = read_arguments(text)
    if not arguments:
        return "{}"
    return text if text.lstrip().startswith("{") else dumps_text(arguments)
