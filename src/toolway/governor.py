"""When a loop must end: after so many rounds or so many seconds, whatever the model would still like to call."""

from __future__ import annotations

import time


class Governor:
    """The limits of one request. `max_seconds` counts from its making."""

    def __init__(self, *, max_rounds: int, max_seconds: float) -> None:
        self._max_rounds = max_rounds
        self._max_seconds = max_seconds
        self._started = time.monotonic()

    @property
    def seconds_left(self) -> float:
        """Time that tools may still take; never negative."""
        return max(0.0, self._started + self._max_seconds - time.monotonic())

    def objection(self, rounds: int) -> str | None:
        """Why the calls that round number `rounds` asks for may not run, in words for the model; None: they may."""
        if rounds > self._max_rounds:
            return f"the limit of {self._max_rounds} rounds of tool calls for one request is reached"
        if not self.seconds_left:
            return f"the time for tool calls in one request ({self._max_seconds:g} s) is used up"
        return None
