"""What tool servers write besides their answers, the newest lines of each, for people who look on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MAX_LINES = 500


class ServerOutput:
    """The newest lines of one server, whatever becomes of its process. `on_line` are told each new one."""

    def __init__(self) -> None:
        self.lines: deque[tuple[float, str]] = deque(maxlen=MAX_LINES)
        """When (Unix time), and what."""
        self.on_line: Callable[[float, str], None] | None = None

    def add(self, text: str) -> None:
        """The server, or Toolway about it, says a line."""
        now = time.time()
        self.lines.append((now, text))
        if self.on_line:
            self.on_line(now, text)
