"""The log of one MCP server: what it writes to standard error, and its last lines for error messages."""

from __future__ import annotations

import logging
from collections import deque

LINES = 20
"""Lines of standard error that are kept for an error message; it shows the last five."""
LINE = 500
"""Characters of one line that are kept."""


class ServerLog:
    """Logs lines of standard error under the server's logger, and keeps the newest of this life."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self._lines: deque[str] = deque(maxlen=LINES)

    def clear(self) -> None:
        """A new process starts."""
        self._lines.clear()

    def add(self, line: bytes) -> None:
        """One line of the server's standard error."""
        text = "".join(c if c.isprintable() else " " for c in line[:LINE].decode(errors="replace")).rstrip()
        if text:
            self._lines.append(text)
            self.logger.info("%s", text)

    def last_words(self) -> str:
        """A sentence with the last lines, to stand behind another one; empty if there are none."""
        return " It last wrote: " + " | ".join(list(self._lines)[-5:]) if self._lines else ""
