"""What happens in a conversation with tools -> the items and events of one response."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson

from toolway.calls import read_arguments
from toolway.deltas import Message
from toolway.errors import ToolwayError
from toolway.items.content import text_in
from toolway.items.request import CUSTOM_INPUT, Asked
from toolway.items.resource import new_resource, read_usage
from toolway.items.transcript import sealed
from toolway.types import JSON, Tool, ToolCall, ToolResult

Event = tuple[str, bytes]
"""An event's type, and the whole event as JSON."""

Items = Iterable[tuple[JSON | str, bytes | None]]


class Narrator:
    """Writes one response. Each method returns the events of what it was told; `resource` is the object so far.

    Every event has the next `sequence_number`. Reasoning, text and calls of the client are items as they come. A call
    of a server that the client declared is an item too; of others there is no trace. `now` gives Unix time in seconds.
    """

    def __init__(self, asked: Asked, identity: str, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self.resource = new_resource(asked, identity, int(now()))
        self._asked = asked
        self._declared = frozenset(entry["server_label"] for entry in asked.mcp)
        self._number = 0
        self._speech: _Speech | None = None
        self._functions: dict[int, _Function] = {}
        self._mcp_calls: dict[str, int] = {}
        self.calls = 0
        """How many calls of ours began, seen by the client or not."""

    @property
    def started(self) -> bool:
        """Whether any event was told."""
        return self._number > 0

    @property
    def output(self) -> list[JSON]:
        """The items so far."""
        items: list[JSON] = self.resource["output"]
        return items

    def queued(self) -> list[Event]:
        """The response exists, and waits for its turn."""
        self.resource = {**self.resource, "status": "queued"}
        return [self._whole("response.created"), self._whole("response.queued")]

    def began(self) -> list[Event]:
        """The model server works at the response."""
        created = [] if self._number else [self._whole("response.created")]
        self.resource = {**self.resource, "status": "in_progress"}
        return [*created, self._whole("response.in_progress")]

    def listed(self, label: str, tools: Sequence[Tool], error: str | None = None) -> list[Event]:
        """The tools of a server that the client declared, or why there are none."""
        item: JSON = {"type": "mcp_list_tools", "server_label": label, "tools": [], "error": None}
        index, events = self._add("mcpl", item)
        events.append(self._about(index, "response.mcp_list_tools.in_progress"))
        told = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.parameters,
                "annotations": None,
            }
            for tool in tools
        ]
        events.append(self._about(index, f"response.mcp_list_tools.{'failed' if error else 'completed'}"))
        return [*events, self._done(index, tools=told, error=error)]

    def turned(self) -> list[Event]:
        """A turn of the model is over: what it was saying is whole."""
        return self._close()

    def said(self, items: Items) -> list[Event]:
        """What one read from the model server brought for the client (`turn.Chunks`)."""
        events: list[Event] = []
        for item, _ in items:
            if isinstance(item, str):
                events += self._speak("output_text", item)
            elif item.get("choices"):
                choice = item["choices"][0]
                events += self._delta(choice["delta"], choice.get("logprobs"))
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
        index, added = self._add("mcp", item)
        self._mcp_calls[call.id] = index
        events += [*added, self._about(index, "response.mcp_call.in_progress")]
        events.append(self._about(index, "response.mcp_call_arguments.delta", delta=call.arguments))
        events.append(self._about(index, "response.mcp_call_arguments.done", arguments=call.arguments))
        self._set(index, arguments=call.arguments)
        return events

    def call_ended(self, call: ToolCall, result: ToolResult) -> list[Event]:
        """A call of ours has its result."""
        index = self._mcp_calls.pop(call.id, None)
        if index is None:
            return []
        if result.is_error:
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": result.text}]}
            return [
                self._about(index, "response.mcp_call.failed"),
                self._done(index, status="failed", error=error),
            ]
        return [
            self._about(index, "response.mcp_call.completed"),
            self._done(index, status="completed", output=result.text),
        ]

    def asked_for(self, call: ToolCall, tool: Tool) -> tuple[str, list[Event]]:
        """A call that waits for an approval; also returns the id of the request."""
        item = {
            "type": "mcp_approval_request",
            "server_label": tool.server,
            "name": tool.name,
            "arguments": call.arguments,
        }
        index, events = self._add("mcpr", item)
        return self.output[index]["id"], [*events, self._done(index)]

    def ended(self, message: Message, usage: JSON | None) -> list[Event]:
        """The answer is whole."""
        cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(
            message.finish_reason or ""
        )
        events = self._close("incomplete" if cut else "completed")
        if not self.output:
            events += [*self._speak("output_text", ""), *self._close()]
        frame = message.frame
        self.resource = {
            **self.resource,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": cut} if cut else None,
            "completed_at": None if cut else int(self._now()),
            "model": frame.get("model") or self.resource["model"],
            "usage": read_usage(usage),
        }
        if isinstance(tier := frame.get("service_tier"), str):
            self.resource["service_tier"] = tier
        return [*events, self._whole(f"response.{self.resource['status']}")]

    def completed_empty(self) -> list[Event]:
        """Nothing was generated, as the client wanted."""
        self.resource = {**self.resource, "status": "completed", "completed_at": int(self._now())}
        return [self._whole("response.completed")]

    def failed(self, error: ToolwayError) -> list[Event]:
        """The answer will never be whole."""
        events = self._close("incomplete")
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.resource = {
            **self.resource,
            "status": "failed",
            "error": {"code": code, "message": error.message},
        }
        envelope = error.envelope()
        told = {name: envelope["error"][name] for name in ("code", "message", "param")}
        # The documents of OpenAI have these three, its server and Open Responses an object.
        return [*events, self._event("error", {**told, **envelope}), self._whole("response.failed")]

    def cancelled(self) -> None:
        """Somebody cancelled the response."""
        self._close("incomplete")
        self.resource = {**self.resource, "status": "cancelled"}

    def _delta(self, delta: JSON, logprobs: Any) -> list[Event]:
        events: list[Event] = []
        if thought := text_in(delta.get("reasoning_content") or delta.get("reasoning")):
            events += self._speak("reasoning_text", thought)
        if text := text_in(delta.get("content")):
            events += self._speak("output_text", text, _logprobs(logprobs))
        if refusal := text_in(delta.get("refusal")):
            events += self._speak("refusal", refusal)
        for fragment in delta.get("tool_calls") or ():
            events += self._function_fragment(fragment)
        return events

    def _speak(self, kind: str, text: str, logprobs: Sequence[JSON] = ()) -> list[Event]:
        speech, events = self._speech, []
        if speech is None or speech.kind != kind:
            events = self._begin_speech(kind)
            speech = self._speech
        assert speech is not None  # noqa: S101
        speech.pieces.append(text)
        speech.logprobs += logprobs
        tail = b"" if kind != "output_text" else b',"logprobs":' + orjson.dumps(logprobs)
        events.append((speech.delta, speech.head + orjson.dumps(text) + tail + self._numbered()))
        return events

    def _begin_speech(self, kind: str) -> list[Event]:
        """A new part: in the open message when both are of one, else in a new item."""
        before = self._speech
        joins = before is not None and "reasoning_text" not in (kind, before.kind)
        if before is not None and joins:
            events = self._end_part(before)
            index, part = before.index, before.part + 1
        else:
            events = self._close()
            item: JSON = {"type": "message", "status": "in_progress", "role": "assistant", "content": []}
            if kind == "reasoning_text":
                item = {"type": "reasoning", "status": "in_progress", "summary": [], "content": []}
            index, added = self._add("rs" if kind == "reasoning_text" else "msg", item)
            events, part = [*events, *added], 0
        speech = self._speech = _Speech(kind, self.output[index]["id"], index, part)
        events.append(
            self._about(index, "response.content_part.added", content_index=part, part=speech.whole())
        )
        return events

    def _end_part(self, speech: _Speech) -> list[Event]:
        part = speech.whole()
        name = "refusal" if speech.kind == "refusal" else "text"
        about = {"content_index": speech.part, name: part[name]}
        if speech.kind == "output_text":
            about["logprobs"] = speech.logprobs
        item = self.output[speech.index]
        self._set(speech.index, content=[*item["content"], part])
        return [
            self._about(speech.index, f"response.{speech.kind}.done", **about),
            self._about(speech.index, "response.content_part.done", content_index=speech.part, part=part),
        ]

    def _close(self, status: str = "completed") -> list[Event]:
        """End what is open: the text first, then the client's calls in order."""
        events: list[Event] = []
        if speech := self._speech:
            events += self._end_part(speech)
            self._speech = None
            events.append(self._done(speech.index, status=status, **self._sealed(speech)))
        for function in self._functions.values():
            events += self._end_function(function, status)
        self._functions = {}
        return events

    def _sealed(self, speech: _Speech) -> JSON:
        wanted = speech.kind == "reasoning_text" and "reasoning.encrypted_content" in self._asked.include
        return {"encrypted_content": sealed("".join(speech.pieces))} if wanted else {}

    def _function_fragment(self, fragment: JSON) -> list[Event]:
        inner = fragment.get("function") or fragment.get("custom") or {}
        text = inner.get("arguments") or inner.get("input") or ""
        known = self._functions.get(fragment["index"])
        if known is None:
            return self._begin_function(fragment, inner["name"], text)
        known.pieces.append(text)
        if known.is_custom or not text:
            return []
        return [self._about(known.index, "response.function_call_arguments.delta", delta=text)]

    def _begin_function(self, fragment: JSON, name: str, text: str) -> list[Event]:
        events: list[Event] = []
        if speech := self._speech:  # a message is whole when the calls begin
            events += self._end_part(speech)
            self._speech = None
            events.append(self._done(speech.index, status="completed", **self._sealed(speech)))
        is_custom = name in self._asked.custom
        item = {
            "type": "custom_tool_call" if is_custom else "function_call",
            "status": "in_progress",
            "call_id": fragment["id"],
            "name": name,
            ("input" if is_custom else "arguments"): "",
        }
        index, added = self._add("ctc" if is_custom else "fc", item)
        self._functions[fragment["index"]] = _Function(index, is_custom, [text])
        events += added
        if text and not is_custom:
            events.append(self._about(index, "response.function_call_arguments.delta", delta=text))
        return events

    def _end_function(self, function: _Function, status: str) -> list[Event]:
        text = "".join(function.pieces)
        index = function.index
        if function.is_custom:
            text = str((read_arguments(text) or {}).get(CUSTOM_INPUT, text))
            return [
                self._about(index, "response.custom_tool_call_input.delta", delta=text),
                self._about(index, "response.custom_tool_call_input.done", input=text),
                self._done(index, status=status, input=text),
            ]
        name = self.output[index]["name"]
        return [
            self._about(index, "response.function_call_arguments.done", name=name, arguments=text),
            self._done(index, status=status, arguments=text),
        ]

    def _add(self, prefix: str, item: JSON) -> tuple[int, list[Event]]:
        """A new item; its id tells the response that it is of, so that it can be found again."""
        index = len(self.output)
        item = {"id": f"{prefix}_{self.resource['id'].removeprefix('resp_')}{index:04x}", **item}
        self.resource = {**self.resource, "output": [*self.output, item]}
        return index, [self._event("response.output_item.added", {"output_index": index, "item": item})]

    def _done(self, index: int, **changes: Any) -> Event:
        item = self._set(index, **changes)
        return self._event("response.output_item.done", {"output_index": index, "item": item})

    def _set(self, index: int, **changes: Any) -> JSON:
        output = list(self.output)
        output[index] = {**output[index], **changes}
        self.resource = {**self.resource, "output": output}
        return output[index]

    def _about(self, index: int, kind: str, **more: Any) -> Event:
        return self._event(kind, {"item_id": self.output[index]["id"], "output_index": index, **more})

    def _whole(self, kind: str) -> Event:
        return self._event(kind, {"response": self.resource})

    def _event(self, kind: str, body: JSON) -> Event:
        return kind, orjson.dumps({"type": kind, **body})[:-1] + self._numbered()

    def _numbered(self) -> bytes:
        self._number += 1
        return b',"sequence_number":%d}' % (self._number - 1)


class _Speech:
    """A part of text that is being said."""

    def __init__(self, kind: str, item: str, index: int, part: int) -> None:
        self.kind, self.index, self.part = kind, index, part
        self.pieces: list[str] = []
        self.logprobs: list[JSON] = []
        self.delta = f"response.{kind}.delta"
        body = {"type": self.delta, "item_id": item, "output_index": index, "content_index": part}
        self.head = orjson.dumps(body)[:-1] + b',"delta":'

    def whole(self) -> JSON:
        """The part with what was said by now."""
        text = "".join(self.pieces)
        if self.kind == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}
        return {"type": self.kind, ("refusal" if self.kind == "refusal" else "text"): text}


class _Function:
    """A call of the client's that is being written."""

    def __init__(self, index: int, is_custom: bool, pieces: list[str]) -> None:
        self.index, self.is_custom, self.pieces = index, is_custom, pieces


def _logprobs(logprobs: Any) -> list[JSON]:
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [_logprob(entry) for entry in entries or () if isinstance(entry, dict)]


def _logprob(entry: JSON) -> JSON:
    top = [_logprob(other) for other in entry.get("top_logprobs") or () if isinstance(other, dict)]
    own = {
        "token": entry.get("token", ""),
        "logprob": entry.get("logprob", 0.0),
        "bytes": entry.get("bytes") or [],
    }
    return {**own, "top_logprobs": top} if "top_logprobs" in entry else own
