"""One measurement: load on one target for a few seconds, and what it cost the target."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from bench.processes import OTHER_CPUS, WORK, Program, start_on
from bench.scenarios import Scenario

Sample = dict[str, Any]


def measure(target: Program, scenario: Scenario, *, seconds: float, warm: float) -> Sample:
    """Rates per second, times in microseconds, `faults`: answers that were not right."""
    load = start_on(OTHER_CPUS, load_command(target, scenario, seconds, warm), stdout=subprocess.PIPE)
    with load:
        assert load.stdout
        load.stdout.readline()  # the warm-up is over
        cpu = target.cpu_seconds()
        result = load.stdout.readline()
        cpu = target.cpu_seconds() - cpu
    if not result:
        raise RuntimeError(f"the load generator failed; the target says: {target.last_words()}")
    return sample(json.loads(result), cpu, scenario)


def load_command(target: Program, scenario: Scenario, seconds: float, warm: float) -> list[str]:
    body = WORK / f"body-{scenario.key}.json"
    body.write_bytes(scenario.body())
    options = {
        "port": target.port,
        "path": scenario.path,
        "body": body,
        # A client of its own: what those of another scenario left unfinished is looked for in the requests of theirs.
        "key": f"sk-{scenario.key}",
        "headers": "".join(f"{name}: {value}\r\n" for name, value in target.headers.items()),
        "conns": scenario.connections,
        "seconds": seconds,
        "warm": warm,
        "stamps": scenario.stamps,
        "repeats": scenario.repeats,
        "stream": int(scenario.stream),
        "end": scenario.end,
    }
    return [
        str(WORK / "load"),
        *(text for key, value in options.items() for text in (f"--{key}", str(value))),
    ]


def sample(load: dict[str, Any], cpu_seconds: float, scenario: Scenario) -> Sample:
    count = load["events"] if scenario.counts_events else load["ok"]
    return {
        "requests": load["ok"],
        "rate": count / load["seconds"],
        "cpu_us": cpu_seconds / max(count, 1) * 1e6,
        "busy": cpu_seconds / load["seconds"],
        "first_us": load.get("first", {}).get("p50"),
        "p50_us": load.get("total", {}).get("p50"),
        "p99_us": load.get("total", {}).get("p99"),
        "chunk_us": load.get("chunk", {}).get("p50"),
        "faults": load["bad"] + load["reset"] + load["wrong"],
        "complaint": load["complaint"],
    }
