"""The one place where a tool is invoked: arguments read, checked and repaired, its deadline held, its result bounded.

Nothing that a model writes and nothing that a tool source raises or returns gets past this module as a fault.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import anyio

from toolway.conversation.tool_calls import NOT_AN_OBJECT, parse_arguments
from toolway.schema.arguments import failing_schema, repair_arguments, validation_error, without_unset_nulls
from toolway.types import JSON, Failure, OnProgress, Progress, Tool, ToolCall, ToolResult, call_client
from toolway.wire.lenient_json import fix_surrogates

log = logging.getLogger("toolway.tools")

RunTool = Callable[[Tool, JSON, OnProgress | None], Awaitable[ToolResult]]
"""What runs a tool whose arguments fit: `ToolSource.call`, or a tool of our own."""


async def invoke(
    call: ToolCall,
    tool: Tool,
    run: RunTool,
    *,
    patience: float,
    seconds_left: float = math.inf,
    on_progress: OnProgress | None = None,
) -> ToolResult:
    """Run a model's call to its result. A failure is a result that the model reads, never an exception.

    A tool without a timeout of its own has `patience` seconds; each report of progress begins them anew, but all
    together it has no more than `seconds_left`.
    """
    try:
        arguments = parse_arguments(call.arguments)
    except ValueError as error:
        return _failure(_unreadable(call, error), "arguments")
    patience = tool.timeout or patience
    latest = anyio.current_time() + seconds_left
    with anyio.move_on_after(min(patience, seconds_left)) as scope:

        def extend(progress: Progress) -> None:
            scope.deadline = min(anyio.current_time() + patience, latest)
            if on_progress:
                on_progress(_harmless_progress(progress))

        with _unhurried(scope, patience, latest):
            return await run_checked(tool, arguments, run, extend)
    return _failure(f"{call.name} did not answer in time and was given up", "timeout")


@contextmanager
def _unhurried(scope: anyio.CancelScope, patience: float, latest: float) -> Iterator[None]:
    """While the client of a call is asked something, its time does not run."""
    client = call_client.get()
    if client is None:
        yield
        return

    async def ask(method: str, params: JSON) -> JSON:
        scope.deadline = latest
        try:
            said: JSON = await client.ask(method, params)
            return said
        finally:
            scope.deadline = min(anyio.current_time() + patience, latest)

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
    try:
        arguments = without_unset_nulls(tool, arguments)
        if validation_error(tool, arguments):
            arguments = repair_arguments(tool, arguments)
            if fault := validation_error(tool, arguments):
                told = f"{fault}\n{failing_schema(tool, arguments)}".strip()
                return _harmless_result(_failure(told, "arguments"))
        return _harmless_result(await run(tool, arguments, on_progress))
    except Exception as error:  # the border: what a source promised not to raise is the call's trouble alone
        log.exception("tool %s of server %s failed", tool.name, tool.server)
        return _failure(
            f"{tool.name} failed inside Toolway ({type(error).__name__}); it is not known whether it ran"
        )


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
