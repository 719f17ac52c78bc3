"""Prometheus metrics: what happens in conversations, HTTP requests, tool servers and this process, counted.

Needed only when TOOLWAY_METRICS is set. prometheus_client writes the exposition. Its own metrics take a lock and look
up their labels at each step, which costs a fifth of a request here; its files for several processes more. These are
plain dicts of one event loop; several workers write theirs into a common directory, and whoever is asked adds them up.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from toolway import __version__
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    Event,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    TextBegan,
)
from toolway.conversation.message import token_count
from toolway.types import SourceStatus, Tool

Labels = tuple[str, ...]
MetricType = Literal["counter", "gauge", "histogram"]

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""The buckets that OpenTelemetry's conventions for MCP name."""

DIRECTORY = "TOOLWAY_METRICS_DIRECTORY"
"""Variable that names the common directory to the workers of one process."""

_MERGE: Mapping[str, Callable[[Sequence[float]], float]] = {"sum": sum, "min": min, "max": max}


class Instrument:
    """One metric of this process. Gauges of several workers are merged by `merge`."""

    def __init__(
        self,
        kind: MetricType,
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


MAX_MODELS = 50
"""Models that have figures of their own; clients choose the names, and what comes after is "other"."""

MAX_TOOLS = 2000
"""The same for tools: servers that requests bring along have any names they like."""

SAMPLE_SECONDS = 1.0
"""Between two looks at the event loop, the tool servers and the process."""

_counter, _gauge, _histogram = (partial(Instrument, kind) for kind in ("counter", "gauge", "histogram"))

HTTP_REQUESTS = _counter(
    "http_requests",
    "Requests by route and status.",
    ("method", "route", "status"),
)
CONVERSATIONS = _counter(
    "conversations",
    "Conversations by how they ended.",
    ("model", "streamed", "outcome"),
)
CONVERSATION_SECONDS = _histogram(
    "conversation_seconds",
    "From a request to its end.",
    ("model", "streamed"),
)
OPEN = _gauge("conversations_open", "Conversations under way.", ("streamed",))
FIRST_TEXT_SECONDS = _histogram("time_to_first_text_seconds", "From a request to its first text.", ("model",))
ROUNDS = _counter("rounds", "Rounds of finished conversations.", ("model",))
MODEL_SECONDS = _histogram(
    "model_seconds", "From a request to the model server to its whole answer.", ("model",)
)
MODEL_FAILURES = _counter(
    "model_failures",
    "Requests that the model server refused or did not answer.",
    ("model", "code"),
)
RETRIES = _counter("model_retries", "Requests asked again in another way in the same round.", ("model",))
TOKENS = _counter(
    "tokens",
    "Tokens that the model server counted, in all rounds.",
    ("model", "kind"),
)
CALLS = _counter(
    "tool_calls",
    "Calls of tools by how they ended.",
    ("server", "tool", "outcome"),
)
CALL_SECONDS = _histogram(
    "tool_seconds",
    "From a call to its result.",
    ("server", "tool"),
)
CALLS_OPEN = _gauge("tool_calls_open", "Calls of tools under way.")
SERVER_READY = _gauge(
    "tool_server_ready", "1 for a tool server that is ready, else 0.", ("server",), merge="min"
)
SERVER_TOOLS = _gauge("tool_server_tools", "Tools of a tool server.", ("server",), merge="max")
LOOP_LAG = _histogram(
    "event_loop_lag_seconds",
    "How much later than asked the event loop wakes; one sample a second for each worker.",
    buckets=(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
CPU_SECONDS = _counter("cpu_seconds", "CPU time of all workers.")
RESIDENT_BYTES = _gauge("resident_memory_bytes", "Resident memory of all workers.")
INFO = _gauge("build_info", "1; the version is a label.", ("version",), merge="max")

INSTRUMENTS = [value for value in list(globals().values()) if isinstance(value, Instrument)]

_KINDS = {
    "input": ("prompt_tokens",),
    "output": ("completion_tokens",),
    "cached": ("prompt_tokens_details", "cached_tokens"),
    "reasoning": ("completion_tokens_details", "reasoning_tokens"),
}


class _BoundedLabels:
    """Label values of a bounded number; those that come after are "other"."""

    def __init__(self, limit: int) -> None:
        self._known: set[Any] = set()
        self._limit = limit

    def __contains__(self, value: Any) -> bool:
        if value not in self._known and len(self._known) < self._limit:
            self._known.add(value)
        return value in self._known


_models, _tools = _BoundedLabels(MAX_MODELS), _BoundedLabels(MAX_TOOLS)


class ConversationMetrics:
    """A subscriber that counts one conversation."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._asked = self._began
        self._model = "other"
        self._streamed = "false"
        self._is_open = False
        self._requests = 0
        self._calls = 0

    def __del__(self) -> None:
        # Some end without a word: several answers to one request, a client that left before the first round.
        self._close("other")

    def __call__(self, event: Event) -> None:
        """Count an event; most are none of ours."""
        if handler := _HANDLERS.get(type(event)):
            handler(self, event)

    def _on_began(self, event: ConversationBegan) -> None:
        model = event.model if isinstance(event.model, str) and event.model else "default"
        self._model = model[:200] if model in _models else "other"
        self._streamed = "true" if event.streamed else "false"
        self._is_open = True
        OPEN.add(self._streamed)

    def _on_asked(self, _: ModelAsked) -> None:
        self._requests += 1
        self._asked = time.perf_counter()

    def _on_answered(self, _: ModelAnswered) -> None:
        MODEL_SECONDS.observe(time.perf_counter() - self._asked, self._model)

    def _on_failure(self, event: ModelFailed) -> None:
        code = event.error.code or event.error.status
        MODEL_FAILURES.add(self._model, _code(code))

    def _on_text(self, _: TextBegan) -> None:
        FIRST_TEXT_SECONDS.observe(time.perf_counter() - self._began, self._model)

    def _on_call(self, _: CallBegan) -> None:
        CALLS_OPEN.add()
        self._calls += 1

    def _on_result(self, event: CallEnded) -> None:
        CALLS_OPEN.add(by=-1)
        self._calls -= 1
        labels = _labels(event.tool)
        CALLS.add(*labels, "error" if event.result.is_error else "ok")
        CALL_SECONDS.observe(event.seconds, *labels)

    def _on_end(self, event: ConversationEnded) -> None:
        outcome = event.outcome
        ROUNDS.add(self._model, by=outcome.rounds)
        if self._requests > outcome.rounds:
            RETRIES.add(self._model, by=self._requests - outcome.rounds)
        for kind, path in _KINDS.items():
            if tokens := token_count(outcome.total_usage, *path):
                TOKENS.add(self._model, kind, by=tokens)
        self._close("ok")

    def _on_error(self, event: ConversationFailed) -> None:
        self._close(str(event.error.status))

    def _on_left(self, _: ClientLeft) -> None:
        self._close("client left")

    def _close(self, outcome: str) -> None:
        if not self._is_open:
            return
        self._is_open = False
        OPEN.add(self._streamed, by=-1)
        CALLS_OPEN.add(by=-self._calls)  # those that ended with the request
        self._calls = 0
        CONVERSATIONS.add(self._model, self._streamed, outcome)
        seconds = time.perf_counter() - self._began
        CONVERSATION_SECONDS.observe(seconds, self._model, self._streamed)


_HANDLERS: dict[type, Callable[[ConversationMetrics, Any], None]] = {
    ConversationBegan: ConversationMetrics._on_began,
    ModelAsked: ConversationMetrics._on_asked,
    ModelAnswered: ConversationMetrics._on_answered,
    ModelFailed: ConversationMetrics._on_failure,
    TextBegan: ConversationMetrics._on_text,
    CallBegan: ConversationMetrics._on_call,
    CallEnded: ConversationMetrics._on_result,
    ConversationEnded: ConversationMetrics._on_end,
    ConversationFailed: ConversationMetrics._on_error,
    ClientLeft: ConversationMetrics._on_left,
}


def _labels(tool: Tool | None) -> tuple[str, str]:
    if tool is None:
        return "none", "unknown"
    labels = tool.server[:100], tool.name[:100]
    return labels if labels in _tools else ("other", "other")


_CODES = _BoundedLabels(100)


def _code(code: object) -> str:
    text = str(code)[:100]
    return text if text in _CODES else "other"


async def sample(statuses: Callable[[], Sequence[tuple[str, SourceStatus]]]) -> None:
    """Look at the event loop, the tool servers (label and status) and the process, once a second until cancelled."""
    INFO.set(1, __version__)
    cpu = 0.0
    try:
        while True:
            due = anyio.current_time() + SAMPLE_SECONDS
            SERVER_READY.values.clear()
            SERVER_TOOLS.values.clear()
            for label, status in statuses():
                SERVER_READY.set(status.state == "ready", label)
                SERVER_TOOLS.set(len(status.tools), label)
            now = time.process_time()
            CPU_SECONDS.add(by=now - cpu)
            cpu = now
            if resident := _resident_bytes():
                RESIDENT_BYTES.set(resident)
            write_for_all(INSTRUMENTS)
            await anyio.sleep_until(due)
            LOOP_LAG.observe(max(0.0, anyio.current_time() - due))
    finally:
        write_for_all(INSTRUMENTS)


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
