"""When a loop must end: too many rounds, calls or seconds, or a model that repeats its calls."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

from toolway.conversation.tool_calls import read_arguments
from toolway.types import ToolCall, ToolResult, record
from toolway.wire.lenient_json import dumps

ALIKE = 0.8
"""From this similarity on (difflib's ratio) two texts are almost the same."""

COMPARED = 300
"""Characters of a text that are looked at for that."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may use; `max_repeats` and `max_similar` are counts of calls that led to nothing new."""

    max_rounds: int
    max_calls: int
    max_seconds: float
    max_repeats: int
    max_similar: int


@record
class _PastCall:
    call: ToolCall
    result: str

    @cached_property
    def arguments(self) -> str:
        """Read when they are compared: most tools are called once."""
        return _canonical(self.call)

    def is_like(self, other: _PastCall) -> bool:
        return _alike(self.arguments, other.arguments) and _alike(self.result, other.result)


class LoopLimits:
    """Watches one request; its seconds count from when it `started`, else from the making of this object.

    A call that brought the same result `max_repeats` times, or a tool that was called `max_similar` times with
    almost the same arguments and results (pages of a list differ in their results, and so do files), is warned
    of instead of run. A model that goes on with the same tool in that way is ended.
    """

    def __init__(self, limits: Limits, started: float | None = None) -> None:
        self._limits = limits
        self._started = time.monotonic() if started is None else started
        self._calls = 0
        # Of one tool, the newest calls: as many as both rules need, and as many between them.
        self._window = 2 * max(limits.max_repeats, limits.max_similar)
        self._past: dict[str, deque[_PastCall]] = {}
        self._warned: set[str] = set()

    @property
    def seconds_left(self) -> float:
        """Time that tools may still take; never negative."""
        return max(0.0, self._started + self._limits.max_seconds - time.monotonic())

    def rounds_are_used(self, rounds: int) -> bool:
        """Whether so many rounds are as many as there may be."""
        return rounds >= self._limits.max_rounds

    def extend(self, seconds: float) -> None:
        """Somebody was waited for, which does not count."""
        self._started += seconds

    def stop_reason(self, rounds: int, calls: Sequence[ToolCall]) -> str | None:
        """Why the calls of round number `rounds` may not run, in words for the model; None: they may.

        After one the model is asked once more, without tools.
        """
        limits = self._limits
        if rounds > limits.max_rounds:
            return f"the limit of {limits.max_rounds} rounds of tool calls for one request is reached"
        if self._calls >= limits.max_calls:
            return f"the limit of {limits.max_calls} tool calls for one request is reached"
        if not self.seconds_left:
            return f"the time for tool calls in one request ({limits.max_seconds:g} s) is used up"
        for call in calls if self._warned else ():
            if call.name in self._warned and self._repetition(call):
                return f"{call.name} was called again and again without anything new"
        return None

    def check_calls(self, calls: Sequence[ToolCall]) -> list[str | None]:
        """For each call, in order, why it may not run, in words for the model; None: it runs, and is counted."""
        return [self._check_call(call) for call in calls]

    def record(self, call: ToolCall, result: ToolResult) -> None:
        """A call that was counted has this result."""
        past = self._past.setdefault(call.name, deque(maxlen=self._window))
        past.append(_PastCall(call=call, result=result.text))

    def _check_call(self, call: ToolCall) -> str | None:
        if self._calls >= self._limits.max_calls:
            return (
                f"not run: the limit of {self._limits.max_calls} tool calls for one request is reached. "
                "Answer now with what you have."
            )
        if why := self._repetition(call):
            self._warned.add(call.name)
            return f"not run: {why}. Use what you have, try something else, or answer."
        self._calls += 1
        return None

    def _repetition(self, call: ToolCall) -> str | None:
        """How a call repeats earlier ones without anything new, in words for the model; None: it does not."""
        past = self._past.get(call.name)
        if not past:
            return None
        arguments = _canonical(call)
        repeats = self._limits.max_repeats
        same = [entry.result for entry in past if entry.arguments == arguments][-repeats:]
        if len(same) == repeats and len(set(same)) == 1:
            return (
                f"{call.name} was called with exactly these arguments before, and its result does not change"
            )
        if len(past) < self._limits.max_similar or not _alike(arguments, past[-1].arguments):
            return None
        if sum(entry.is_like(past[-1]) for entry in past) >= self._limits.max_similar:
            return f"{call.name} was called {len(past)} times with almost the same arguments and results"
        return None


def _canonical(call: ToolCall) -> str:
    """The arguments as text in which the order of members and white space make no difference."""
    arguments = read_arguments(call.arguments)
    if arguments is None:
        return call.arguments
    return dumps(arguments, sort_keys=True).decode()


def _alike(one: str, other: str) -> bool:
    one, other = one[:COMPARED], other[:COMPARED]
    if one == other:
        return True
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.real_quick_ratio() >= ALIKE and matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE
