"""Samples of many rounds -> medians, ratios to nginx, and whether the goals are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.measure import Sample

Samples = dict[str, dict[str, list[Sample]]]
"""Scenario -> target -> one sample for each round."""

FIGURES = ("rate", "cpu_us", "busy", "first_us", "p50_us", "p99_us", "chunk_us")


def median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def by_round(
    samples: Samples,
    ours: tuple[str, str],
    theirs: tuple[str, str],
    combine: Callable[[Sample, Sample], float],
) -> float | None:
    """The median of a comparison within each round, so that a slow moment of the machine falls on both sides.

    `ours` and `theirs` are (scenario, target).
    """
    pairs = zip(find(samples, ours), find(samples, theirs), strict=False)
    try:
        return median(combine(a, b) for a, b in pairs)
    except (TypeError, ZeroDivisionError):  # one side has no answer at all
        return None


def find(samples: Samples, place: tuple[str, str]) -> list[Sample]:
    scenario, target = place
    return samples.get(scenario, {}).get(target, [])


def rate_ratio(a: Sample, b: Sample) -> float:
    return float(a["rate"] / b["rate"])


def summarise(samples: Samples) -> dict[str, dict[str, Any]]:
    """Scenario -> target -> median figures, `of_nginx` and `of_envoy` (ratios of the rates), `faults` (a sum)."""
    return {
        scenario: {target: figures(samples, scenario, target) for target in by_target}
        for scenario, by_target in samples.items()
    }


def figures(samples: Samples, scenario: str, target: str) -> dict[str, Any]:
    rounds = samples[scenario][target]
    return {
        **{figure: median(one[figure] for one in rounds) for figure in FIGURES},
        "of_nginx": by_round(samples, (scenario, target), (scenario, "nginx"), rate_ratio),
        "of_envoy": by_round(samples, (scenario, target), (scenario, "envoy"), rate_ratio),
        "faults": sum(one["faults"] for one in rounds),
        "complaint": next((one["complaint"] for one in rounds if one["complaint"]), ""),
    }


@dataclass(frozen=True, kw_only=True)
class Goal:
    text: str
    limit: float
    value: float | None
    at_least: bool = False
    digits: int = 2

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "NOT MET"

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def goals(
    samples: Samples, idle_memory: Mapping[str, Mapping[str, float]], held: dict[str, dict[str, Any]]
) -> list[Goal]:
    def against(
        rival: str, scenario: str, combine: Callable[[Sample, Sample], float] = rate_ratio
    ) -> float | None:
        return by_round(samples, (scenario, "toolway"), (scenario, rival), combine)

    def share_of_envoy(text: str, scenario: str, limit: float) -> Goal:
        return Goal(
            text=f"{text}: share of Envoy's", limit=limit, value=against("envoy", scenario), at_least=True
        )

    def held_memory(streams: str, scenario: str, limit: float) -> Goal:
        one = held.get(scenario, {})
        is_right = one and not one["faults"] and one["held"] == one["streams"]
        text = f"The same at its peak, with {streams} paced streams at once (MB)"
        return Goal(text=text, limit=limit, value=one["peak_mb"] if is_right else None, digits=0)

    return [
        share_of_envoy("Whole answers/s, 16 at a time, 20 tools added and none called", "whole-16", 0.7),
        share_of_envoy("The same, one at a time", "whole-1", 1.0),
        share_of_envoy("Streamed events/s, 16 at a time", "stream-16", 0.8),
        Goal(
            text="Streamed events/s, 16 at a time, 20 tools added and none called: share of nginx's",
            limit=0.8,
            value=against("nginx", "stream-16"),
            at_least=True,
        ),
        Goal(
            text="Whole answers/s, 16 at a time: share of nginx's",
            limit=0.08,
            value=against("nginx", "whole-16"),
            at_least=True,
            digits=3,
        ),
        Goal(
            text="Time to the first byte added to nginx's, one stream (ms)",
            limit=1.0,
            value=against("nginx", "first-byte", lambda a, b: (a["first_us"] - b["first_us"]) / 1000),
        ),
        Goal(
            text="Resident memory after the start, no load yet (MB)",
            limit=70,
            value=idle_memory.get("toolway", {}).get("rss"),
            digits=0,
        ),
        held_memory("1,000", "held-1000", 150),
        held_memory("10,000", "held-10000", 600),
        Goal(
            text="CPU time of a streamed event over the Responses API, 16 at a time: times that in chat completions",
            limit=3,
            value=by_round(
                samples,
                ("response-16", "toolway"),
                ("stream-16", "toolway"),
                lambda a, b: a["cpu_us"] / b["cpu_us"],
            ),
        ),
        Goal(
            text="CPU time of a streamed event over the Messages API, 16 at a time: times that in chat completions",
            limit=1.6,
            value=by_round(
                samples,
                ("message-16", "toolway"),
                ("stream-16", "toolway"),
                lambda a, b: a["cpu_us"] / b["cpu_us"],
            ),
        ),
        Goal(
            text="One streamed tool round over the sum of its parts (ms)",
            limit=0.6,
            value=over_the_parts(samples),
        ),
        Goal(
            text="CPU time that 200 tools cost over 20: times what Envoy pays for passing those bytes on",
            limit=1.15,
            value=price_of_bytes(samples),
        ),
        Goal(
            text="CPU time of a whole answer with 200 tools that are searched: times that with no tools",
            limit=1.15,
            value=by_round(
                samples,
                ("tools-16", "toolway-search"),
                ("tools-16", "toolway-0"),
                lambda a, b: a["cpu_us"] / b["cpu_us"],
            ),
        ),
    ]


def price_of_bytes(samples: Samples) -> float | None:
    """What 180 definitions more cost Toolway, which adds them, by what they cost Envoy, which reads them too."""
    ours, theirs = (
        by_round(samples, more, less, lambda a, b: a["cpu_us"] - b["cpu_us"])
        for more, less in (
            (("tools-16", "toolway-200"), ("tools-16", "toolway")),
            (("bytes-200", "envoy"), ("bytes-20", "envoy")),
        )
    )
    return ours / theirs if ours is not None and theirs else None


def over_the_parts(samples: Samples) -> float | None:
    """Milliseconds that a tool round takes more than its three exchanges take without Toolway."""
    total = median(one["p50_us"] for one in find(samples, ("tool-streamed-1", "toolway")))
    parts = [
        median(one["p50_us"] for one in find(samples, (part, "direct")))
        for part in ("part-call", "part-tool", "part-answer")
    ]
    if total is None or None in parts:
        return None
    return (total - sum(part for part in parts if part)) / 1000
