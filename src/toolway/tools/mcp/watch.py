"""Toolway's end of the reaper's pipe: one reaper for each process, started with the first server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import cache
from pathlib import Path

from toolway.tools.mcp import reaper

_PROGRAM = [sys.executable, "-I", "-S", str(Path(reaper.__file__).resolve())]


@cache
def pipe() -> int:
    """The write end of the reaper's pipe. It is never closed on purpose: its end is the signal."""
    theirs, ours = os.pipe()
    os.posix_spawn(
        sys.executable,
        [*_PROGRAM, "watch"],
        {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs, 0),
            # Whoever reads Toolway's output to its end must not wait for the reaper.
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    os.close(theirs)
    return ours


def watched(command: list[str]) -> tuple[list[str], tuple[int, ...]]:
    """The command line that runs `command` under the reaper's watch, and the descriptors it needs."""
    if os.name != "posix":
        return command, ()
    return [*_PROGRAM, "start", str(pipe()), *command], (pipe(),)


def end_group(group: int) -> None:
    """Kill what is left of a process group, and take it off the reaper's list."""
    if os.name != "posix":
        return
    signal_group(group, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.write(pipe(), b"-%d\n" % group)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
