"""Instruments: counters, gauges and histograms that cost a request next to nothing, and their sum over all workers.

prometheus_client writes the exposition. Its own metrics take a lock and look up their labels at each step, which
costs a fifth of a request here; its files for several processes more. These are plain dicts of one event loop; with
several workers each writes them into a common directory, once a second, and whoever is asked adds them up.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Labels = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The buckets that OpenTelemetry's conventions for MCP name."""

DIRECTORY = "TOOLWAY_METRICS_DIRECTORY"
"""Variable that names the common directory to the workers of one process."""

_MERGE: Mapping[str, Callable[[Sequence[float]], float]] = {"sum": sum, "min": min, "max": max}


class Instrument:
    """One metric of this process. Gauges of several workers are merged by `merge`."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        merge: Literal["sum", "min", "max"] = "sum",
        buckets: Sequence[float] = SECONDS,
    ) -> None:
        self.kind, self.name, self.text, self.labels = kind, f"toolway_{name}", text, tuple(labels)
        self.merge, self.buckets = merge, buckets
        self.values: defaultdict[Labels, Any] = defaultdict(self._zeros if kind == "histogram" else float)

    def _zeros(self) -> list[float]:
        """A count for each bucket and one for what is above all, then the sum."""
        return [0.0] * (len(self.buckets) + 2)

    def add(self, *labels: str, by: float = 1) -> None:
        """Count; with a negative number, of a gauge, down."""
        self.values[labels] += by

    def set(self, value: float, *labels: str) -> None:
        """A gauge stands at this value."""
        self.values[labels] = value

    def observe(self, value: float, *labels: str) -> None:
        """Count a value of a histogram."""
        counts = self.values[labels]
        counts[bisect_left(self.buckets, value)] += 1
        counts[-1] += value

    def family(self, workers: Sequence[Mapping[Labels, Any]]) -> Metric:
        """The metric of all workers together, as prometheus_client writes it."""
        found: defaultdict[Labels, list[Any]] = defaultdict(list)
        for values in workers:
            for labels, value in values.items():
                found[labels].append(value)
        if self.kind == "histogram":
            histogram = HistogramMetricFamily(self.name, self.text, labels=self.labels)
            for labels, several in found.items():
                histogram.add_metric(
                    labels, *self._cumulated([sum(column) for column in zip(*several, strict=True)])
                )
            return histogram
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family: Any = make(self.name, self.text, labels=self.labels)
        for labels, several in found.items():
            family.add_metric(labels, _MERGE[self.merge](several))
        return family  # type: ignore[no-any-return]

    def _cumulated(self, counts: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
        total, pairs = 0.0, []
        for bound, count in zip((*map(str, self.buckets), "+Inf"), counts[:-1], strict=True):
            total += count
            pairs.append((bound, total))
        return pairs, counts[-1]


class AllWorkers(Collector):
    """Collects the values of this process, or of all workers that write into the common directory."""

    def __init__(self, instruments: Sequence[Instrument]) -> None:
        self._instruments = instruments

    def collect(self) -> Iterator[Metric]:
        """Each metric once. Counters of workers that ended stay in the sum, their gauges do not."""
        folder = os.environ.get(DIRECTORY)
        if not folder:
            for instrument in self._instruments:
                yield instrument.family([dict(instrument.values)])
            return
        workers = [
            (int(path.stem), orjson.loads(path.read_bytes())) for path in sorted(Path(folder).glob("*.json"))
        ]
        for instrument in self._instruments:
            yield instrument.family(
                [
                    {tuple(labels): value for labels, value in written.get(instrument.name, ())}
                    for pid, written in workers
                    if instrument.kind != "gauge" or _is_alive(pid)
                ]
            )


def write_for_all(instruments: Sequence[Instrument]) -> None:
    """Write this worker's values into the common directory, if there is one."""
    if folder := os.environ.get(DIRECTORY):
        written = {instrument.name: list(instrument.values.items()) for instrument in instruments}
        new = Path(folder) / f"{os.getpid()}.new"
        new.write_bytes(orjson.dumps(written))
        new.replace(new.with_suffix(".json"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
