"""Many paced streams at once through a fresh Toolway: what it takes of memory, and whether each ends well."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from measure import load_command
from processes import OTHER_CPUS, Program, start_on
from scenarios import Scenario
from targets import start_mock, start_toolway, wait_for_tools

TOOLS = 20
HELD = Scenario(
    key="held-1000",
    title="1,000 streams of 100 events, 100 ms apart, at the same time",
    targets=("toolway",),
    connections=1000,
    stream=True,
    pause_us=100_000,
)
PATIENCE = 60.0
"""Seconds for all of them; they take ten when nothing waits."""


def hold() -> dict[str, Any]:
    """Memory in MB before and at its highest, `held` streams at one time, CPU µs an event, `faults`."""
    programs: list[Program] = []
    try:
        programs.append(mock := start_mock("mock-held", TOOLS))
        mock.wait_until_it_listens()
        programs.append(target := start_toolway(mock, mock, "toolway-held"))
        target.wait_until_it_listens()
        wait_for_tools(target, TOOLS)
        return _hold(target)
    finally:
        for program in programs:
            program.stop()


def _hold(target: Program) -> dict[str, Any]:
    idle, cpu = target.memory_mb()["rss"], target.cpu_seconds()
    command = [*load_command(target, HELD, PATIENCE, warm=0), "--once", "1"]
    with start_on(OTHER_CPUS, command, stdout=subprocess.PIPE) as load:
        output = load.communicate()[0]
    cpu = target.cpu_seconds() - cpu
    told = json.loads(output.splitlines()[-1])
    return {
        "title": HELD.title,
        "streams": HELD.connections,
        "held": told["held"],
        "seconds": told["seconds"],
        "idle_mb": idle,
        "peak_mb": target.peak_mb(),
        "cpu_us": cpu / max(told["events"], 1) * 1e6,
        "faults": HELD.connections - told["ok"],
        "complaint": told["complaint"],
    }
