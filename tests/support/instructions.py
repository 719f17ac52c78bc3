"""Counts what one event loop executes: instructions of Python, the same on a busy machine as on an idle one.

Time is not counted, nor what C functions do inside. What it is for: that a request costs no more work than it did.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from tests.support.gate import DEADLINE


class Instructions:
    """What the thread of an event loop executes while `counting`; `by_function` holds it for each function."""

    def __init__(self) -> None:
        self.by_function: Counter[CodeType] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count in the thread of this event loop from now on, while anybody is `counting`."""
        self._loop = loop

    @property
    def total(self) -> int:
        return self.by_function.total()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is executed inside the block."""
        self._in_loop(sys.settrace, self._enter)
        try:
            yield
        finally:
            self._in_loop(sys.settrace, None)

    def _in_loop(self, function: Any, argument: Any) -> None:
        assert self._loop, "the server was not started with on_start=instructions.watch"
        done = threading.Event()

        def run() -> None:
            function(argument)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(DEADLINE), "the event loop does not answer"

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        code, counts = frame.f_code, self.by_function

        def count(_: FrameType, event: str, __: Any) -> Any:
            if event == "opcode":
                counts[code] += 1
            return count

        return count
