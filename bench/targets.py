"""The servers that are compared: the mock itself, its rivals, and Toolway with 0 to 200 tools, or two workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

from bench.processes import HERE, OTHER_CPUS, WORK, MissingError, Program, cpus_for, free_port
from bench.rivals import RIVALS

OURS = ("OPENAI_", "MCP_SERVER_", "TOOLWAY_", "DEBUG_OUTPUT")
"""Settings of the caller's own Toolway that must not change what is measured."""

SEARCH_TOOLS = 2
"""Tools that a model gets in place of those that it searches."""


def build() -> None:
    """Compile mock.c and load.c where they are newer than their programs."""
    WORK.mkdir(exist_ok=True)
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    for name in ("mock", "load"):
        source, program = HERE / f"{name}.c", WORK / name
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        if not compiler:
            raise MissingError(
                "a C compiler is needed to build the mock and the load generator: apt-get install gcc"
            )
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, source], check=True)


def start_mock(name: str, tools: int) -> Program:
    port = free_port()
    command = [str(WORK / "mock"), "--port", str(port), "--tools", str(tools)]
    return Program(command, port=port, cpus=OTHER_CPUS, log=WORK / f"{name}.log")


def start_toolway(
    mock: Program, tool_server: Program | None, log: str, *, workers: int = 1, **settings: str
) -> Program:
    binary = Path(sys.executable).with_name("toolway")
    if not binary.exists():
        raise MissingError(f"Toolway is not installed next to {sys.executable}: make install")
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    env["OPENAI_BASE_URL"] = f"http://127.0.0.1:{mock.port}/v1"
    env["MCP_SERVER_ENDPOINTS"] = f"http://127.0.0.1:{tool_server.port}" if tool_server else ""
    env |= {"DEBUG_OUTPUT": "false", **settings}
    command = [str(binary), "serve", "--port", str(port), "--workers", str(workers)]
    return Program(command, port=port, cpus=cpus_for(workers), log=WORK / f"{log}.log", env=env)


def count_tools(target: Program) -> int:
    """Ask through the target how many tools reached the model server."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{target.port}/v1/chat/completions",
        data=b'{"model": "mock-n1", "messages": [{"role": "user", "content": "How many tools have you?"}]}',
        headers={"Content-Type": "application/json", "Authorization": "Bearer sk-bench", **target.headers},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.load(answer)["choices"][0]["message"]["content"].split()[0])


def wait_for_tools(target: Program, tools: int, seconds: float = 15) -> None:
    """Until requests are answered and the tool server was read; raises RuntimeError with the last trouble."""
    end = time.monotonic() + seconds
    while (trouble := trouble_with(target, tools)) and time.monotonic() < end:
        time.sleep(0.1)
    if trouble:
        raise RuntimeError(f"{trouble}; {target.last_words()}")


def trouble_with(target: Program, tools: int) -> str:
    try:
        found = count_tools(target)
    except (OSError, ValueError, LookupError) as error:
        return f"no answer: {error}"
    return "" if found == tools else f"{found} tools reach the model instead of {tools}"


class Targets:
    """All targets, running side by side; idle ones cost nothing. A context manager."""

    def __init__(self, say: Callable[[str], None], only: Collection[str] = ()) -> None:
        self.say = say
        self.only = only
        self.running: dict[str, Program] = {}
        self.idle_memory: dict[str, Mapping[str, float]] = {}
        self._helpers: list[Program] = []

    def __enter__(self) -> Targets:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in [*self.running.values(), *self._helpers]:
            program.stop()

    def _start_all(self) -> None:
        mock, many = start_mock("mock", 20), start_mock("mock-200", 200)
        self._helpers += [mock, many]
        for helper in self._helpers:
            helper.wait_until_it_listens()
        self._start("direct", lambda: mock, tools=0)
        for name, start in RIVALS.items():
            self._start(name, partial(start, mock), tools=0)
        self._start("toolway", lambda: start_toolway(mock, mock, "toolway"), tools=20)
        self._start("toolway-0", lambda: start_toolway(mock, None, "toolway-0"), tools=0)
        self._start("toolway-200", lambda: start_toolway(mock, many, "toolway-200"), tools=200)
        search = partial(start_toolway, mock, many, "toolway-search", TOOLWAY_TOOL_SEARCH="on")
        self._start("toolway-search", search, tools=SEARCH_TOOLS)
        self._start("toolway-2w", lambda: start_toolway(mock, mock, "toolway-2w", workers=2), tools=20)

    def _start(self, name: str, start: Callable[[], Program], *, tools: int) -> None:
        if self.only and name not in self.only:
            return
        program = None
        try:
            program = start()
            program.wait_until_it_listens()
            wait_for_tools(program, tools)
        except (MissingError, RuntimeError) as error:
            self.say(f"Without {name}: {error}")
            if program:
                program.stop()
            return
        self.running[name] = program
        self.idle_memory[name] = program.memory_mb()
