"""The one place where a tool is invoked: arguments read, checked and repaired, its deadline held, its result mended.

Nothing that a model writes and nothing that a tool source raises or returns gets past this module as a fault.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

from toolway.conversation.tool_calls import NOT_AN_OBJECT, parse_arguments
from toolway.schema.arguments import failing_schema, repair_arguments, validation_error, without_unset_nulls
from toolway.types import (
    JSON,
    CallClient,
    Failure,
    OnProgress,
    Progress,
    Tool,
    ToolCall,
    ToolResult,
    call_client,
)
from toolway.wire.lenient_json import fix_surrogates

log = logging.getLogger("toolway.tools")

RunTool = Callable[[Tool, JSON, OnProgress | None], Awaitable[ToolResult]]
"""What runs a tool whose arguments fit: `ToolSource.call`, or a tool of our own."""


class Gate(Protocol):
    """Decides about each call of one request before it runs, and is told how it ended."""

    async def authorize(self, call: ToolCall, tool: Tool, arguments: JSON) -> ToolResult | None:
        """None lets the call run with exactly these arguments; a result is what the model reads in its place.

        May wait for a person. Does not raise for anything but cancellation.
        """

    def ended(
        self, call: ToolCall, tool: Tool, arguments: JSON | None, result: ToolResult, seconds: float
    ) -> None:
        """The call is over; `arguments` None: they could not be used. May not wait."""


async def invoke(
    call: ToolCall,
    tool: Tool,
    run: RunTool,
    *,
    tool_timeout: float,
    seconds_left: float = math.inf,
    on_progress: OnProgress | None = None,
    gate: Gate | None = None,
) -> ToolResult:
    """Run a model's call to its result. A failure is a result that the model reads, never an exception.

    A tool without a timeout of its own has `tool_timeout` seconds; each report of progress begins them anew, but all
    together it has no more than `seconds_left`. Nobody's call runs past the `gate` of its request: whoever invokes a
    tool for a caller hands in what `Policy.gate` makes for it, which is None when nothing is to be decided or noted.
    """
    arguments = read_call(call, tool)
    if isinstance(arguments, ToolResult):
        if gate:
            gate.ended(call, tool, None, arguments, 0.0)
        return arguments
    denied = await gate.authorize(call, tool, arguments) if gate else None
    started = time.monotonic()
    work = partial(_run, tool, arguments, run)
    tool_timeout = tool.timeout or tool_timeout
    result = denied or await _in_time(call, work, tool_timeout, seconds_left, on_progress)
    if gate:
        gate.ended(call, tool, arguments, result, time.monotonic() - started)
    return result


def read_call(call: ToolCall, tool: Tool) -> JSON | ToolResult:
    """The arguments that the tool will get, or what the model reads of arguments that cannot be used."""
    try:
        arguments = parse_arguments(call.arguments)
    except ValueError as error:
        return _failure(_unreadable(call, error), "arguments")
    return _fitted(tool, arguments)


async def _in_time(
    call: ToolCall,
    work: Callable[[OnProgress], Awaitable[ToolResult]],
    tool_timeout: float,
    seconds_left: float,
    on_progress: OnProgress | None,
) -> ToolResult:
    client, clock = call_client.get(), _CallClock(tool_timeout, seconds_left)

    def report(progress: Progress) -> None:
        clock.restart()
        if on_progress:
            on_progress(_harmless_progress(progress))

    try:
        async with clock.deadline:
            if client is None:
                return await work(report)
            with _stopped_for_questions(clock, client):
                return await work(report)
    except TimeoutError:
        return _failure(f"{call.name} did not answer in time and was given up", "timeout")


class _CallClock:
    """The time that a call has: `tool_timeout` seconds, begun anew with each sign of life, `seconds_left` in all."""

    # With anyio's scope in place of asyncio's a small call takes a twentieth more.

    def __init__(self, tool_timeout: float, seconds_left: float) -> None:
        self._time = asyncio.get_running_loop().time
        self._timeout = tool_timeout
        self._latest = self._time() + seconds_left
        self.deadline = asyncio.timeout_at(self._next())

    def restart(self) -> None:
        """Begin the seconds anew."""
        self._set(self._next())

    def stop(self) -> None:
        """Let none but the seconds of the whole request run."""
        self._set(self._latest)

    def _next(self) -> float:
        return min(self._time() + self._timeout, self._latest)

    def _set(self, due: float) -> None:
        with suppress(RuntimeError):  # the call is over
            self.deadline.reschedule(due if due < math.inf else None)


@contextmanager
def _stopped_for_questions(clock: _CallClock, client: CallClient) -> Iterator[None]:
    """While the client of a call is asked something, its time does not run."""

    async def ask(requests: JSON) -> JSON:
        clock.stop()
        try:
            answers: JSON = await client.ask(requests)
            return answers
        finally:
            clock.restart()

    token = call_client.set(replace(client, ask=ask))
    try:
        yield
    finally:
        call_client.reset(token)


async def run_checked(
    tool: Tool, arguments: JSON, run: RunTool, on_progress: OnProgress | None = None
) -> ToolResult:
    """Check the arguments against the tool's schema, then run it; the caller holds the deadline.

    What is only written differently ("3" for 3) is repaired; the model reads the schema of what does not fit.
    """
    fitted = _fitted(tool, arguments)
    return fitted if isinstance(fitted, ToolResult) else await _run(tool, fitted, run, on_progress)


def _fitted(tool: Tool, arguments: JSON) -> JSON | ToolResult:
    try:
        arguments = without_unset_nulls(tool, arguments)
        if validation_error(tool, arguments):
            arguments = repair_arguments(tool, arguments)
            if fault := validation_error(tool, arguments):
                explanation = f"{fault}\n{failing_schema(tool, arguments)}".strip()
                return _harmless_result(_failure(explanation, "arguments"))
    except Exception as error:
        return _failure(_broken(tool, error, "it was not run"))
    return arguments


async def _run(tool: Tool, arguments: JSON, run: RunTool, on_progress: OnProgress | None) -> ToolResult:
    try:
        return _harmless_result(await run(tool, arguments, on_progress))
    except Exception as error:  # the border: what a source promised not to raise is the call's trouble alone
        return _failure(_broken(tool, error, "it is not known whether it ran"))


def _broken(tool: Tool, error: Exception, what: str) -> str:
    log.error("tool %s of server %s failed", tool.name, tool.server, exc_info=error)
    return f"{tool.name} failed inside Toolway ({type(error).__name__}); {what}"


def _failure(text: str, failure: Failure = "tool") -> ToolResult:
    return ToolResult(text=text, is_error=True, failure=failure)


def _unreadable(call: ToolCall, error: ValueError) -> str:
    """What the model reads of arguments that are none."""
    if isinstance(error, json.JSONDecodeError) or str(error) == NOT_AN_OBJECT:
        reason = f"are not a JSON object: {call.arguments[:500]!r}"
    else:
        reason = f"cannot be used: {error}"
    return f"the arguments of {call.name} {reason}. Call it again."


_LINK_OF_PYDANTIC = re.compile(r"\n\s*For further information visit https?://\S+")


def _harmless_result(result: ToolResult) -> ToolResult:
    """The result with text that every JSON writer takes, and errors without a validation library's links."""
    text = fix_surrogates(result.text)
    if result.is_error and "For further information visit" in text:
        text = _LINK_OF_PYDANTIC.sub("", text)
    return result if text is result.text else replace(result, text=text)


def _harmless_progress(progress: Progress) -> Progress:
    return replace(progress, message=fix_surrogates(progress.message)) if progress.message else progress
