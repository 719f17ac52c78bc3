"""Records of conversations: the events of one as bounded JSON for the console, with or without what was said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from toolway.access.gate import conversation_of
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    CallProgressed,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    Event,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    RoundBegan,
    TextBegan,
)
from toolway.conversation.message import ChatRequest, cached_tokens, token_count
from toolway.errors import ToolwayError
from toolway.types import JSON, ToolCall
from toolway.wire.lenient_json import dumps, loads

Timed = tuple[float, Event]
"""When (Unix time), and what."""

MAX_TEXT = 16_000
"""Characters of one text that are kept."""
MAX_IMAGE = 100_000
"""Characters of one image that are kept, in base64."""
MAX_RECORD = 1_000_000
"""Characters of all texts of one record."""
TITLE = 160

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[;,]")

Masked = Callable[[str], str]
"""Hides what must never be shown in a text."""


def summary_of(identity: str, events: Sequence[Timed], *, shows_contents: bool, mask: Masked) -> JSON:
    """One conversation in a line. `shows_contents`: whether it may hold what was said."""
    began, first = events[0]
    assert isinstance(first, ConversationBegan)  # noqa: S101
    last_at, last = events[-1]
    count = Counter(type(event) for _, event in events)
    failed, tools = 0, set[str]()
    usage: JSON = {"prompt": 0, "completion": 0, "cached": 0}
    first_text: float | None = None
    for at, event in events:
        if isinstance(event, CallBegan):
            tools.add(event.call.name[:200])
        elif isinstance(event, CallEnded):
            failed += event.result.is_error
        elif isinstance(event, ModelAnswered):
            _add_usage(usage, event.message.usage)
        elif isinstance(event, TextBegan) and first_text is None:
            first_text = at - began
    return {
        "id": identity,
        "began": began,
        "seconds": last_at - began,
        "state": _state(last),
        "model": mask(_short(str(first.model), 200)),
        "title": mask(_title(first)) if shows_contents else "",
        "caller": first.caller.name if first.caller else "",
        "client": first.caller.client if first.caller else "",
        "streamed": first.streamed,
        "side": first.side,
        "messages": first.messages,
        "offered": first.tools,
        "rounds": count[RoundBegan],
        "calls": count[CallBegan],
        "failed_calls": failed,
        "tools": sorted(tools)[:50],
        "asked_again": max(0, count[ModelAsked] - count[RoundBegan]),
        "usage": usage,
        "finish": last.outcome.message.finish_reason if isinstance(last, ConversationEnded) else None,
        "error": error_of(last.error, mask) if isinstance(last, ConversationFailed) else None,
        "first_text": first_text,
    }


def record_of(
    summary: JSON,
    events: Sequence[Timed],
    progress: Mapping[str, CallProgressed],
    *,
    shows_contents: bool,
    mask: Masked,
) -> JSON:
    """All of one conversation: its summary, the request, and what happened step by step.

    `messages` holds each message once; a step names those that the model was sent by their places there.
    """
    first = events[0][1]
    assert isinstance(first, ConversationBegan)  # noqa: S101
    writer = _Writer(shows_contents=shows_contents, mask=mask)
    request = first.request
    sent = [writer.place(message, "client") for message in request.messages]
    shown = request.options.keys() - {"messages", "tools", "functions"}
    options = {key: value for key, value in request.options.items() if key in shown}
    steps = [step for at, event in events if (step := writer.step(at - events[0][0], event, progress))]
    return {
        **summary,
        "shows_contents": shows_contents,
        "sent": sent,
        "options": writer.trimmed(options),
        "client_tools": _names_in(request.tools),
        "our_tools": [{"name": name, "server": tool.server} for name, tool in first.offered.items()][:2000],
        "messages": writer.messages,
        "steps": steps,
        "is_cut": writer.left <= 0,
    }


class _Writer:
    """Makes steps of events. Texts are cut to a bound each, and all together."""

    def __init__(self, *, shows_contents: bool, mask: Masked) -> None:
        self._shows_contents = shows_contents
        self._mask = mask
        self._places: dict[int, int] = {}
        self._kept: list[Any] = []
        """The messages themselves, so that none gets the place of another that had its address."""
        self._tools: dict[int, tuple[list[str], int]] = {}
        self.messages: list[JSON] = []
        self.left = MAX_RECORD

    def place(self, message: Any, origin: str) -> int:
        """The place of a message among all; it is added where it is new."""
        if id(message) not in self._places:
            self._places[id(message)] = len(self.messages)
            self._kept.append(message)
            shown = self.trimmed(message) if isinstance(message, dict) else {"content": self.trimmed(message)}
            content = message.get("content") if isinstance(message, dict) else None
            length = {"length": len(content)} if isinstance(content, str) else {}
            self.messages.append({**shown, **length, "origin": origin})
        return self._places[id(message)]

    def step(self, seconds: float, event: Event, progress: Mapping[str, CallProgressed]) -> JSON | None:
        """What happened, `seconds` after the beginning."""
        found = self._step_of(event, progress)
        return found and {"at": seconds, **found}

    def _step_of(self, event: Event, progress: Mapping[str, CallProgressed]) -> JSON | None:
        found: JSON | None = None
        match event:
            case RoundBegan(number=number):
                found = {"kind": "round", "number": number}
            case ModelAsked(request=request):
                found = self._request_step(request)
            case TextBegan():
                found = {"kind": "text"}
            case ModelAnswered(message=message):
                found = {
                    "kind": "answered",
                    "said": self.trimmed(message.fields),
                    "calls": [self._call(call) for call in message.tool_calls],
                    "finish": message.finish_reason,
                    "usage": self._numbers(message.usage),
                }
            case CallBegan(call=call, tool=tool):
                reached = self._progress(progress.get(call.id))
                server = tool.server if tool else None
                found = {"kind": "call", **self._call(call), "server": server, "progress": reached}
            case CallEnded():
                found = self._result(event)
            case ConversationEnded(outcome=outcome):
                found = {
                    "kind": "ended",
                    "finish": outcome.message.finish_reason,
                    "client_calls": [self._call(call) for call in outcome.message.tool_calls],
                    "waiting": [self._call(call) for call in outcome.pending_approvals],
                }
            case ModelFailed(error=error):
                found = {"kind": "failed", "error": error_of(error, self._mask)}
            case ConversationFailed(error=error):
                found = {"kind": "broken", "error": error_of(error, self._mask)}
            case ClientLeft():
                found = {"kind": "left"}
        return found

    def _request_step(self, request: ChatRequest) -> JSON:
        names, size = self._tools_in(request.tools or request.options.get("tools") or ())
        return {
            "kind": "asked",
            "messages": [self.place(message, "toolway") for message in request.messages],
            "tools": names,
            "tool_bytes": size,
            "tool_choice": self.trimmed(request.options.get("tool_choice")),
        }

    def _progress(self, event: CallProgressed | None) -> JSON | None:
        if event is None:
            return None
        progress = event.progress
        message = self._text(progress.message) if progress.message and self._shows_contents else None
        return {"progress": progress.progress, "total": progress.total, "message": message}

    def _result(self, event: CallEnded) -> JSON:
        result = event.result
        return {
            "kind": "result",
            "id": event.call.id[:200],
            "name": event.call.name[:200],
            "seconds": event.seconds,
            "is_error": result.is_error,
            "size": len(result.text),
            "text": self._text(result.text) if self._shows_contents else None,
            "images": [self._image_json(image.media_type, image.data) for image in result.images],
        }

    def _tools_in(self, tools: Any) -> tuple[list[str], int]:
        """The names of tools, and how many bytes their definitions have."""
        if id(tools) not in self._tools:
            self._kept.append(tools)
            read = _read_definitions if isinstance(tools, orjson.Fragment) else _names_and_size
            self._tools[id(tools)] = read(tools)
        return self._tools[id(tools)]

    def trimmed(self, value: Any, depth: int = 0) -> Any:
        """A JSON value whose texts are short enough; without what was said, texts are their lengths."""
        if isinstance(value, str):
            return self._text(value) if self._shows_contents or depth == 0 else f"({len(value):,} characters)"
        if isinstance(value, dict) and depth < 30:
            return {
                str(key)[:200]: part if key in ("role", "type", "name", "id", "tool_call_id") and isinstance(part, str)
                and len(part) < 200 else self.trimmed(part, depth + 1)
                for key, part in value.items()
            }  # fmt: skip
        if isinstance(value, list | tuple) and depth < 30:
            return [self.trimmed(part, depth + 1) for part in value]
        return value if isinstance(value, bool | int | float | None) else self._text(str(value))

    def _text(self, text: str) -> str:
        if found := _DATA_URL.match(text):
            return self._image_url(found[1] or "data", text)
        shown = text[: max(0, min(MAX_TEXT, self.left))]
        self.left -= len(shown)
        more = len(text) - len(shown)
        # Masked before it is cut, or half a secret would be left.
        shown = self._mask(text[: len(shown) + 200])[: len(shown)] if more else self._mask(shown)
        return f"{shown}… ({more:,} more characters)" if more else shown

    def _image_url(self, kind: str, url: str) -> str:
        if len(url) > min(MAX_IMAGE, self.left) or not self._shows_contents:
            return f"({kind}, {len(url):,} characters)"
        self.left -= len(url)
        return url

    def _image_json(self, kind: str, data: str) -> JSON:
        kept = self._shows_contents and len(data) <= min(MAX_IMAGE, self.left)
        self.left -= len(data) if kept else 0
        return {"media_type": kind[:100], "size": len(data) * 3 // 4, "data": data if kept else None}

    def _call(self, call: ToolCall) -> JSON:
        arguments = (
            self._text(call.arguments) if self._shows_contents else f"({len(call.arguments):,} characters)"
        )
        return {"id": call.id[:200], "name": call.name[:200], "arguments": arguments}

    def _numbers(self, usage: JSON | None) -> JSON | None:
        return (
            {key: value for key, value in usage.items() if isinstance(value, int | float | dict)}
            if usage
            else None
        )


def conversation_in(events: Sequence[Timed]) -> str:
    """The id of the conversation that these events are part of, as in the audit log and in approvals; or nothing."""
    first = events[0][1]
    assert isinstance(first, ConversationBegan)  # noqa: S101
    if first.caller is None or first.request is None:
        return ""
    return conversation_of(first.caller.id, first.request.messages)


def error_of(error: ToolwayError, mask: Masked) -> JSON:
    """An error for the console."""
    return {
        "message": mask(error.message[:2000]),
        "type": error.type,
        "code": error.code,
        "status": error.status,
    }


def _state(last: Event) -> str:
    match last:
        case ConversationEnded(outcome=outcome):
            return "waiting" if outcome.pending_approvals else "done"
        case ConversationFailed():
            return "error"
        case ClientLeft():
            return "left"
    return "running"


def _add_usage(total: JSON, usage: JSON | None) -> None:
    """Tokens of one more round."""
    total["prompt"] += token_count(usage, "prompt_tokens")
    total["completion"] += token_count(usage, "completion_tokens")
    total["cached"] += cached_tokens(usage)


def _title(first: ConversationBegan) -> str:
    """The beginning of what the user said last."""
    for message in reversed(first.request.messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            return _short(" ".join(text for text in texts if isinstance(text, str))[: 4 * TITLE], TITLE)
    return ""


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _names_and_size(tools: Any) -> tuple[list[str], int]:
    return _names_in(tools), len(dumps(tools)) if tools else 0


@lru_cache(maxsize=4)
def _read_definitions(tools: orjson.Fragment) -> tuple[list[str], int]:
    """The same of definitions that are JSON already: those of our tools, which many requests have in common."""
    return _names_and_size(tools)


def _names_in(tools: Any) -> list[str]:
    """The names in a list of tools, also in one that is JSON already."""
    if tools and not isinstance(tools, list | tuple):
        tools = loads(dumps(tools))
    names = []
    for tool in tools if isinstance(tools, list | tuple) else ():
        entry = tool if isinstance(tool, dict) else loads(dumps(tool))
        inner = entry.get("function") if isinstance(entry, dict) else None
        name = (inner if isinstance(inner, dict) else entry).get("name") if isinstance(entry, dict) else None
        names.append(str(name)[:200])
    return names[:2000]
