"""Programs under measurement: started on a CPU of their own, watched for CPU time and memory, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NICENESS = -10


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def choose_cpus() -> tuple[set[int], set[int]]:
    """One CPU for what is measured, the others for the mock and the load; all for both on a single CPU."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others) or {first}


def cpus_for(workers: int) -> set[int]:
    """As many CPUs as there are workers; on a small machine they share with the mock and the load."""
    return set(sorted(os.sched_getaffinity(0))[:workers])


HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
TARGET_CPUS, OTHER_CPUS = choose_cpus()


class MissingError(Exception):
    """A target cannot be measured on this machine; the text says why and what to do."""


def start_on(cpus: set[int], command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A child inherits the CPUs of its parent, so the parent moves for the moment of the start."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    finally:
        os.sched_setaffinity(0, mine)
    take_precedence(process.pid)
    return process


def take_precedence(pid: int) -> None:
    """Before other work of the machine, where that is allowed (root). Niceness alone counts only in its session."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


class Program:
    """A server that runs in the background, with its output in a log file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        cpus: set[int],
        log: Path,
        env: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.headers = headers or {}
        """What it must be told with each request."""
        self.log = log
        with log.open("w") as output:
            self.process = start_on(
                cpus,
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=log.parent,
            )

    def wait_until_it_listens(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"exited with status {self.process.returncode}: {self.last_words()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"does not listen on port {self.port}: {self.last_words()}")

    def last_words(self) -> str:
        return self.log.read_text(errors="replace").strip()[-400:] or "no output"

    def cpu_seconds(self) -> float:
        """User and system time of the program and its children, in nanosecond steps (Linux)."""
        return sum(_cpu_clock(pid) for pid in _family(self.process.pid))

    def memory_mb(self) -> dict[str, float]:
        """RSS and PSS of the program and its children, in MB."""
        rollups = [_read(f"/proc/{pid}/smaps_rollup") for pid in _family(self.process.pid)]
        return {name.lower(): sum(_megabytes(name, text) for text in rollups) for name in ("Rss", "Pss")}

    def peak_mb(self) -> float:
        """The most RSS that the program itself ever had, in MB."""
        return _megabytes("VmHWM", _read(f"/proc/{self.process.pid}/status"))

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _read(f"/proc/{pid}/task/{pid}/children").split():
        yield from _family(int(child))


def _cpu_clock(pid: int) -> float:
    # What clock_getcpuclockid(3) returns; Python wraps only the one for threads.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _megabytes(name: str, rollup: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
