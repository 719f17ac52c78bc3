"""The response object: every field of the published schema, and how it grows while events tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolway.api.responses.items.request import ResponseRequest, shown_members, tool_as_shown
from toolway.conversation.chunk_template import TextRun
from toolway.conversation.message import token_count
from toolway.types import JSON
from toolway.wire.lenient_json import JsonText, dumps

Event = tuple[str, bytes]
"""An event's type, and the whole event as JSON."""

_DEFAULTS: JSON = {
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "truncation": "disabled",
    "service_tier": "default",
    **dict.fromkeys(("max_output_tokens", "max_tool_calls", "instructions", "previous_response_id")),
    **dict.fromkeys(("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "user")),
}
"""Fields that repeat what the request said."""


_CHOICE = {
    "function": ("name",),
    "custom": ("name",),
    "mcp": ("server_label", "name"),
    "allowed_tools": ("mode", "tools"),
}
_FORMAT = {"json_schema": ("name", "description", "schema", "strict")}
"""What is repeated of `tool_choice` and `text.format`, besides the type."""


_KNOWN = {
    "service_tier": frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"}),
    "prompt_cache_retention": frozenset({"in_memory", "24h"}),
    "effort": frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"}),
    "verbosity": frozenset({"low", "medium", "high"}),
}
"""The published values of fields that model servers have values of their own for: typed clients fail at others."""


def new_response(request: ResponseRequest, identity: str, created_at: int) -> JSON:
    """The object of a response that has just begun. `created_at` is Unix time in whole seconds."""
    given = request.given
    chosen = {name: value for name, value in given.items() if name in _DEFAULTS and value is not None}
    repeated = {**_DEFAULTS, **chosen}
    reasoning, text = given.get("reasoning") or {}, given.get("text") or {}
    return {
        "id": identity,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": request.background,
        "error": None,
        "incomplete_details": None,
        "model": request.chat.get("model") or "unknown",
        "output": [],
        **repeated,
        "service_tier": published("service_tier", repeated["service_tier"]) or "default",
        "prompt_cache_retention": published("prompt_cache_retention", repeated["prompt_cache_retention"]),
        "tool_choice": _choice(repeated["tool_choice"]),
        "reasoning": {
            "effort": published("effort", reasoning.get("effort")),
            "summary": reasoning.get("summary"),
        },
        "store": request.store,
        "text": _text(text),
        "tools": [tool_as_shown(tool) for tool in request.tools],
        "metadata": given.get("metadata") or {},
        "usage": None,
    }


def published(name: str, value: Any) -> str | None:
    """A value, if it is one of those that OpenAI has published for this field."""
    return value if isinstance(value, str) and value in _KNOWN[name] else None


def _choice(choice: str | JSON) -> str | JSON:
    if isinstance(choice, str):
        return choice
    shown = {"mode": "auto"} if choice["type"] == "allowed_tools" else {}
    return shown | shown_members(choice, _CHOICE)


def _text(given: JSON) -> JSON:
    if not given:
        return {"format": {"type": "text"}}
    form = given.get("format") or {"type": "text"}
    verbosity = published("verbosity", given.get("verbosity"))
    defaults = {"description": None, "strict": False} if form["type"] == "json_schema" else {}
    return {
        "format": defaults | shown_members(form, _FORMAT),
        **({"verbosity": verbosity} if verbosity else {}),
    }


def read_usage(usage: JSON | None) -> JSON | None:
    """The usage of chat completions in the names of responses."""
    if not usage:
        return None
    input_tokens = token_count(usage, "prompt_tokens")
    output_tokens = token_count(usage, "completion_tokens")
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": token_count(usage, "prompt_tokens_details", "cached_tokens"),
            "cache_write_tokens": token_count(usage, "prompt_tokens_details", "cache_write_tokens"),
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": token_count(usage, "completion_tokens_details", "reasoning_tokens")
        },
        "total_tokens": token_count(usage, "total_tokens") or input_tokens + output_tokens,
    }


class ResponseState:
    """`frame` is the response object without its items; it is the caller's to change."""

    def __init__(self, frame: JSON, *, is_heard: bool = True) -> None:
        self.frame = frame
        self._is_heard = is_heard
        self.items: list[JSON] = []
        self._number = 0

    @property
    def resource(self) -> JSON:
        """The response as it is now; it does not change when more happens."""
        return {**self.frame, "output": self.items.copy()}

    @property
    def has_begun(self) -> bool:
        """Whether there was an event."""
        return self._number > 0

    def add(self, prefix: str, item: JSON, *, made_in: str = "") -> tuple[int, list[Event]]:
        """A new item; its id begins with that of its response, to be found again by it, and ends with `made_in`."""
        index = len(self.items)
        item = {"id": f"{prefix}_{self.frame['id'].removeprefix('resp_')}{index:04x}{made_in}", **item}
        self.items.append(item)
        return index, [self.event("response.output_item.added", {"output_index": index, "item": item})]

    def done(self, index: int, **changes: Any) -> Event:
        """The last changes of an item."""
        item = self.change(index, **changes)
        return self.event("response.output_item.done", {"output_index": index, "item": item})

    def change(self, index: int, **changes: Any) -> JSON:
        """An item with these members."""
        item = self.items[index] = {**self.items[index], **changes}
        return item

    def about(self, index: int, kind: str, **more: Any) -> Event:
        """An event about an item."""
        return self.event(kind, {"item_id": self.items[index]["id"], "output_index": index, **more})

    def whole(self, kind: str) -> Event:
        """An event about the response."""
        return self.event(kind, {"response": self.resource} if self._is_heard else {})

    def event(self, kind: str, body: JSON) -> Event:
        """Any event; without its bytes where nobody hears of it."""
        number = self._number
        self._number += 1
        if not self._is_heard:
            return kind, b""
        return kind, dumps({"type": kind, **body, "sequence_number": number})

    def withdraw(self) -> None:
        """Give the number of the last event, which was not told, to the next one."""
        self._number -= 1

    def numbered(self) -> bytes:
        """The end of the next event, for those who write its beginning themselves."""
        return b',"sequence_number":%d}' % self.take_numbers(1)

    def take_numbers(self, count: int) -> int:
        """The first of the numbers of so many events, for those who write them themselves."""
        self._number += count
        return self._number - count


class DeltaStream(JsonText):
    """A text that is told in events of one type. `about` stands in each of the events, which have the type `kind`."""

    def __init__(self, kind: str, about: JSON) -> None:
        super().__init__()
        self.kind = kind
        self.head = dumps({"type": kind, **about})[:-1] + b',"delta":'

    def add(self, text: str) -> bytes:
        """The event for one more piece, but for its end."""
        return self.head + self.quoted(text)


class TextPart:
    """A part of text that is being said: which one of which item."""

    def __init__(self, kind: str, item: str, index: int, number: int) -> None:
        self.kind, self.index, self.number = kind, index, number
        self.logprobs: list[JSON] = []
        self._tail = b',"logprobs":[]' if kind == "output_text" else b""
        about = {"item_id": item, "output_index": index, "content_index": number}
        self.deltas = DeltaStream(f"response.{kind}.delta", about)

    def delta(self, text: str, end: bytes, logprobs: Sequence[JSON] = ()) -> Event:
        """The event for one more piece; `end` is the end of every event."""
        tail = self._tail
        if logprobs:
            self.logprobs += logprobs
            tail = b',"logprobs":' + dumps(logprobs)
        return self.deltas.kind, self.deltas.add(text) + tail + end

    def run(self, run: TextRun, number: int) -> list[Event]:
        """The events for chunks that need no parser, from this number on; no piece may wait."""
        self.deltas.append(run.text)
        kind, head = self.deltas.kind, self.deltas.head
        tail = self._tail + b',"sequence_number":'
        return [
            (kind, b'%b"%b"%b%d}' % (head, text, tail, number))
            for number, text in enumerate(run.quoted, number)
        ]

    def as_json(self) -> JSON:
        """The part with what was said by now."""
        text = self.deltas.whole()
        if self.kind == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}
        return {"type": self.kind, ("refusal" if self.kind == "refusal" else "text"): text}


class StreamedCall:
    """A call of the client's that is being written."""

    def __init__(self, item: str, index: int, is_custom: bool) -> None:
        self.index, self.is_custom = index, is_custom
        about = {"item_id": item, "output_index": index}
        self.deltas = DeltaStream("response.function_call_arguments.delta", about)
