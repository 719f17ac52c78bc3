"""What a process holds, sampled again and again, and whether it grew."""

from __future__ import annotations

import json
import os
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Sample:
    seconds: float
    rss_mb: float
    files: int
    threads: int
    children: int
    tasks: int
    objects: int


BOUNDS = {"rss_mb": 0.03, "files": 0.1, "threads": 0.1, "children": 0.1, "tasks": 0.1, "objects": 0.05}
"""How much of its mean a figure may grow by in the last half of the soak."""
LEAST = {"rss_mb": 2.0, "files": 8, "threads": 2, "children": 1, "tasks": 8, "objects": 2000}
"""A growth of less is none: how many requests are under way differs from sample to sample."""


def take(pid: int, inside: Path, seconds: float) -> tuple[Sample, dict[str, int]]:
    """A sample, and how many objects there are of each of the most frequent types."""
    told = ask(inside)
    process = Path(f"/proc/{pid}")
    sample = Sample(
        seconds=seconds,
        rss_mb=int((process / "statm").read_text().split()[1]) * PAGE / 1e6,
        files=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        children=len(family(pid)) - 1,
        tasks=told["tasks"],
        objects=told["objects"],
    )
    return sample, told["types"]


def ask(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        with connection.makefile("rb") as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def family(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += family(int(child))
    return found


def growth(samples: Sequence[Sample], figure: str) -> float:
    """How much the straight line through the samples of a figure rises from the first to the last."""
    times, values = [s.seconds for s in samples], [float(getattr(s, figure)) for s in samples]
    return statistics.linear_regression(times, values).slope * (times[-1] - times[0])


def verdicts(samples: Sequence[Sample]) -> list[tuple[str, float, float, bool]]:
    """(figure, its mean in the last half, how much it grew there, whether that is too much)."""
    half = samples[len(samples) // 2 :]
    rows = []
    for figure, bound in BOUNDS.items():
        mean, grown = statistics.fmean(getattr(s, figure) for s in half), growth(half, figure)
        rows.append((figure, mean, grown, grown > max(bound * mean, LEAST[figure])))
    return rows
