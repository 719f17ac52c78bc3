"""A program of its own: starts servers under its watch, and ends their process groups when Toolway is gone.

`python -I -S reaper.py watch` reads "+GROUP" and "-GROUP" lines from standard input. Its end means that
Toolway has died, however it died; the groups still on the list are then ended. `reaper.py start FD COMMAND`
puts itself on that list and becomes COMMAND, so that there is no moment when a server is on nobody's list.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""

MAX_FILES = 65_536
"""Descriptors below this one may be open: as many files as Toolway lets itself have."""


def watch() -> None:
    """Keep the list until the pipe ends, then end what is on it."""
    os.closerange(3, MAX_FILES)  # a socket of Toolway's held here would listen on when Toolway does no longer
    os.setsid()  # a Ctrl-C for Toolway's terminal is not for this process
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        change = groups.add if line.startswith(b"+") else groups.discard
        change(int(line[1:]))
    end(groups)


def end(groups: set[int]) -> None:
    """SIGTERM, a moment, SIGKILL; a group without processes is left alone."""
    alive = {group for group in groups if _signal(group, signal.SIGTERM)}
    until = time.monotonic() + GRACE
    while alive and time.monotonic() < until:
        time.sleep(0.02)
        alive = {group for group in alive if _signal(group, 0)}
    for group in alive:
        _signal(group, signal.SIGKILL)


def start(fd: int, command: list[str]) -> None:
    """Tell the reaper, then become `command`; this process leads its own group already."""
    os.write(fd, b"+%d\n" % os.getpid())
    os.set_inheritable(fd, False)
    os.closerange(3, fd)  # uvloop leaves copies of the pipes open: no end of one would ever be seen
    os.closerange(fd + 1, MAX_FILES)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is ignored stays so
    os.execvp(command[0], command)  # noqa: S606 - the operator's own command, and no shell


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        watch()
    else:
        start(int(sys.argv[2]), sys.argv[3:])
