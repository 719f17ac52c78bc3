"""Subprocesses of the demo, which end when it ends, however it ends.

The parent holds the writing end of each child's standard input and never writes: when the parent is gone, killed
or not, the child reads the end of the file and ends itself. That works on every system, and needs no process group.
"""

from __future__ import annotations

import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toolway.errors import ToolwayError

START_SECONDS = 120.0
STOP_SECONDS = 5.0
READY = "ready "

OnLine = Callable[[str], None]


class DemoError(ToolwayError):
    """A step of the demo failed; the message says which, why, and what to do."""


class Child:
    """A running program; everything it prints reaches `on_line`, line by line, from a thread of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str], on_line: OnLine | None) -> None:
        self.name = name
        self.process = process
        self._on_line = on_line
        self._last: deque[str] = deque(maxlen=8)
        self._ready: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True, name=f"{name} output")
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def wait_ready(self, seconds: float = START_SECONDS) -> str:
        """The address that the child announces once it can be talked to. `DemoError` when it ends before."""
        try:
            address = self._ready.get(timeout=seconds)
        except queue.Empty:
            raise DemoError(
                f"{self.name} did not start within {seconds:.0f} s.{self._last_output()}"
            ) from None
        if address is None:
            raise self.death()
        return address

    def check(self) -> None:
        """Raise the `DemoError` that tells of its end, if it has ended."""
        if self.process.poll() is not None:
            raise self.death()

    def death(self) -> DemoError:
        """What is known of its end: the exit status and the last lines it printed."""
        status = self.process.wait(STOP_SECONDS)
        for reader in self._readers:
            reader.join(STOP_SECONDS)
        return DemoError(f"{self.name} ended with {_status_text(status)}.{self._last_output()}")

    def stop(self) -> None:
        """End it: politely, then not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join(STOP_SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self, stream: IO[str]) -> None:
        for raw in stream:
            line = raw.rstrip()
            if stream is self.process.stdout and line.startswith(READY):
                self._ready.put(line.removeprefix(READY))
            elif line:
                self._last.append(line)
                if self._on_line:
                    self._on_line(line)
        if stream is self.process.stdout:
            self._ready.put(None)

    def _last_output(self) -> str:
        return "".join(f"\n  {line}" for line in ("Its last words:", *self._last)) if self._last else ""


@contextmanager
def running_child(
    name: str,
    module: str,
    *arguments: str,
    on_line: OnLine | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """Run `python -m module arguments` for as long as the `with` lasts.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then ends its children in order.
    """
    process = subprocess.Popen(  # noqa: S603  (our own modules)
        [sys.executable, "-m", __name__, module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**(os.environ if env is None else env), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        cwd=cwd,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    child = Child(name, process, on_line)
    try:
        yield child
    finally:
        child.stop()


def announce(address: str) -> None:
    """Said by the child: from now on it can be talked to at `address`."""
    sys.stdout.write(f"{READY}{address}\n")
    sys.stdout.flush()


def _status_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"signal {signal.Signals(-status).name}"


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this process: as asked to, or at once if that hangs."""
    # Not sys.stdin: a thread that holds its lock when the interpreter ends is a fatal error.
    while os.read(0, 1024):
        pass
    deadline = threading.Timer(STOP_SECONDS, os._exit, (1,))
    deadline.daemon = True
    deadline.start()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """`python -m toolway.demo.child MODULE [ARGUMENT ...]`: run the module, and end with the parent."""
    threading.Thread(target=_end_with_parent, daemon=True, name="parent watch").start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
