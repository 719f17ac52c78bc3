"""A collector of OpenTelemetry traces: takes OTLP over HTTP and decodes it by the protocol's own messages."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.types import Receive, Scope, Send

from tests.support.gate import DEADLINE


@dataclass(frozen=True)
class SpanSeen:
    """A span as it came; ids are hexadecimal, `parent` is empty at the root."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    kind: int
    attributes: dict[str, Any]
    is_error: bool


class Collector:
    """The collector as an ASGI app for POST /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[SpanSeen] = []
        self._news = threading.Condition()

    def named(self, *names: str) -> list[SpanSeen]:
        """The first span of each name, as soon as all are there."""
        with self._news:
            there = self._news.wait_for(lambda: {*names} <= {s.name for s in self.spans}, DEADLINE)
            assert there, [span.name for span in self.spans]
            return [next(span for span in self.spans if span.name == name) for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["method"], scope["path"]) == ("POST", "/v1/traces")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if (b"content-encoding", b"gzip") in scope["headers"]:
            body = gzip.decompress(body)
        with self._news:
            self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self._news.notify_all()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})


def _spans(request: Any) -> list[SpanSeen]:
    return [
        SpanSeen(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            kind=span.kind,
            attributes={a.key: _value(a.value) for a in span.attributes},
            is_error=span.status.code == 2,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
