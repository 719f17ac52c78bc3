"""What every connection of one MCP source shares: its options, and the log of its server, within a budget."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from toolway.net.client import ClientCertificate
from toolway.net.ssrf import SsrfGuard
from toolway.types import JSON

Transport = Literal["stdio", "http", "sse"]

DEPTH = "TOOLWAY_DEPTH"
"""The variable that tells a program within how many Toolways it was started."""


def depth() -> int:
    """Within how many Toolways this process was started."""
    text = os.environ.get(DEPTH, "")
    return int(text) if text.isdecimal() and len(text) < 5 else 0


Sampler = Callable[[JSON], Awaitable[JSON]]
"""Answers `sampling/createMessage`: its params -> its result."""


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """The same for every connection of one source."""

    max_result_bytes: int = 32 * 2**20
    """The longest message that is read."""
    sampler: Sampler | None = None
    """None: a server that asks for a model is told no."""
    auth: Callable[[Any], Any] | None = None
    """Makes an httpx2.Auth, or None, for each connection; it is given its httpx2.AsyncBaseTransport."""
    certificate: ClientCertificate | None = None
    """By which it is known to a server over TLS."""
    egress: SsrfGuard | None = None
    """A server that no operator configured is reached through it, and in no other way."""
    logger: logging.Logger | None = None
    """None: one of the server's own, `toolway.server.LABEL`."""
    on_line: Callable[[str], None] | None = None
    """Is told each line that is logged of the server."""


class LogBudget:
    """A token bucket: `burst` at once, `rate` a second in the long run."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = time.monotonic()

    def spend(self, amount: float = 1.0) -> bool:
        """Whether there is enough left; only then is it spent."""
        self._refill()
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def overdraw(self, amount: float) -> float:
        """Spend what cannot be helped; the seconds after which there is something left again, 0 if there is now."""
        self._refill()
        self._left -= amount
        return max(0.0, -self._left / self._rate)

    def _refill(self) -> None:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now


LINES = 40
"""Lines of standard error that are kept for an error message; it shows the last five, and the one that tells most."""
STDOUT_LINES = 5
"""Lines of standard output that are no messages and are kept for an error message: the first of them."""
LINE = 500
"""Characters of one line that are kept."""

_TELLING = re.compile(r"\s*(?:[\w.]*(?:Error|Exception)\b|(?:error|fatal|panic)\b)", re.IGNORECASE)
"""A line that says what went wrong; Node.js writes a page of its stack behind it."""

RATE, BURST = 20.0, 500.0
"""Lines a second that a server may write into the log, and lines at once."""
REPORT_EVERY = 10.0
"""Seconds between two lines about what was left out."""


class ServerLog:
    """Logs what a server says under its own logger, and keeps of this life what it wrote for people.

    That are the newest lines of standard error, and the first of standard output: text there is no message, and of
    a program that is no MCP server it is all that there will be. `on_stdout` is called after each of those.
    """

    def __init__(
        self,
        logger: logging.Logger,
        on_line: Callable[[str], None] | None = None,
        on_stdout: Callable[[], None] = lambda: None,
    ) -> None:
        self._logger = logger
        self._on_line = on_line
        self._on_stdout = on_stdout
        self._lines: deque[bytes] = deque(maxlen=LINES)
        self._stdout: list[bytes] = []
        self.written = 0
        """How many lines of standard error there were."""
        self._budget = LogBudget(rate=RATE, burst=BURST)
        self._dropped = self._dropped_bytes = 0
        self._report: asyncio.TimerHandle | None = None

    def clear(self) -> None:
        """A new process starts."""
        self._lines.clear()
        self._stdout.clear()

    def add_stderr(self, line: bytes) -> None:
        """One line of the server's standard error."""
        if line.strip():
            self._lines.append(line[:LINE])
            self.written += 1
            self._add_line(line)

    def add_stdout(self, line: bytes) -> None:
        """One line of the server's standard output that is no message."""
        if line.strip():
            self._add_line(line)
            if len(self._stdout) < STDOUT_LINES:
                self._stdout.append(line[:LINE])
                self._on_stdout()

    def _add_line(self, line: bytes) -> None:
        """Log a line; in a flood it is not even decoded."""
        if self._budget.spend():
            text = _readable(line[:LINE])
            self._logger.info("%s", text)
            self._pass_on(text)
        else:
            self.drop(len(line))

    def add(self, level: int, text: str) -> None:
        """One line; it is counted only, when there are too many."""
        if self._budget.spend():
            self._logger.log(level, "%s", text)
            self._pass_on(text)
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
        self._pass_on(message % values if values else message)

    def _pass_on(self, text: str) -> None:
        if self._on_line:
            self._on_line(text)

    def last_words(self, since: int = 0) -> str:
        """A sentence with the last lines, to stand behind another one; empty if there are none.

        `since` is how many were written before: those are left out.
        """
        newest = list(self._lines)[-(self.written - since) :] if self.written > since else []
        lines = [text for line in newest if (text := _readable(line))]
        if not lines:
            return ""
        telling = [line for line in lines[:-5] if _TELLING.match(line)][-1:]
        return " It last wrote: " + " | ".join([*telling, *(["..."] if telling else []), *lines[-5:]])

    def stdout_words(self) -> str:
        """What it wrote on its standard output instead of messages, in this life; empty if it wrote nothing else."""
        lines = [text for line in self._stdout if (text := _readable(line))]
        return f"it wrote on its standard output: {' | '.join(lines)}" if lines else ""

    def _tell(self) -> None:
        self._report = None
        self._logger.warning(
            "it writes more than is read: %d messages and lines (%.1f kB) were left out",
            self._dropped,
            self._dropped_bytes / 1000,
        )
        self._dropped = self._dropped_bytes = 0


def _readable(line: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in line.decode(errors="replace")).rstrip()
