"""Traces that cannot be exported are told of once, not at each attempt."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from toolway.telemetry.tracing import _LoggingExporter


def test_a_collector_that_is_away_is_told_of_once(caplog: pytest.LogCaptureFixture):
    exporter = _LoggingExporter(OTLPSpanExporter(endpoint="http://127.0.0.1:9/v1/traces", timeout=0.2))
    with caplog.at_level(logging.WARNING, logger="toolway.telemetry"):
        for _ in range(3):
            exporter.export([])
    exporter.shutdown()
    told = [record.message for record in caplog.records if record.name == "toolway.telemetry"]
    assert told == ["traces cannot be exported, and are lost until they can: is the collector there?"]
