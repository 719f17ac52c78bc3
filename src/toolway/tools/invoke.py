"""The one place where a tool is invoked: its arguments read, checked and repaired, its deadline held."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from toolway.conversation.tool_calls import read_arguments
from toolway.schema.repair import repair_arguments
from toolway.schema.validate import failing_schema, validation_error, without_unset_nulls
from toolway.types import JSON, OnProgress, Progress, Tool, ToolCall, ToolResult

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
    arguments = read_arguments(call.arguments)
    if arguments is None:
        return _failure(
            f"the arguments of {call.name} are not a JSON object: {call.arguments[:500]!r}. Call it again."
        )
    patience = tool.timeout or patience
    latest = anyio.current_time() + seconds_left
    with anyio.move_on_after(min(patience, seconds_left)) as scope:

        def extend(progress: Progress) -> None:
            scope.deadline = min(anyio.current_time() + patience, latest)
            if on_progress:
                on_progress(progress)

        return await run_checked(tool, arguments, run, extend)
    return _failure(f"{call.name} did not answer in time and was given up")


async def run_checked(
    tool: Tool, arguments: JSON, run: RunTool, on_progress: OnProgress | None = None
) -> ToolResult:
    """Check the arguments against the tool's schema, then run it; the caller holds the deadline.

    What is only written differently ("3" for 3) is repaired; the model reads the schema of what does not fit.
    """
    arguments = without_unset_nulls(tool, arguments)
    if validation_error(tool, arguments):
        arguments = repair_arguments(tool, arguments)
        if fault := validation_error(tool, arguments):
            return _failure(f"{fault}\n{failing_schema(tool, arguments)}".strip())
    return await run(tool, arguments, on_progress)


def _failure(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True)
