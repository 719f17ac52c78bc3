"""The Responses API's streaming events and output items, written from what happens in one conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from toolway.api.deferred_tools import SERVER, DeferredTools
from toolway.api.fields import reasoning_in, text_in
from toolway.api.responses.items.content import read_logprobs
from toolway.api.responses.items.input_items import round_mark, sealed
from toolway.api.responses.items.request import CUSTOM_INPUT, ClientTool, ResponseRequest
from toolway.api.responses.items.response_object import (
    Event,
    ResponseState,
    StreamedCall,
    TextPart,
    new_response,
    published,
    read_usage,
)
from toolway.api.responses.items.tool_search import declarations
from toolway.conversation.chunk_template import TextRun
from toolway.conversation.message import Ending, Message, unfinished_answer
from toolway.conversation.tool_calls import read_arguments
from toolway.errors import ToolwayError
from toolway.server.envelopes import openai_envelope
from toolway.types import JSON, Tool, ToolCall, ToolResult
from toolway.wire.lenient_json import dumps_text, fix_surrogates, harmless

Items = Iterable[tuple[JSON | str, bytes | None]]

_INCOMPLETE: dict[Ending, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why a response is incomplete, by how its last turn ended. OpenAI's types have no other reasons."""

_FAILURES = frozenset({
    "context_length_exceeded", "insufficient_quota", "invalid_prompt", "rate_limit_exceeded", "server_is_overloaded",
})  # fmt: skip
"""Why a response failed, in codes that clients act on; the documents of OpenAI do not name them all."""

_OWN_SEARCH: JSON = {"execution": "server", "call_id": None}
"""What items of a tool search that ran here have in common."""

_ANSWERS = frozenset({"message", "compaction", "function_call", "custom_tool_call", "mcp_approval_request"})
"""Items that are an answer to the client; a complete response has one."""


class EventWriter:
    """Writes one response. Each method returns the events of what it was told; `resource` is the object so far.

    Every event has the next `sequence_number`. Reasoning, text and calls of the client are items as they come. A call
    of a server that the client declared is an item too; of others there is no trace. Where nobody hears of the events
    they are not written. `now` gives Unix time in seconds.
    """

    def __init__(
        self,
        request: ResponseRequest,
        identity: str,
        *,
        is_heard: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._state = ResponseState(new_response(request, identity, int(now())), is_heard=is_heard)
        self._request = request
        self._declared = frozenset(entry["server_label"] for entry in request.mcp)
        self._text_part: TextPart | None = None
        self._client_calls: dict[int, StreamedCall] = {}
        self._mcp_calls: dict[str, int] = {}
        self.searched: DeferredTools | None = None
        """The deferred tools that the model can search here."""
        self.search: str | None = None
        """The name of the search for them."""
        self._searches: set[str] = set()
        self._round = 0
        self.calls = 0
        """How many calls of ours began, seen by the client or not."""

    @property
    def resource(self) -> JSON:
        """The response as it is now; it does not change when more happens."""
        return self._state.resource

    @property
    def started(self) -> bool:
        """Whether any event was told."""
        return self._state.has_begun

    def queued(self) -> list[Event]:
        """The response exists, and waits until it is made."""
        self._state.frame["status"] = "queued"
        return [self._state.whole("response.created"), self._state.whole("response.queued")]

    def began(self) -> list[Event]:
        """The model server works at the response."""
        created = [] if self._state.has_begun else [self._state.whole("response.created")]
        self._state.frame["status"] = "in_progress"
        return [*created, self._state.whole("response.in_progress")]

    def tools_listed(self, label: str, tools: Sequence[Tool], error: str | None = None) -> list[Event]:
        """The tools of a server that the client declared, or why there are none."""
        # What is empty here is left out or an empty object: AI SDK takes no null.
        item: JSON = {"type": "mcp_list_tools", "server_label": label, "tools": []}
        index, events = self._state.add("mcpl", item)
        events.append(self._state.about(index, "response.mcp_list_tools.in_progress"))
        listed = [
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": tool.parameters,
                "annotations": {},
            }
            for tool in tools
        ]
        events.append(
            self._state.about(index, f"response.mcp_list_tools.{'failed' if error else 'completed'}")
        )
        return [*events, self._state.done(index, tools=listed, **({"error": error} if error else {}))]

    def turn_ended(self) -> list[Event]:
        """A turn of the model is over: what it was saying is whole."""
        self._round += 1
        return self._close()

    def chunks(self, items: Items) -> list[Event]:
        """What one read from the model server brought for the client (`events.Chunks`)."""
        part = self._text_part
        if isinstance(items, TextRun) and part and part.kind == "output_text" and not part.deltas.waits:
            return part.run(items, self._state.take_numbers(len(items.quoted)))
        events: list[Event] = []
        for item, _ in items:
            if isinstance(item, str):
                text_part = self._text_part
                if text_part is not None and text_part.kind == "output_text":
                    events.append(text_part.delta(item, self._state.numbered()))  # nearly all there is
                else:
                    events += self._text("output_text", item)
            elif item.get("choices"):
                choice = item["choices"][0]
                events += self._delta(choice["delta"], choice.get("logprobs"))
        return events

    def rounds_resumed(self, messages: Iterable[JSON]) -> list[Event]:
        """What the model said in rounds of an earlier attempt at this request, which are not run again."""
        events: list[Event] = []
        for message in messages:
            if message["role"] == "assistant":
                fields = {name: value for name, value in message.items() if name != "tool_calls"}
                events += [*self._delta(fields, None), *self._close()]
        return events

    def call_began(self, call: ToolCall, tool: Tool | None, request: str | None = None) -> list[Event]:
        """A call of ours is about to run; `request` is the approval request that let it."""
        self.calls += 1
        if self._is_search(tool):
            return self._search_began(call)
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
        index, added = self._state.add("mcp", item, made_in=round_mark(self._round))
        self._mcp_calls[call.id] = index
        events += [*added, self._state.about(index, "response.mcp_call.in_progress")]
        arguments = _arguments(call)
        events.append(self._state.about(index, "response.mcp_call_arguments.delta", delta=arguments))
        events.append(self._state.about(index, "response.mcp_call_arguments.done", arguments=arguments))
        self._state.change(index, arguments=arguments)
        return events

    def _is_search(self, tool: Tool | None) -> bool:
        return bool(self.searched and tool and tool.server == SERVER and tool.name == self.search)

    def _search_began(self, call: ToolCall) -> list[Event]:
        events = self._close()
        given = harmless(read_arguments(call.arguments) or {})
        item = {**_OWN_SEARCH, "type": "tool_search_call", "status": "in_progress", "arguments": given}
        index, added = self._state.add("tsc", item)
        self._searches.add(call.id)
        return [*events, *added, self._state.done(index, status="completed")]

    def _search_ended(self, result: ToolResult) -> list[Event]:
        found = declarations(self._request, self.searched.found(result)) if self.searched else []
        item = {**_OWN_SEARCH, "type": "tool_search_output", "status": "in_progress", "tools": []}
        index, added = self._state.add("tso", item)
        return [*added, self._state.done(index, status="completed", tools=found)]

    def call_ended(self, call: ToolCall, result: ToolResult) -> list[Event]:
        """A call of ours has its result."""
        if call.id in self._searches:
            self._searches.discard(call.id)
            return self._search_ended(result)
        index = self._mcp_calls.pop(call.id, None)
        if index is None:
            return []
        text = fix_surrogates(result.text)
        if result.is_error:
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
            return [
                self._state.about(index, "response.mcp_call.failed"),
                self._state.done(index, status="failed", error=error),
            ]
        return [
            self._state.about(index, "response.mcp_call.completed"),
            self._state.done(index, status="completed", output=text),
        ]

    def approval_requested(self, call: ToolCall, tool: Tool) -> tuple[str, list[Event]]:
        """A call that waits for an approval; also returns the id of the request."""
        events = self._close()
        item = {
            "type": "mcp_approval_request",
            "server_label": tool.server,
            "name": tool.name,
            "arguments": _arguments(call),
        }
        index, added = self._state.add("mcpr", item, made_in=round_mark(self._round))
        return self._state.items[index]["id"], [*events, *added, self._state.done(index)]

    def ended(self, message: Message, usage: JSON | None) -> list[Event]:
        """The last turn is over: the answer is whole, cut, or the model server gave it up."""
        if message.ending == "failed":
            self._state.frame["usage"] = read_usage(usage)
            return self.failed(unfinished_answer(message))
        cut = _INCOMPLETE.get(message.ending)
        status = "incomplete" if cut else "completed"
        events = self._close(status)
        if not cut and not any(
            item["type"] in _ANSWERS or item.get("execution") == "client" for item in self._state.items
        ):
            events += [*self._begin_text("output_text")[1], *self._close()]
        frame = message.frame
        self._state.frame |= {
            "status": status,
            "incomplete_details": {"reason": cut} if cut else None,
            "completed_at": None if cut else self._completed_at(),
            "usage": read_usage(usage),
        }
        if isinstance(model := frame.get("model"), str) and model:
            self._state.frame["model"] = fix_surrogates(model)
        if tier := published("service_tier", frame.get("service_tier")):
            self._state.frame["service_tier"] = tier
        return [*events, self._state.whole(f"response.{status}")]

    def compacted(self, summary: str, message: Message) -> list[Event]:
        """The conversation was summarised, as the client wanted."""
        events = self.began()
        index, added = self._state.add("cmp", {"type": "compaction", "encrypted_content": sealed(summary)})
        events += [*added, self._state.done(index)]
        return [*events, *self.ended(replace(message, finish_reason="stop"), message.usage)]

    def completed_empty(self) -> list[Event]:
        """Nothing was generated, as the client wanted."""
        self._state.frame |= {"status": "completed", "completed_at": self._completed_at()}
        return [self._state.whole("response.completed")]

    def unstored(self, last: Event) -> Event:
        """The last event, that was not told yet, with the news that the response is not stored."""
        self._state.withdraw()
        self._state.frame["store"] = False
        return self._state.whole(last[0])

    def withdraw_end(self) -> None:
        """The last event was not told, since what it tells could not be kept; nothing is left of the answer."""
        self._state.withdraw()
        self._state.items.clear()
        self._state.frame |= {"incomplete_details": None, "completed_at": None}

    def failed(self, error: ToolwayError) -> list[Event]:
        """The answer will never be whole."""
        events = self._break_off()
        envelope = harmless(openai_envelope(error))
        code, message, param = (envelope["error"][name] for name in ("code", "message", "param"))
        fallback = "rate_limit_exceeded" if error.status == 429 else "server_error"
        plain = {"code": code, "message": message, "param": param if isinstance(param, str) else None}
        self._state.frame |= {
            "status": "failed",
            "error": {"code": code if code in _FAILURES else fallback, "message": message},
        }
        # The documents of OpenAI have these three, its server and Open Responses an object.
        return [
            *events,
            self._state.event("error", {**plain, **envelope}),
            self._state.whole("response.failed"),
        ]

    def cancelled(self) -> None:
        """Somebody cancelled the response."""
        self._break_off()
        self._state.frame["status"] = "cancelled"

    def _completed_at(self) -> int:
        created_at: int = self._state.frame["created_at"]
        return max(int(self._now()), created_at)

    def _delta(self, delta: JSON, logprobs: Any) -> list[Event]:
        content = delta.get("content")
        if len(delta) == 1 and isinstance(content, str) and content and not logprobs:
            return self._text("output_text", content)  # nearly all chunks are so
        events: list[Event] = []
        reasoning = text_in(delta.get("reasoning_content")) or text_in(delta.get("reasoning"))
        if reasoning := reasoning or reasoning_in(content):
            events += self._text("reasoning_text", reasoning)
        if text := text_in(content):
            events += self._text("output_text", text, read_logprobs(logprobs))
        if refusal := text_in(delta.get("refusal")):
            events += self._text("refusal", refusal)
        for fragment in delta.get("tool_calls") or ():
            events += self._call_fragment(fragment)
        return events

    def _text(self, kind: str, text: str, logprobs: Sequence[JSON] = ()) -> list[Event]:
        text_part = self._text_part
        events: list[Event] = []
        if text_part is None or text_part.kind != kind:
            text_part, events = self._begin_text(kind)
        events.append(text_part.delta(text, self._state.numbered(), logprobs))
        return events

    def _begin_text(self, kind: str) -> tuple[TextPart, list[Event]]:
        """A new part: in the open message when both are of one, else in a new item."""
        before = self._text_part
        if before is not None and "reasoning_text" not in (kind, before.kind):
            events = self._end_part(before)
            index, number = before.index, before.number + 1
        else:
            events = self._end_text()
            index, added = self._state.add(*_blank(kind))
            events, number = [*events, *added], 0
        text_part = self._text_part = TextPart(kind, self._state.items[index]["id"], index, number)
        part = text_part.as_json()
        events.append(
            self._state.about(index, "response.content_part.added", content_index=number, part=part)
        )
        return text_part, events

    def _end_part(self, text_part: TextPart) -> list[Event]:
        events = self._text(text_part.kind, rest) if (rest := text_part.deltas.flush()) else []
        part, index = text_part.as_json(), text_part.index
        name = "refusal" if text_part.kind == "refusal" else "text"
        about = {"content_index": text_part.number, name: part[name]}
        if text_part.kind == "output_text":
            about["logprobs"] = text_part.logprobs
        self._state.change(index, content=[*self._state.items[index]["content"], part])
        return [
            *events,
            self._state.about(index, f"response.{text_part.kind}.done", **about),
            self._state.about(index, "response.content_part.done", content_index=text_part.number, part=part),
        ]

    def _end_text(self, status: str = "completed") -> list[Event]:
        text_part = self._text_part
        if text_part is None:
            return []
        events = self._end_part(text_part)
        self._text_part = None
        changes = {"status": status}
        if text_part.kind == "reasoning_text" and "reasoning.encrypted_content" in self._request.include:
            changes["encrypted_content"] = sealed(text_part.deltas.whole())
        return [*events, self._state.done(text_part.index, **changes)]

    def _close(self, status: str = "completed") -> list[Event]:
        """End what is open: the text first, then the client's calls in order."""
        events = self._end_text(status)
        for call in self._client_calls.values():
            events += self._end_call(call, status)
        self._client_calls = {}
        return events

    def _break_off(self) -> list[Event]:
        """End all that is open where it is."""
        events = self._close("incomplete")
        events += [self._state.done(index, status="incomplete") for index in self._mcp_calls.values()]
        self._mcp_calls = {}
        return events

    def _call_fragment(self, fragment: JSON) -> list[Event]:
        inner = fragment.get("function") or fragment.get("custom") or {}
        call = self._client_calls.get(fragment["index"])
        events: list[Event] = []
        if call is None:
            call, events = self._begin_call(fragment, inner["name"])
        if text := inner.get("arguments") or inner.get("input"):
            events += self._arguments_delta(call, text)
        return events

    def _begin_call(self, fragment: JSON, name: str) -> tuple[StreamedCall, list[Event]]:
        events = self._end_text()  # a message is whole when the calls begin
        tool = self._request.client_tools.get(name) or ClientTool(name=name)
        if tool.is_search:
            item = {
                "type": "tool_search_call",
                "execution": "client",
                "status": "in_progress",
                "arguments": {},
            }
            index, added = self._state.add("tsc", {**item, "call_id": fix_surrogates(fragment["id"])})
            call = StreamedCall(self._state.items[index]["id"], index, is_custom=True)
            self._client_calls[fragment["index"]] = call
            return call, [*events, *added]
        is_custom = tool.is_custom
        item = {
            "type": "custom_tool_call" if is_custom else "function_call",
            "status": "in_progress",
            "call_id": fix_surrogates(fragment["id"]),
            "name": tool.name,
            **({"namespace": tool.namespace} if tool.namespace else {}),
            ("input" if is_custom else "arguments"): "",
        }
        index, added = self._state.add("ctc" if is_custom else "fc", item)
        call = StreamedCall(self._state.items[index]["id"], index, is_custom)
        self._client_calls[fragment["index"]] = call
        return call, [*events, *added]

    def _arguments_delta(self, call: StreamedCall, text: str) -> list[Event]:
        delta = call.deltas.add(text)
        return [] if call.is_custom else [(call.deltas.kind, delta + self._state.numbered())]

    def _end_call(self, call: StreamedCall, status: str) -> list[Event]:
        index = call.index
        events = self._arguments_delta(call, rest) if (rest := call.deltas.flush()) else []
        if self._state.items[index]["type"] == "tool_search_call":
            given = harmless(read_arguments(call.deltas.whole()) or {})
            return [*events, self._state.done(index, status=status, arguments=given)]
        if call.is_custom:
            text = _input(call.deltas.whole())
            return [
                self._state.about(index, "response.custom_tool_call_input.delta", delta=text),
                self._state.about(index, "response.custom_tool_call_input.done", input=text),
                self._state.done(index, status=status, input=text),
            ]
        if status == "completed" and not call.deltas.whole().strip():
            events += self._arguments_delta(call, "{}")  # clients parse it
        text, name = call.deltas.whole(), self._state.items[index]["name"]
        return [
            *events,
            self._state.about(index, "response.function_call_arguments.done", name=name, arguments=text),
            self._state.done(index, status=status, arguments=text),
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
    return value if isinstance(value, str) else dumps_text(value)
