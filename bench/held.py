"""Many paced streams at once through a fresh Toolway: what it takes of memory, and whether each ends well."""

from __future__ import annotations

import json
import resource
import subprocess
from typing import Any

from bench.measure import load_command
from bench.processes import OTHER_CPUS, Program, start_on
from bench.scenarios import Scenario
from bench.targets import start_mock, start_toolway, wait_for_tools

from toolway.server.process import allow_open_files

TOOLS = 20


def _held(key: str, streams: int, chunks: int, pause_ms: int) -> Scenario:
    return Scenario(
        key=key,
        title=f"{streams:,} streams of {chunks} events, {pause_ms:,} ms apart, at the same time",
        targets=("toolway",),
        connections=streams,
        stream=True,
        chunks=chunks,
        pause_us=pause_ms * 1000,
    )


def _most_streams() -> int:
    """10,000, or fewer where Toolway may not open two sockets for each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if hard == resource.RLIM_INFINITY else min(10_000, (hard - 200) // 2)


HELD = (_held("held-1000", 1000, 100, 100), _held("held-10000", _most_streams(), 20, 3000))
TIMEOUT = 180.0
"""Seconds for all streams of a scenario; they take ten and sixty when nothing waits."""


def hold(scenario: Scenario) -> dict[str, Any]:
    """Memory in MB before and at its highest, `held` streams at one time, CPU µs an event, `faults`."""
    allow_open_files()
    programs: list[Program] = []
    try:
        programs.append(mock := start_mock("mock-held", TOOLS))
        mock.wait_until_it_listens()
        programs.append(target := start_toolway(mock, mock, "toolway-held"))
        target.wait_until_it_listens()
        wait_for_tools(target, TOOLS)
        return _hold(target, scenario)
    finally:
        for program in programs:
            program.stop()


def _hold(target: Program, scenario: Scenario) -> dict[str, Any]:
    idle, cpu = target.memory_mb()["rss"], target.cpu_seconds()
    command = [*load_command(target, scenario, TIMEOUT, warm=0), "--once", "1"]
    with start_on(OTHER_CPUS, command, stdout=subprocess.PIPE) as load:
        output = load.communicate()[0]
    cpu = target.cpu_seconds() - cpu
    told = json.loads(output.splitlines()[-1])
    return {
        "title": scenario.title,
        "streams": scenario.connections,
        "held": told["held"],
        "seconds": told["seconds"],
        "idle_mb": idle,
        "peak_mb": target.peak_mb(),
        "cpu_us": cpu / max(told["events"], 1) * 1e6,
        "faults": scenario.connections - told["ok"],
        "complaint": told["complaint"],
    }
