"""What happens in a conversation with tools -> the items and events of one response."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from toolway.api.responses.items.content import text_in, thought_in
from toolway.api.responses.items.delta_streams import Function, Speech
from toolway.api.responses.items.input_items import sealed
from toolway.api.responses.items.logprobs import read_logprobs
from toolway.api.responses.items.request import Asked
from toolway.api.responses.items.response_object import new_resource, published, read_usage
from toolway.api.responses.items.response_state import Event, Output
from toolway.api.responses.items.tools import CUSTOM_INPUT
from toolway.api.responses.items.turn_builder import round_mark
from toolway.conversation.message import Message
from toolway.conversation.tool_calls import read_arguments
from toolway.errors import ToolwayError
from toolway.types import JSON, Tool, ToolCall, ToolResult
from toolway.wire.lenient_json import mended, mended_all

Items = Iterable[tuple[JSON | str, bytes | None]]

_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by the finish_reason."""

_ANSWERS = frozenset({"message", "function_call", "custom_tool_call", "mcp_approval_request"})
"""Items that are an answer to the client; a complete response has one."""


__all__ = ["Event", "Narrator"]


class Narrator:
    """Writes one response. Each method returns the events of what it was told; `resource` is the object so far.

    Every event has the next `sequence_number`. Reasoning, text and calls of the client are items as they come. A call
    of a server that the client declared is an item too; of others there is no trace. `now` gives Unix time in seconds.
    """

    def __init__(self, asked: Asked, identity: str, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._out = Output(new_resource(asked, identity, int(now())))
        self._asked = asked
        self._declared = frozenset(entry["server_label"] for entry in asked.mcp)
        self._speech: Speech | None = None
        self._functions: dict[int, Function] = {}
        self._mcp_calls: dict[str, int] = {}
        self._round = 0
        self.calls = 0
        """How many calls of ours began, seen by the client or not."""

    @property
    def resource(self) -> JSON:
        """The response as it is now; it does not change when more happens."""
        return self._out.resource

    @property
    def started(self) -> bool:
        """Whether any event was told."""
        return self._out.has_begun

    def queued(self) -> list[Event]:
        """The response exists, and waits for its turn."""
        self._out.frame["status"] = "queued"
        return [self._out.whole("response.created"), self._out.whole("response.queued")]

    def began(self) -> list[Event]:
        """The model server works at the response."""
        created = [] if self._out.has_begun else [self._out.whole("response.created")]
        self._out.frame["status"] = "in_progress"
        return [*created, self._out.whole("response.in_progress")]

    def listed(self, label: str, tools: Sequence[Tool], error: str | None = None) -> list[Event]:
        """The tools of a server that the client declared, or why there are none."""
        # What is empty here is left out or an empty object: AI SDK takes no null.
        item: JSON = {"type": "mcp_list_tools", "server_label": label, "tools": []}
        index, events = self._out.add("mcpl", item)
        events.append(self._out.about(index, "response.mcp_list_tools.in_progress"))
        told = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.parameters,
                "annotations": {},
            }
            for tool in tools
        ]
        events.append(self._out.about(index, f"response.mcp_list_tools.{'failed' if error else 'completed'}"))
        return [*events, self._out.done(index, tools=told, **({"error": error} if error else {}))]

    def turned(self) -> list[Event]:
        """A turn of the model is over: what it was saying is whole."""
        self._round += 1
        return self._close()

    def said(self, items: Items) -> list[Event]:
        """What one read from the model server brought for the client (`turn.Chunks`)."""
        events: list[Event] = []
        for item, _ in items:
            if isinstance(item, str):
                speech = self._speech
                if speech is not None and speech.kind == "output_text":
                    events.append(speech.more(item, self._out.numbered()))  # nearly all there is
                else:
                    events += self._speak("output_text", item)
            elif item.get("choices"):
                choice = item["choices"][0]
                events += self._delta(choice["delta"], choice.get("logprobs"))
        return events

    def recalled(self, messages: Iterable[JSON]) -> list[Event]:
        """What the model said in rounds of an earlier attempt at this request, which are not run again."""
        events: list[Event] = []
        for message in messages:
            if message["role"] == "assistant":
                said = {name: value for name, value in message.items() if name != "tool_calls"}
                events += [*self._delta(said, None), *self._close()]
        return events

    def call_began(self, call: ToolCall, tool: Tool | None, request: str | None = None) -> list[Event]:
        """A call of ours is about to run; `request` is the approval request that let it."""
        self.calls += 1
        if tool is None or tool.server not in self._declared:
            return []
        events = self._close()
        item = {
            "type": "mcp_call",
            "approval_request_id": request,
            "server_label": tool.server,
            "name": tool.name,
            "arguments": "",
            "output": None,
            "error": None,
            "status": "in_progress",
        }
        index, added = self._out.add("mcp", item, made_in=round_mark(self._round))
        self._mcp_calls[call.id] = index
        events += [*added, self._out.about(index, "response.mcp_call.in_progress")]
        arguments = _arguments(call)
        events.append(self._out.about(index, "response.mcp_call_arguments.delta", delta=arguments))
        events.append(self._out.about(index, "response.mcp_call_arguments.done", arguments=arguments))
        self._out.change(index, arguments=arguments)
        return events

    def call_ended(self, call: ToolCall, result: ToolResult) -> list[Event]:
        """A call of ours has its result."""
        index = self._mcp_calls.pop(call.id, None)
        if index is None:
            return []
        text = mended(result.text)
        if result.is_error:
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
            return [
                self._out.about(index, "response.mcp_call.failed"),
                self._out.done(index, status="failed", error=error),
            ]
        return [
            self._out.about(index, "response.mcp_call.completed"),
            self._out.done(index, status="completed", output=text),
        ]

    def asked_for(self, call: ToolCall, tool: Tool) -> tuple[str, list[Event]]:
        """A call that waits for an approval; also returns the id of the request."""
        events = self._close()
        item = {
            "type": "mcp_approval_request",
            "server_label": tool.server,
            "name": tool.name,
            "arguments": _arguments(call),
        }
        index, added = self._out.add("mcpr", item, made_in=round_mark(self._round))
        return self._out.items[index]["id"], [*events, *added, self._out.done(index)]

    def ended(self, message: Message, usage: JSON | None) -> list[Event]:
        """The answer is whole."""
        cut = _CUT.get(message.finish_reason or "")
        status = "incomplete" if cut else "completed"
        events = self._close(status)
        if not cut and not any(item["type"] in _ANSWERS for item in self._out.items):
            events += [*self._begin_speech("output_text")[1], *self._close()]
        frame = message.frame
        self._out.frame |= {
            "status": status,
            "incomplete_details": {"reason": cut} if cut else None,
            "completed_at": None if cut else self._completed_at(),
            "usage": read_usage(usage),
        }
        if isinstance(model := frame.get("model"), str) and model:
            self._out.frame["model"] = mended(model)
        if tier := published("service_tier", frame.get("service_tier")):
            self._out.frame["service_tier"] = tier
        return [*events, self._out.whole(f"response.{status}")]

    def completed_empty(self) -> list[Event]:
        """Nothing was generated, as the client wanted."""
        self._out.frame |= {"status": "completed", "completed_at": self._completed_at()}
        return [self._out.whole("response.completed")]

    def failed(self, error: ToolwayError) -> list[Event]:
        """The answer will never be whole."""
        events = self._break_off()
        envelope = mended_all(error.envelope())
        code, message, param = (envelope["error"][name] for name in ("code", "message", "param"))
        told = {"code": code, "message": message, "param": param if isinstance(param, str) else None}
        self._out.frame |= {
            "status": "failed",
            "error": {
                "code": "rate_limit_exceeded" if error.status == 429 else "server_error",
                "message": message,
            },
        }
        # The documents of OpenAI have these three, its server and Open Responses an object.
        return [*events, self._out.event("error", {**told, **envelope}), self._out.whole("response.failed")]

    def cancelled(self) -> None:
        """Somebody cancelled the response."""
        self._break_off()
        self._out.frame["status"] = "cancelled"

    def _completed_at(self) -> int:
        created_at: int = self._out.frame["created_at"]
        return max(int(self._now()), created_at)

    def _delta(self, delta: JSON, logprobs: Any) -> list[Event]:
        content = delta.get("content")
        if len(delta) == 1 and isinstance(content, str) and content and not logprobs:
            return self._speak("output_text", content)  # nearly all chunks are so
        events: list[Event] = []
        thought = text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning"))
        if thought := thought or thought_in(content):
            events += self._speak("reasoning_text", thought)
        if text := text_in(content):
            events += self._speak("output_text", text, read_logprobs(logprobs))
        if refusal := text_in(delta.get("refusal")):
            events += self._speak("refusal", refusal)
        for fragment in delta.get("tool_calls") or ():
            events += self._function_fragment(fragment)
        return events

    def _speak(self, kind: str, text: str, logprobs: Sequence[JSON] = ()) -> list[Event]:
        speech = self._speech
        events: list[Event] = []
        if speech is None or speech.kind != kind:
            speech, events = self._begin_speech(kind)
        events.append(speech.more(text, self._out.numbered(), logprobs))
        return events

    def _begin_speech(self, kind: str) -> tuple[Speech, list[Event]]:
        """A new part: in the open message when both are of one, else in a new item."""
        before = self._speech
        if before is not None and "reasoning_text" not in (kind, before.kind):
            events = self._end_part(before)
            index, number = before.index, before.number + 1
        else:
            events = self._end_speech()
            index, added = self._out.add(*_blank(kind))
            events, number = [*events, *added], 0
        speech = self._speech = Speech(kind, self._out.items[index]["id"], index, number)
        part = speech.part()
        events.append(self._out.about(index, "response.content_part.added", content_index=number, part=part))
        return speech, events

    def _end_part(self, speech: Speech) -> list[Event]:
        events = self._speak(speech.kind, rest) if (rest := speech.said.rest()) else []
        part, index = speech.part(), speech.index
        name = "refusal" if speech.kind == "refusal" else "text"
        about = {"content_index": speech.number, name: part[name]}
        if speech.kind == "output_text":
            about["logprobs"] = speech.logprobs
        self._out.change(index, content=[*self._out.items[index]["content"], part])
        return [
            *events,
            self._out.about(index, f"response.{speech.kind}.done", **about),
            self._out.about(index, "response.content_part.done", content_index=speech.number, part=part),
        ]

    def _end_speech(self, status: str = "completed") -> list[Event]:
        speech = self._speech
        if speech is None:
            return []
        events = self._end_part(speech)
        self._speech = None
        changes = {"status": status}
        if speech.kind == "reasoning_text" and "reasoning.encrypted_content" in self._asked.include:
            changes["encrypted_content"] = sealed(speech.said.whole())
        return [*events, self._out.done(speech.index, **changes)]

    def _close(self, status: str = "completed") -> list[Event]:
        """End what is open: the text first, then the client's calls in order."""
        events = self._end_speech(status)
        for function in self._functions.values():
            events += self._end_function(function, status)
        self._functions = {}
        return events

    def _break_off(self) -> list[Event]:
        """End all that is open where it is."""
        events = self._close("incomplete")
        events += [self._out.done(index, status="incomplete") for index in self._mcp_calls.values()]
        self._mcp_calls = {}
        return events

    def _function_fragment(self, fragment: JSON) -> list[Event]:
        inner = fragment.get("function") or fragment.get("custom") or {}
        function = self._functions.get(fragment["index"])
        events: list[Event] = []
        if function is None:
            function, events = self._begin_function(fragment, inner["name"])
        if text := inner.get("arguments") or inner.get("input"):
            events += self._write(function, text)
        return events

    def _begin_function(self, fragment: JSON, name: str) -> tuple[Function, list[Event]]:
        events = self._end_speech()  # a message is whole when the calls begin
        is_custom = name in self._asked.custom
        item = {
            "type": "custom_tool_call" if is_custom else "function_call",
            "status": "in_progress",
            "call_id": mended(fragment["id"]),
            "name": name,
            ("input" if is_custom else "arguments"): "",
        }
        index, added = self._out.add("ctc" if is_custom else "fc", item)
        function = Function(self._out.items[index]["id"], index, is_custom)
        self._functions[fragment["index"]] = function
        return function, [*events, *added]

    def _write(self, function: Function, text: str) -> list[Event]:
        delta = function.said.add(text)
        return [] if function.is_custom else [(function.said.kind, delta + self._out.numbered())]

    def _end_function(self, function: Function, status: str) -> list[Event]:
        index = function.index
        events = self._write(function, rest) if (rest := function.said.rest()) else []
        if function.is_custom:
            text = _input(function.said.whole())
            return [
                self._out.about(index, "response.custom_tool_call_input.delta", delta=text),
                self._out.about(index, "response.custom_tool_call_input.done", input=text),
                self._out.done(index, status=status, input=text),
            ]
        if status == "completed" and not function.said.whole().strip():
            events += self._write(function, "{}")  # clients parse it
        text, name = function.said.whole(), self._out.items[index]["name"]
        return [
            *events,
            self._out.about(index, "response.function_call_arguments.done", name=name, arguments=text),
            self._out.done(index, status=status, arguments=text),
        ]


def _blank(kind: str) -> tuple[str, JSON]:
    """The prefix of its id, and an item in which nothing was said yet."""
    if kind == "reasoning_text":
        return "rs", {"type": "reasoning", "status": "in_progress", "summary": [], "content": []}
    return "msg", {"type": "message", "status": "in_progress", "role": "assistant", "content": []}


def _arguments(call: ToolCall) -> str:
    return call.arguments if call.arguments.strip() else "{}"


def _input(arguments: str) -> str:
    """What a custom tool is called with: the one argument of the function that stands for it."""
    value = (read_arguments(arguments) or {}).get(CUSTOM_INPUT, arguments)
    return value if isinstance(value, str) else orjson.dumps(value).decode()
