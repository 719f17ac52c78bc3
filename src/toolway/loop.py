"""The only loop: ask the model, run the calls it makes, ask again, until it answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import anyio
import orjson

from toolway import names
from toolway.calls import call_object, read_arguments
from toolway.content import tool_message
from toolway.deltas import Message, add_usage
from toolway.governor import Governor
from toolway.offer import Offer, for_next_round
from toolway.turn import Chunks, Turn
from toolway.types import JSON, Emit, Progress, Tool, ToolCall, ToolResult


@dataclass(frozen=True, kw_only=True)
class RoundBegan:
    """The model is asked for the `number`th time in this request; the first is 1."""

    number: int


@dataclass(frozen=True, kw_only=True)
class CallBegan:
    """A call of ours is about to run; `tool` is None when nothing here has that name."""

    call: ToolCall
    tool: Tool | None


@dataclass(frozen=True, kw_only=True)
class CallEnded:
    """A call of ours is over, well or badly, after `seconds`."""

    call: ToolCall
    tool: Tool | None
    result: ToolResult
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a request ended: the last message, what was said in the rounds before it, and what it all cost.

    `held` is set in a mixed turn: the assistant message with all its calls and the results of ours, to be put
    back when the client returns with the results of its own calls.
    """

    message: Message
    earlier: tuple[JSON, ...] = ()
    usage: JSON | None = None
    rounds: int = 1
    calls: int = 0
    held: tuple[JSON, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`tool_timeout` in seconds for tools that have none of their own; `max_chars` of one result."""

    tool_timeout: float
    max_chars: int


@dataclass(kw_only=True)
class _Account:
    earlier: list[JSON] = field(default_factory=list)
    usage: JSON | None = None
    rounds: int = 0
    calls: int = 0

    def add(self, message: Message) -> None:
        self.rounds += 1
        self.usage = add_usage(self.usage, message.usage)

    def outcome(self, message: Message, held: Sequence[JSON] = ()) -> Outcome:
        return Outcome(
            message=message,
            earlier=tuple(self.earlier),
            usage=self.usage,
            rounds=self.rounds,
            calls=self.calls,
            held=tuple(held),
        )


async def run_tool_loop(
    body: JSON, *, turn: Turn, offer: Offer, governor: Governor, limits: Limits, emit: Emit
) -> Outcome:
    """Ask until the model answers, calls a tool of the client's, or the governor ends it.

    Calls that are not the client's are ours, known or not: an unknown one gets an error that the model reads.
    In a mixed turn ours run to the end, and the message handed back holds the client's calls alone.
    Raises what `turn` raises.
    """
    body = offer.put_into(body)
    account = _Account()
    objection: str | None = None
    while True:
        await emit(RoundBegan(number=account.rounds + 1))
        message = await turn(body, emit, offer.is_clients)
        account.add(message)
        ours = [call for call in message.tool_calls if not offer.is_clients(call.name)]
        if objection and ours:
            message = await _close(message, objection, emit)
        if objection or message.cut_short or not ours:
            return account.outcome(_for_client(message, offer))
        objection = governor.objection(account.rounds)
        if objection:
            results = [_refusal(call, objection, limits) for call in ours]
        else:
            results = await run_calls(ours, offer=offer, governor=governor, limits=limits, emit=emit)
            account.calls += len(ours)
        replay = assistant_message(message, offer)
        if len(ours) < len(message.tool_calls):
            return account.outcome(_for_client(message, offer), held=(replay, *results))
        account.earlier.append(message.said)
        body = for_next_round({**body, "messages": [*body["messages"], replay, *results]})
        if objection:
            body = offer.withdraw_from(body)


async def run_calls(
    calls: Sequence[ToolCall], *, offer: Offer, governor: Governor, limits: Limits, emit: Emit
) -> list[JSON]:
    """Run calls side by side; one `role: tool` message each, in their order. Never raises for a tool's trouble."""
    messages: list[JSON] = [{} for _ in calls]

    async def run(position: int, call: ToolCall) -> None:
        tool = offer.find(call.name)
        await emit(CallBegan(call=call, tool=tool))
        started = time.monotonic()
        result = await _result_of(call, tool, offer=offer, seconds=governor.seconds_left, limits=limits)
        messages[position] = tool_message(call, result, max_chars=limits.max_chars)
        await emit(CallEnded(call=call, tool=tool, result=result, seconds=time.monotonic() - started))

    if len(calls) == 1:
        await run(0, calls[0])
        return messages
    async with anyio.create_task_group() as group:
        for position, call in enumerate(calls):
            group.start_soon(run, position, call)
    return messages


async def _result_of(
    call: ToolCall, tool: Tool | None, *, offer: Offer, seconds: float, limits: Limits
) -> ToolResult:
    if tool is None:
        return _unknown(call.name, [*offer.tools, *offer.clients])
    arguments = read_arguments(call.arguments)
    if arguments is None:
        return ToolResult(
            text=f"the arguments of {call.name} are not a JSON object: {call.arguments[:500]!r}. Call it again.",
            is_error=True,
        )
    patience = tool.timeout or limits.tool_timeout
    latest = anyio.current_time() + seconds
    with anyio.move_on_after(min(patience, seconds)) as scope:

        def extend(_: Progress) -> None:
            scope.deadline = min(anyio.current_time() + patience, latest)

        return await offer.snapshot.call(tool, arguments, extend)
    return ToolResult(text=f"{call.name} did not answer in time and was given up", is_error=True)


def assistant_message(message: Message, offer: Offer) -> JSON:
    """What the model said, as the next request repeats it to the model.

    Content is never null (llama-cpp-python), names are legal (OpenAI), arguments are always a JSON object
    (llama.cpp answers 500 to anything else), everything unknown goes back as it came (Gemini's signatures).
    """
    return {
        **message.said,
        "content": message.said.get("content") or "",
        "tool_calls": [_replayed_call(call, offer) for call in message.tool_calls],
    }


def _replayed_call(call: ToolCall, offer: Offer) -> JSON:
    arguments = _replayed_arguments(call.arguments)
    return call_object(replace(call, name=offer.exact_name(call.name), arguments=arguments))


def _replayed_arguments(text: str) -> str:
    arguments = read_arguments(text)
    if not arguments:
        return "{}"
    return text if text.lstrip().startswith("{") else orjson.dumps(arguments).decode()


def _unknown(name: str, tools: Sequence[str]) -> ToolResult:
    close = names.closest(name, tools)
    hint = f"Did you mean {' or '.join(close)}?" if close else "Use only the tools you were given."
    return ToolResult(text=f"there is no tool named {name[:100]!r}. {hint}", is_error=True)


def _refusal(call: ToolCall, reason: str, limits: Limits) -> JSON:
    text = f"not run: {reason}. Answer now with what you have."
    return tool_message(call, ToolResult(text=text, is_error=True), max_chars=limits.max_chars)


async def _close(message: Message, reason: str, emit: Emit) -> Message:
    """A model that still calls tools after they were withdrawn: what it said is the answer, else the reason is."""
    if message.said.get("content"):
        return message
    text = f"(No answer: {reason}.)"
    await emit(Chunks([({"choices": [{"index": 0, "delta": {"content": text}}]}, None)]))
    return replace(message, said={**message.said, "content": text})


def _for_client(message: Message, offer: Offer) -> Message:
    """The message without our calls, and with a finish_reason that fits what is left."""
    theirs = tuple(call for call in message.tool_calls if offer.is_clients(call.name))
    finish = message.finish_reason
    if len(theirs) < len(message.tool_calls) and not message.cut_short:
        finish = "tool_calls" if theirs else "stop"
    return replace(message, tool_calls=theirs, finish_reason=finish or ("tool_calls" if theirs else "stop"))
