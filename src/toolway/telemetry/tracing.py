"""OpenTelemetry traces: a subscriber that makes one trace of each conversation.

Switched on and steered by OpenTelemetry's own environment variables alone; needs the extra `otel`. Names are those of
the conventions for generative AI and MCP. Whoever asks the model server or a tool server within a span hands its
context on: as headers, and for MCP in `_meta`, which the MCP SDK writes.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import context as current
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.trace import Span, SpanKind, StatusCode

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
    Subscriber,
    TextBegan,
)
from toolway.conversation.message import ChatRequest, Message, optional_token_count
from toolway.errors import ConfigError, ToolwayError
from toolway.settings.settings import UpstreamSettings
from toolway.types import JSON, Caller, Tool, ToolCall
from toolway.upstream.client import TRACE_HEADERS
from toolway.wire.lenient_json import dumps_text

log = logging.getLogger("toolway.telemetry")

_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_PROVIDERS = {"api.openai.com": "openai", "api.mistral.ai": "mistral_ai", "api.groq.com": "groq"}
_OPTIONS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
}


class Tracing:
    """The exporters that the environment names; makes a subscriber for each conversation. Raises ConfigError."""

    def __init__(self, settings: UpstreamSettings) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "toolway"}
        self._ids = _Ids()
        # Asked before anything is made for a trace: nearly all are cheap then when few are sampled.
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler
        # Not the global provider: the spans that libraries would make beside ours say nothing new.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({**named, "service.version": __version__}),
            id_generator=self._ids,
        )
        for exporter in _exporters():
            self._provider.add_span_processor(BatchSpanProcessor(_LoggingExporter(exporter)))
        # Each failure is told many times over there; once is enough, and here.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.tracer = self._provider.get_tracer("toolway", __version__)
        url = urlsplit(settings.base_url)
        self.server: JSON = {
            "gen_ai.provider.name": _PROVIDERS.get(url.hostname or "", "openai"),
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        captured = os.environ.get(_CAPTURE, "").strip().lower()
        self.captures = captured in {"true", "span_only", "span_and_event"}
        self.is_mcp: Callable[[Tool], bool] = lambda _: False
        """Whether a tool is one of an MCP server."""

    def subscribe(self) -> Subscriber:
        """A subscriber for one conversation."""
        return ConversationTrace(self)

    def begin(self, event: ConversationBegan) -> Span | None:
        """The span of a conversation, in the trace that the client's headers name; None: it is not sampled."""
        parent, trace_id = _parent(event.caller), self._ids.next_trace_id()
        if self._sampler.should_sample(parent, trace_id, _ROOT).decision is not Decision.RECORD_AND_SAMPLE:
            return None
        attributes: JSON = {
            **self.server,
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "toolway",
            "gen_ai.request.model": str(event.model or "")[:200],
            "gen_ai.request.stream": event.streamed,
        }
        return self.tracer.start_span(_ROOT, context=parent, kind=SpanKind.INTERNAL, attributes=attributes)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def _exporters() -> list[Any]:
    names = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").lower().split(",")
    return [_exporter(name.strip()) for name in names if name.strip() not in {"", "none"}]


def _exporter(name: str) -> Any:
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    known = entry_points(group="opentelemetry_traces_exporter")
    if name not in known.names:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER: there is no exporter {name!r} here; installed: {', '.join(sorted(known.names))}."
        )
    return known[name].load()()


class _LoggingExporter(SpanExporter):
    """An exporter that says once that it cannot export, and once that it can again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export; the result of the exporter, which repeats by itself for a while."""
        result = self._exporter.export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            log.warning("traces cannot be exported, and are lost until they can: is the collector there?")
        elif self._fails and not fails:
            log.warning("traces are exported again")
        self._fails = fails
        return result

    def shutdown(self) -> None:
        """Export no more."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether all that was handed over is exported."""
        return self._exporter.force_flush(timeout_millis)


class _Ids(IdGenerator):
    """Random ids; the one of the next trace is known before, since the sampler decides by it."""

    def __init__(self) -> None:
        self._next: int | None = None

    def next_trace_id(self) -> int:
        """The id of the trace that begins next."""
        self._next = random.getrandbits(128) or 1
        return self._next

    def generate_trace_id(self) -> int:
        taken, self._next = self._next, None
        return taken or self.next_trace_id()

    def generate_span_id(self) -> int:
        return random.getrandbits(64) or 1


class ConversationTrace:
    """One conversation: `invoke_agent` over `chat MODEL` for each request to the model, and a span for each call."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._root: Span | None = None
        self._context = _NO_CONTEXT
        self._chat: Span | None = None
        self._calls: dict[str, Span] = {}
        self._requests = 0

    def __call__(self, event: Event) -> None:
        """Begin or end a span; a conversation that is not sampled goes on in the client's trace, as it came."""
        if self._root:
            if handler := _HANDLERS.get(type(event)):
                handler(self, self._root, event)
        elif type(event) is ConversationBegan and (root := self._tracing.begin(event)):
            self._root = root
            self._context = trace.set_span_in_context(root, Context())
            self._enter(self._context)

    def _enter(self, context: Context) -> None:
        """Make it the context of this task: never detached, since each task ends with its request or call."""
        current.attach(context)

    def _ask(self, _: Span, event: ModelAsked) -> None:
        self._requests += 1
        model = str(event.request.options.get("model") or "")[:200]
        attributes: JSON = {
            **self._tracing.server,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.request.stream": event.request.is_streamed,
            **_options(event.request),
        }
        if self._tracing.captures:
            attributes["gen_ai.input.messages"] = dumps_text(
                [_chat_message(m) for m in event.request.messages]
            )
        self._chat = self._tracing.tracer.start_span(
            f"chat {model}".strip(), context=self._context, kind=SpanKind.CLIENT, attributes=attributes
        )
        inner = trace.set_span_in_context(self._chat, self._context)
        self._enter(inner)
        TRACE_HEADERS.set(_headers(inner))

    def _text(self, _: Span, __: TextBegan) -> None:
        if self._chat:
            self._chat.add_event("gen_ai.first_text")

    def _answered(self, _: Span, event: ModelAnswered) -> None:
        if self._chat:
            self._chat.set_attributes(_answer(event.message))
            if self._tracing.captures:
                shown = [
                    {
                        **_chat_message(_as_message(event.message)),
                        "finish_reason": event.message.finish_reason,
                    }
                ]
                self._chat.set_attribute("gen_ai.output.messages", dumps_text(shown))
        self._end_chat()

    def _refused(self, _: Span, event: ModelFailed) -> None:
        if self._chat:
            _fail(self._chat, event.error)
        self._end_chat()

    def _end_chat(self) -> None:
        if self._chat:
            self._chat.end()
            self._chat = None
        self._enter(self._context)

    def _call(self, _: Span, event: CallBegan) -> None:
        attributes = _about(event.call, event.tool)
        name = attributes["gen_ai.tool.name"]
        if event.tool and self._tracing.is_mcp(event.tool):
            name = f"tools/call {name}"
            attributes["mcp.method.name"] = "tools/call"
        else:
            name = f"execute_tool {name}"
        span = self._tracing.tracer.start_span(
            name, context=self._context, kind=SpanKind.CLIENT, attributes=attributes
        )
        if self._tracing.captures:
            span.set_attribute("gen_ai.tool.call.arguments", event.call.arguments)
        self._calls[event.call.id] = span
        self._enter(trace.set_span_in_context(span, self._context))

    def _result(self, _: Span, event: CallEnded) -> None:
        span = self._calls.pop(event.call.id, None)
        if span is None:
            return
        if event.result.is_error:
            span.set_attribute("error.type", "tool_error")
            span.set_status(StatusCode.ERROR)
        if self._tracing.captures:
            span.set_attribute("gen_ai.tool.call.result", event.result.text)
        span.end()
        self._enter(self._context)

    def _ended(self, root: Span, event: ConversationEnded) -> None:
        outcome = event.outcome
        root.set_attributes(
            {
                **_usage(outcome.total_usage),
                "gen_ai.invoke_agent.inference_calls": self._requests,
                "gen_ai.invoke_agent.tool_calls": outcome.calls,
                "gen_ai.response.finish_reasons": [outcome.message.finish_reason or ""],
            }
        )
        self._close(root)

    def _failed(self, root: Span, event: ConversationFailed) -> None:
        _fail(root, event.error)
        self._close(root)

    def _client_left(self, root: Span, _: ClientLeft) -> None:
        root.set_attribute("error.type", "client_left")
        self._close(root)

    def _close(self, root: Span) -> None:
        for span in (*self._calls.values(), *([self._chat] if self._chat else [])):
            span.end()
        self._calls.clear()
        self._chat = None
        root.end()


_HANDLERS: dict[type, Callable[[ConversationTrace, Span, Any], None]] = {
    ModelAsked: ConversationTrace._ask,
    TextBegan: ConversationTrace._text,
    ModelAnswered: ConversationTrace._answered,
    ModelFailed: ConversationTrace._refused,
    CallBegan: ConversationTrace._call,
    CallEnded: ConversationTrace._result,
    ConversationEnded: ConversationTrace._ended,
    ConversationFailed: ConversationTrace._failed,
    ClientLeft: ConversationTrace._client_left,
}


def _parent(caller: Caller | None) -> Context:
    """The trace that the client's headers name."""
    carrier = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in (caller.headers if caller else ())
        if name in _PROPAGATED
    }
    return propagate.extract(carrier, Context()) if carrier else _NO_CONTEXT


def _headers(context: Context) -> tuple[tuple[bytes, bytes], ...]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in carrier.items())


_ROOT = "invoke_agent toolway"
_NO_CONTEXT = Context()
_PROPAGATED = frozenset(field.lower().encode("latin-1") for field in propagate.get_global_textmap().fields)


def _about(call: ToolCall, tool: Tool | None) -> JSON:
    about: JSON = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": (tool.name if tool else call.name)[:200],
        "gen_ai.tool.call.id": call.id,
        "gen_ai.tool.type": "extension",
    }
    if tool:
        about["toolway.server"] = tool.server
    return about


def _options(request: ChatRequest) -> JSON:
    found: JSON = {
        f"gen_ai.request.{name}": value
        for option, name in _OPTIONS.items()
        if isinstance(value := request.options.get(option), int | float)
    }
    stop = request.options.get("stop")
    if isinstance(stop, str | list):
        found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else [str(s) for s in stop]
    return found


def _answer(message: Message) -> JSON:
    frame = message.frame
    found = {"gen_ai.response.id": frame.get("id"), "gen_ai.response.model": frame.get("model")}
    return {
        **{name: value for name, value in found.items() if isinstance(value, str)},
        **_usage(message.usage),
        "gen_ai.response.finish_reasons": [message.finish_reason or ""],
    }


def _usage(usage: JSON | None) -> JSON:
    paths: Mapping[str, Sequence[str]] = {
        "input_tokens": ("prompt_tokens",),
        "output_tokens": ("completion_tokens",),
        "cache_read.input_tokens": ("prompt_tokens_details", "cached_tokens"),
        "reasoning.output_tokens": ("completion_tokens_details", "reasoning_tokens"),
    }
    found = {name: optional_token_count(usage, *path) for name, path in paths.items()}
    return {f"gen_ai.usage.{name}": tokens for name, tokens in found.items() if tokens is not None}


def _fail(span: Span, error: ToolwayError) -> None:
    span.set_attribute("error.type", error.code or str(error.status))
    span.set_status(StatusCode.ERROR, error.message[:500])


def _as_message(message: Message) -> JSON:
    calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return {"role": "assistant", **message.fields, "tool_calls": calls}


def _chat_message(message: Any) -> JSON:
    """A chat message in the form of the conventions: its role and its parts."""
    if not isinstance(message, dict):
        return {"role": "user", "parts": [{"type": "text", "content": str(message)}]}
    content = message.get("content")
    if message.get("role") == "tool":
        part = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return {"role": "tool", "parts": [part]}
    parts: list[JSON] = []
    if isinstance(content, str) and content:
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts += [_part(part) for part in content]
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {} if isinstance(call, dict) else {}
        parts.append({"type": "tool_call", "id": call.get("id"), **function})
    return {"role": str(message.get("role")), "parts": parts}


def _part(part: Any) -> JSON:
    if isinstance(part, dict) and part.get("type") == "text":
        return {"type": "text", "content": part.get("text")}
    return part if isinstance(part, dict) else {"type": "text", "content": str(part)}
