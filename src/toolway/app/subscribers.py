"""What subscribes to the events of conversations: the log always, metrics and traces where they are asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from toolway.app.state import AppState
from toolway.conversation.events import Subscribe
from toolway.settings.groups import UpstreamSettings
from toolway.telemetry.conversation_log import log_conversation
from toolway.types import SourceStatus, Tool

if TYPE_CHECKING:
    from toolway.telemetry.tracing import Tracing

log = logging.getLogger("toolway.telemetry")

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def open_tracing(settings: UpstreamSettings) -> Tracing | None:
    """Traces, where OpenTelemetry's variables ask for them and its SDK is here. Raises ConfigError."""
    if not wants_traces(os.environ):
        return None
    try:
        from toolway.telemetry.tracing import Tracing  # noqa: PLC0415 - needs an extra
    except ImportError:  # machines set these variables for every program
        log.warning(
            "no traces: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_TRACES_EXPORTER is set, but OpenTelemetry's SDK is not "
            'installed; install Toolway with the extra "otel"'
        )
        return None
    return Tracing(settings)


def wants_traces(env: Mapping[str, str]) -> bool:
    """Whether the environment says, in OpenTelemetry's variables, that traces are to be exported."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter != "none" and bool(exporter or any(env.get(name) for name in _ENDPOINTS))


@asynccontextmanager
async def open_subscribers(state: AppState, traces: Tracing | None) -> AsyncIterator[list[Subscribe]]:
    """The subscribers of each conversation; figures and traces are collected while the block lasts."""
    subscribers: list[Subscribe] = [log_conversation]

    def is_mcp(tool: Tool) -> bool:
        return any(s.label == tool.server and s.kind == "mcp" for s in state.catalog.sources)

    def statuses() -> list[tuple[str, SourceStatus]]:
        return [(source.label, source.status) for source in state.catalog.sources]

    if traces:
        traces.is_mcp = is_mcp
        subscribers.insert(0, traces.subscribe)  # so that the lines of the log are in the trace
    async with anyio.create_task_group() as tasks:
        if state.settings.metrics.address:
            from toolway.telemetry import metrics  # noqa: PLC0415 - needs 14 MB

            subscribers.append(metrics.ConversationMetrics)
            tasks.start_soon(metrics.sample, statuses)
        try:
            yield subscribers
        finally:
            tasks.cancel_scope.cancel()
            if traces:
                await anyio.to_thread.run_sync(traces.close)
