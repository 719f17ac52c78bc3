"""The log of one MCP server: what it writes to standard error or sends as log messages, within a budget."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from toolway.tools.mcp.budget import Budget

LINES = 20
"""Lines of standard error that are kept for an error message; it shows the last five."""
LINE = 500
"""Characters of one line that are kept."""

RATE, BURST = 20.0, 500.0
"""Lines a second that a server may write into the log, and lines at once."""
REPORT_EVERY = 10.0
"""Seconds between two lines about what was left out."""


class ServerLog:
    """Logs what a server says under its own logger, and keeps the newest lines of standard error of this life."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lines: deque[str] = deque(maxlen=LINES)
        self._budget = Budget(rate=RATE, burst=BURST)
        self._dropped = self._dropped_bytes = 0
        self._report: asyncio.TimerHandle | None = None

    def clear(self) -> None:
        """A new process starts."""
        self._lines.clear()

    def add_stderr(self, line: bytes) -> None:
        """One line of the server's standard error."""
        kept = line[:LINE]
        text = "".join(c if c.isprintable() else " " for c in kept.decode(errors="replace")).rstrip()
        if text:
            self._lines.append(text)
            self.add(logging.INFO, text)

    def add(self, level: int, text: str) -> None:
        """One line; it is counted only, when there are too many."""
        if self._budget.spend():
            self._logger.log(level, "%s", text)
        else:
            self.drop(len(text))

    def drop(self, size: int) -> None:
        """Count something that was not even looked at."""
        self._dropped += 1
        self._dropped_bytes += size
        if self._report is None:
            self._report = asyncio.get_running_loop().call_later(REPORT_EVERY, self._tell)

    def warning(self, message: str, *values: object) -> None:
        """Toolway's own word about the server."""
        self._logger.warning(message, *values)

    def last_words(self) -> str:
        """A sentence with the last lines, to stand behind another one; empty if there are none."""
        return " It last wrote: " + " | ".join(list(self._lines)[-5:]) if self._lines else ""

    def _tell(self) -> None:
        self._report = None
        self._logger.warning(
            "it writes more than is read: %d messages and lines (%.1f kB) were left out",
            self._dropped,
            self._dropped_bytes / 1000,
        )
        self._dropped = self._dropped_bytes = 0
