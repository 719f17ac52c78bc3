"""Use Toolway for an hour as many clients would, and say whether it grew: `make soak`, `python -m bench.soak --help`.

Every answer is checked. Each ten seconds it is written down what Toolway holds; the end says how that moved in the
last half.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import httpx2
from bench.mcp_calls import until_ready
from bench.soak.visits import VISITS, Visit, Visitor, upheaval
from bench.soak.watch import Sample, take, verdicts
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
EVERY = 10.0
UPHEAVAL_EVERY = 97.0
TIMEOUT = 60.0
"""Seconds for one visit, and for the start and the end."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=40, help="visits a second; some are several requests")
    parser.add_argument("--store", choices=("memory", "sqlite"), default="memory")
    parser.add_argument("--replay", action="store_true", help="TOOLWAY_REPLAY, which closes the fast lane")
    parser.add_argument(
        "--samples", type=Path, default=ROOT / "bench/.work/soak.jsonl", help="where they are written"
    )
    chosen = parser.parse_args()
    if chosen.minutes < 1:
        parser.error("--minutes must be at least 1: a shorter run has too few samples to tell growth")
    return chosen


class Soak:
    """The visits under way, what went wrong in them, and the samples."""

    def __init__(self, pid: int, url: str, folder: Path, chosen: argparse.Namespace) -> None:
        self._pid, self._url, self._folder, self._chosen = pid, url, folder, chosen
        self._began = time.monotonic()
        self.visits: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.samples: list[Sample] = []
        self.types: list[dict[str, int]] = []

    async def run(self) -> None:
        limits = httpx2.Limits(max_connections=500, max_keepalive_connections=50)
        async with httpx2.AsyncClient(timeout=TIMEOUT, limits=limits) as http:
            with anyio.fail_after(TIMEOUT):
                await until_ready(self._url)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._watch)
                async with anyio.create_task_group() as group:
                    await self._send_visitors(group, http)
                watching.cancel_scope.cancel()
        await self._until_idle()

    async def _send_visitors(self, group: anyio.abc.TaskGroup, http: httpx2.AsyncClient) -> None:
        kinds, weights = list(VISITS), list(VISITS.values())
        end, next_upheaval = self._began + self._chosen.minutes * 60, self._began + UPHEAVAL_EVERY
        due = time.monotonic()
        while time.monotonic() < end:
            visit = random.choices(kinds, weights)[0]
            if due > next_upheaval:
                visit, next_upheaval = upheaval, due + UPHEAVAL_EVERY
            group.start_soon(self._pay, visit, Visitor(self._url, http, self._folder / "mcp.json"))
            # What a busy machine did not manage is left out, not made up for.
            due = max(due, time.monotonic() - 1) + random.expovariate(self._chosen.rate)
            await anyio.sleep(max(0, due - time.monotonic()))

    async def _pay(self, visit: Visit, visitor: Visitor) -> None:
        name = visit.__name__
        try:
            with anyio.fail_after(TIMEOUT):
                await visit(visitor)
        except Exception as error:  # whatever it is, the soak goes on and counts it
            fault = f"{time.monotonic() - self._began:.0f} s, {name}: {error!r}"[:500]
            print(fault, file=sys.stderr, flush=True)
            self.faults.append(fault)
        self.visits[name] += 1

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(EVERY)
            self._sample()

    def _sample(self) -> None:
        sample, types = take(self._pid, self._folder / "inside", time.monotonic() - self._began)
        self.samples.append(sample)
        self.types.append(types)
        line = {**vars(sample), "visits": self.visits.total(), "faults": len(self.faults)}
        with self._chosen.samples.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        if len(self.samples) % 6 == 1:
            print(json.dumps(line), file=sys.stderr, flush=True)

    async def _until_idle(self) -> None:
        """Until no request is under way and connections that nobody uses are closed, then one more sample."""
        await anyio.sleep(min(TIMEOUT + 10, self._chosen.minutes * 60))
        self._sample()


@contextmanager
def program(*command: str, env: dict[str, str], cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("w") as output, subprocess.Popen(command, env=env, cwd=cwd, stderr=output) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def mcp_json(mcp_url: str, tools_url: str) -> str:
    stdio = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"], "cwd": str(ROOT)}
    servers = {
        "local": stdio,
        "fragile": {**stdio, "include": ["crash"]},
        "remote": {"url": mcp_url, "exclude": ["crash"]},
        "places": {"type": "openapi", "url": tools_url},
    }
    servers["local"] = {**stdio, "exclude": ["crash"]}
    return json.dumps({"mcpServers": servers})


def settings(model_port: int, folder: Path, chosen: argparse.Namespace) -> dict[str, str]:
    """Small bounds and short lives, so that what is bounded is full, and what ends has ended, long before the half."""
    return {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{model_port}/v1",
        "DEBUG_OUTPUT": "false",
        "TOOLWAY_CONFIG": str(folder / "mcp.json"),
        "TOOLWAY_STORE": "memory:" if chosen.store == "memory" else f"sqlite:///{folder}/store.db",
        "TOOLWAY_STORE_MAX_BYTES": str(32 * 2**20),
        "TOOLWAY_STORE_TTL": "90",
        "TOOLWAY_RESPONSES_TTL": "90",
        "TOOLWAY_CONSOLE_TTL": "300",
        "TOOLWAY_CONSOLE_MAX_BYTES": str(2 * 2**20),
        "TOOLWAY_CONSOLE_MAX_CONVERSATIONS": "500",
        "TOOLWAY_METRICS": "on",
        "TOOLWAY_REPLAY": str(chosen.replay).lower(),
    }


def soak(chosen: argparse.Namespace) -> Soak:
    chosen.samples.parent.mkdir(exist_ok=True)
    chosen.samples.write_text("")
    ports = [free_port() for _ in range(4)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "mcp.json").write_text(
            mcp_json(f"http://127.0.0.1:{ports[2]}/mcp", f"http://127.0.0.1:{ports[1]}")
        )
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        python = [sys.executable, "-m"]
        stack.enter_context(
            program(
                *python,
                "bench.soak.services",
                *map(str, ports[:3]),
                env=env,
                cwd=ROOT,
                log=folder / "services.log",
            )
        )
        log = chosen.samples.with_suffix(".log")
        target = stack.enter_context(
            program(
                *python,
                "bench.soak.target",
                str(ports[3]),
                str(folder / "inside"),
                env={**env, **settings(ports[0], folder, chosen)},
                cwd=folder,
                log=log,
            )
        )
        made = Soak(target.pid, f"http://127.0.0.1:{ports[3]}", folder, chosen)
        anyio.run(made.run)
        target.send_signal(signal.SIGTERM)
        if status := target.wait(TIMEOUT):
            made.faults.append(f"Toolway ended with status {status}")
        if "Traceback" in log.read_text():
            made.faults.append(f"there is a traceback in {log}")
    return made


def report(made: Soak) -> bool:
    """Print what was done, how each figure moved, and what there is more of; whether all is well."""
    print(f"{made.visits.total():,} visits: {', '.join(f'{n} {k}' for k, n in made.visits.most_common())}")
    print("\nMean and growth are those of the last half; idle is a minute after the last request.\n")
    print(" " * 10, *(f"{title:>9}" for title in ("first", "half", "last", "idle", "mean", "grew")))
    *busy, idle = made.samples
    for figure, mean, grown, too_much in verdicts(busy):
        moments = [getattr(s, figure) for s in (busy[0], busy[len(busy) // 2], busy[-1], idle)]
        print(
            f"{figure:10}",
            *(f"{value:9,.1f}" for value in [*moments, mean, grown]),
            "   GREW" if too_much else "",
        )
    earlier, later = made.types[len(busy) // 2], made.types[-2]
    more = {name: number - earlier.get(name, 0) for name, number in later.items()}
    print(
        "\nMore objects than at the half:",
        {n: c for n, c in sorted(more.items(), key=lambda i: -i[1])[:12] if c > 100},
    )
    print(f"\n{len(made.faults)} faults", *made.faults[:20], sep="\n")
    return not made.faults and not any(too_much for *_, too_much in verdicts(busy))


if __name__ == "__main__":
    os.nice(10)
    sys.exit(not report(soak(options())))
