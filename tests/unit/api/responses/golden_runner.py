"""What happens in a conversation, written down as JSON, told to a writer."""

from __future__ import annotations

from typing import Any

from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.request import read_request
from toolway.api.responses.items.response_object import Event
from toolway.conversation.message import Message
from toolway.errors import ToolwayError, TooMany, UpstreamError
from toolway.types import JSON, Tool, ToolCall, ToolResult

IDENTITY = "resp_0"
SCHEMA = {"type": "object", "properties": {"a": {"type": "number"}}}
TOOL = Tool(name="add", server="calc", description="Adds", parameters=SCHEMA)
HIDDEN = Tool(name="look", server="hidden", description="Looks", parameters=SCHEMA)
TOOLS = {"add": TOOL, "look": HIDDEN}
ERRORS: dict[str, type[ToolwayError]] = {"upstream": UpstreamError, "many": TooMany}


def writer_of(body: JSON) -> EventWriter:
    return EventWriter(read_request(body), IDENTITY, now=lambda: 1_700_000_000.9)


def run_steps(writer: EventWriter, steps: list[list[Any]]) -> list[Event]:
    """The events of a list of steps, each a name and what belongs to it."""
    events: list[Event] = []
    for name, *rest in steps:
        events += _STEPS[name](writer, *rest)
    return events


def chunk(delta: JSON, logprobs: Any = None) -> tuple[JSON, None]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": logprobs}]}, None


def call(id: str = "1", name: str = "add", arguments: str = '{"a": 1}') -> ToolCall:
    return ToolCall(id=id, name=name, arguments=arguments)


def fragment(index: int, text: str, *begin: str) -> JSON:
    """A fragment of a call of the client's as `MessageBuilder` passes it on; the first has an id and a name."""
    inner: JSON = {"arguments": text}
    if not begin:
        return {"index": index, "function": inner}
    identity, name = begin
    return {"index": index, "id": identity, "type": "function", "function": {"name": name, **inner}}


def _delta(writer: EventWriter, delta: JSON, logprobs: Any = None) -> list[Event]:
    return writer.chunks([chunk(delta, logprobs)])


def _text(writer: EventWriter, *texts: str) -> list[Event]:
    return writer.chunks([(text, b"") for text in texts])


def _calls(writer: EventWriter, *fragments: list[Any]) -> list[Event]:
    return writer.chunks([chunk({"tool_calls": [fragment(*one) for one in fragments]})])


def _listed(writer: EventWriter, label: str, error: str | None = None) -> list[Event]:
    return writer.tools_listed(label, [] if error else [TOOL], error)


def _call_began(writer: EventWriter, made: JSON, request: str | None = None) -> list[Event]:
    return writer.call_began(call(**made), TOOLS.get(call(**made).name), request)


def _call_ended(writer: EventWriter, made: JSON, text: str, is_error: bool = False) -> list[Event]:
    return writer.call_ended(call(**made), ToolResult(text=text, is_error=is_error))


def _ended(writer: EventWriter, finish: str = "stop", usage: JSON | None = None, **frame: Any) -> list[Event]:
    said = {"role": "assistant", "content": ""}
    return writer.ended(Message(fields=said, finish_reason=finish, frame={"model": "m-1", **frame}), usage)


_STEPS: dict[str, Any] = {
    "queued": EventWriter.queued,
    "began": EventWriter.began,
    "listed": _listed,
    "delta": _delta,
    "text": _text,
    "calls": _calls,
    "turned": EventWriter.turn_ended,
    "call_began": _call_began,
    "call_ended": _call_ended,
    "pending_approvals": lambda writer, made: writer.approval_requested(call(**made), TOOL)[1],
    "ended": _ended,
    "completed_empty": EventWriter.completed_empty,
    "failed": lambda writer, kind, message: writer.failed(ERRORS[kind](message)),
}
