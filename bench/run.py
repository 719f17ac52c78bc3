"""Measure Toolway beside nginx, HAProxy, Envoy and a bare relay, in turn before one mock model server.

`make bench` runs it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import history
from bench.chart import chart
from bench.held import HELD, hold
from bench.measure import Sample, measure
from bench.processes import WORK, MissingError
from bench.report import render
from bench.rivals import find_nginx
from bench.scenarios import SCENARIOS, Scenario
from bench.summary import Samples, goals, summarise
from bench.targets import Targets, build


def say(text: str) -> None:
    """Progress and warnings; the tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute, rough figures")
    parser.add_argument("--rounds", type=int, help="how often each target is measured (5)")
    parser.add_argument("--seconds", type=float, help="how long each measurement takes (1.5)")
    parser.add_argument("--targets", default="", help="only these, with commas between them")
    parser.add_argument("--scenarios", default="", help="only these, with commas between them")
    parser.add_argument("--markdown", action="store_true", help="print markdown instead of aligned text")
    parser.add_argument("--json", type=Path, default=WORK / "result.json", help="where the result is written")
    parser.add_argument("--svg", type=Path, help="draw the shares of Envoy there")
    parser.add_argument(
        "--render", type=Path, metavar="JSON", help="print an earlier result and measure nothing"
    )
    chosen = parser.parse_args()
    chosen.rounds = chosen.rounds or (2 if chosen.quick else 5)
    chosen.seconds = chosen.seconds or (0.4 if chosen.quick else 1.5)
    return chosen


def chosen_scenarios(keys: str) -> list[Scenario]:
    wanted = split(keys)
    known = [scenario.key for scenario in (*SCENARIOS, *HELD)]
    if unknown := set(wanted) - set(known):
        sys.exit(f"No such scenario: {', '.join(unknown)}. There are: {', '.join(known)}")
    return [scenario for scenario in SCENARIOS if not wanted or scenario.key in wanted]


def split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def collect(targets: Targets, scenarios: list[Scenario], rounds: int, seconds: float) -> Samples:
    """Round 0 warms up and is not kept; every other round goes the other way through the targets."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):
        say("Warming up" if number == 0 else f"Round {number} of {rounds}")
        for scenario in scenarios:
            names = [name for name in scenario.targets if name in targets.running]
            for name in names if number % 2 else reversed(names):
                length = seconds if number else 0.2
                one = measure(targets.running[name], scenario, seconds=length, warm=0.1)
                if number:
                    samples[scenario.key][name].append(one)
                elif trouble := trouble_with(one):
                    say(f"{name}, {scenario.key}: {trouble}")
    return {key: in_order(by_target, targets) for key, by_target in samples.items()}


def in_order(by_target: dict[str, list[Sample]], targets: Targets) -> dict[str, list[Sample]]:
    return {name: by_target[name] for name in targets.running if name in by_target}


def trouble_with(one: Sample) -> str:
    if one["faults"]:
        return f"{one['faults']} wrong answers, the first: {one['complaint'] or 'connection closed'}"
    return "" if one["requests"] else "no answer"


def memory(targets: Targets) -> dict[str, Any]:
    return {
        name: {"idle": targets.idle_memory[name], "loaded": program.memory_mb()}
        for name, program in targets.running.items()
        if name != "direct"
    }


def machine() -> dict[str, Any]:
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    try:
        toolway = importlib.metadata.version("toolway")
    except importlib.metadata.PackageNotFoundError:
        toolway = "not installed"
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "nginx": nginx_version(),
        "toolway": toolway,
    }


def nginx_version() -> str:
    try:
        answer = subprocess.run([find_nginx(), "-v"], capture_output=True, text=True, check=True)
    except MissingError:
        return "no nginx"
    return answer.stderr.split(": ")[-1].strip()


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    build()
    with Targets(say, only=split(chosen.targets)) as targets:
        scenarios = chosen_scenarios(chosen.scenarios)
        samples = collect(targets, scenarios, chosen.rounds, chosen.seconds) if scenarios else {}
        taken, idle = memory(targets), dict(targets.idle_memory)
    held = held_streams(chosen)
    date = datetime.datetime.now().astimezone().date().isoformat()
    return {
        "machine": machine(),
        "run": {"date": date, "rounds": chosen.rounds, "seconds": chosen.seconds},
        "scenarios": summarise(samples),
        "memory": taken,
        "held": held,
        "goals": [goal.record() for goal in goals(samples, idle, held)],
        "samples": samples,
    }


def held_streams(chosen: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Once, when the other targets are gone: these have no rival, and their figures are no rates."""
    scenarios, names = split(chosen.scenarios), split(chosen.targets)
    held = {}
    for scenario in HELD:
        if (not scenarios or scenario.key in scenarios) and (not names or "toolway" in names):
            say(scenario.title)
            held[scenario.key] = hold(scenario)
    return held


def main() -> None:
    chosen = options()
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("The benchmark needs Linux: it uses epoll, CPU affinity and /proc.")
    if chosen.render:
        result = json.loads(chosen.render.read_text())
    else:
        try:
            result = run(chosen)
        except MissingError as error:
            sys.exit(str(error))
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
        if not chosen.quick:
            history.remember(result)
    if chosen.svg:
        chosen.svg.write_text(chart(result), encoding="utf-8")
    print(render({**result, "history": history.rows()}, markdown=chosen.markdown))


if __name__ == "__main__":
    main()
