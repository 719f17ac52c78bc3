"""Is this a stream, or an object, of the Responses API? Held against the types of OpenAI's own client, and its order.

OpenAI's types are wider than its server in one way and narrower in another: they take unknown members, and they do not
know some that the server sends. So members are checked too; `_UNTYPED` are those that only the server knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import orjson
from openai.types.responses import Response, ResponseOutputItem, ResponseStreamEvent
from pydantic import BaseModel

from toolway.types import JSON
from toolway.wire import sse


def _by_type(union: Any) -> dict[str, type[BaseModel]]:
    kinds = get_args(get_args(union)[0])
    return {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in kinds}


_EVENTS = _by_type(ResponseStreamEvent)
_ITEMS = _by_type(ResponseOutputItem)

_UNTYPED = {
    "Response": {"store", "presence_penalty", "frequency_penalty"},
    "ResponseCustomToolCall": {"status"},
    "ResponseErrorEvent": {"error"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "Logprob": {"bytes"},
    "LogprobTopLogprob": {"bytes"},
}

_NEVER_NULL: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "created_at": int,
    "status": str,
    "model": str,
    "output": list,
    "tools": list,
    "tool_choice": (str, dict),
    "truncation": str,
    "parallel_tool_calls": bool,
    "text": dict,
    "temperature": (int, float),
    "top_p": (int, float),
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "top_logprobs": int,
    "store": bool,
    "background": bool,
    "service_tier": str,
    "metadata": dict,
}
"""What the Open Responses schema wants in every response object, and the kind of it."""

_NULLABLE: dict[str, type] = {
    "completed_at": int,
    "incomplete_details": dict,
    "error": dict,
    "previous_response_id": str,
    "instructions": str,
    "reasoning": dict,
    "usage": dict,
    "max_output_tokens": int,
    "max_tool_calls": int,
    "user": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
}
"""What must be there, but may be null."""

_CODES = {"context_length_exceeded", "insufficient_quota"}
"""Codes of failed responses that OpenAI's server sends and its types do not have."""

_TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
_TEXTS = {"output_text": "text", "reasoning_text": "text", "refusal": "refusal"}
_ARGUMENTS = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "mcp_call": ("response.mcp_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
}
_STAGES = {"mcp_call": "response.mcp_call", "mcp_list_tools": "response.mcp_list_tools"}


def read_events(stream: bytes) -> list[JSON]:
    """The events in the bytes of a stream, whose `event:` lines must name their types."""
    blocks = [block for block in stream.decode().split("\n\n") if block and not block.startswith(":")]
    assert blocks.pop() == f"data: {sse.DONE.decode()}"
    events = []
    for block in blocks:
        head, _, data = block.partition("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert head == f"event: {events[-1]['type']}"
    return events


def check_events(events: Iterable[JSON | tuple[str, bytes]]) -> JSON:
    """The final response object of a whole stream. AssertionError, ValidationError: the stream is none."""
    checked = _Stream()
    for event in _read(events):
        checked.take(event)
    return checked.end()


def check_response(response: JSON) -> JSON:
    """The same object, when it is one that OpenAI's client and the Open Responses schema take."""
    _fits(Response, _published(response))
    for item in response["output"]:
        check_item(item)
    identities = [item["id"] for item in response["output"]]
    assert len(set(identities)) == len(identities)
    for name, kind in _NEVER_NULL.items():
        assert isinstance(response[name], kind), f"{name} is {response[name]!r}"
        assert kind is bool or not isinstance(response[name], bool), f"{name} is {response[name]!r}"
    for name, kind in _NULLABLE.items():
        assert response[name] is None or isinstance(response[name], kind), f"{name} is {response[name]!r}"
    status = response["status"]
    assert (response["completed_at"] is not None) == (status == "completed")
    assert (response["incomplete_details"] is not None) == (status == "incomplete")
    assert (response["error"] is not None) == (status == "failed")
    if status == "completed":
        assert response["completed_at"] >= response["created_at"]
        assert {item.get("status", "completed") for item in response["output"]} <= {"completed", "failed"}
    return response


def _published(response: JSON) -> JSON:
    """The response without its items, and with a published code of failure where OpenAI's server has one of its own."""
    if (response["error"] or {}).get("code") in _CODES:
        return {**response, "output": [], "error": {**response["error"], "code": "server_error"}}
    return {**response, "output": []}


def check_item(item: JSON) -> JSON:
    """The same item, when it is one of a response's output."""
    assert item["type"] in _ITEMS, f"no item of the type {item['type']}"
    _fits(_ITEMS[item["type"]], item)
    return item


def _read(events: Iterable[JSON | tuple[str, bytes]]) -> Iterator[JSON]:
    for event in events:
        if isinstance(event, dict):
            yield event
        else:
            kind, body = event
            assert b"\n" not in body
            read = orjson.loads(body)
            assert read["type"] == kind
            yield read


def _fits(kind: type[BaseModel], value: JSON) -> None:
    _all_typed(kind.model_validate_json(orjson.dumps(value), strict=True))


def _all_typed(value: Any) -> None:
    if isinstance(value, BaseModel):
        name = type(value).__name__
        unknown = set(value.model_extra or ()) - _UNTYPED.get(name, set())
        assert not unknown, f"{name} has no {unknown}"
        for member in value.__dict__.values():
            _all_typed(member)
    elif isinstance(value, list):
        for member in value:
            _all_typed(member)


class _Stream:
    """What a client knows of a response by now."""

    def __init__(self) -> None:
        self._number = 0
        self._kinds: list[str] = []
        self._items: list[_Item] = []
        self._last: JSON = {}

    def take(self, event: JSON) -> None:
        kind = event["type"]
        assert not _TERMINAL.intersection(self._kinds), f"{kind} behind the end"
        assert kind in _EVENTS, f"no event of the type {kind}"
        whole = event.get("response")
        _fits(_EVENTS[kind], event if whole is None else {**event, "response": _published(whole)})
        assert event["sequence_number"] == self._number
        self._number += 1
        if whole is not None:
            self._take_response(kind, whole)
        elif kind == "response.output_item.added":
            assert event["output_index"] == len(self._items)
            self._items.append(_Item(check_item(event["item"])))
        elif kind != "error":
            assert self._kinds[-1] != "error"
            self._items[event["output_index"]].take(event)
        self._kinds.append(kind)

    def _take_response(self, kind: str, response: JSON) -> None:
        check_response(response)
        begun = {
            "response.created": ([], {"in_progress", "queued"}),
            "response.queued": (["response.created"], {"queued"}),
        }
        if kind in begun:
            assert self._kinds == begun[kind][0]
            assert response["status"] in begun[kind][1]
        elif kind == "response.in_progress":
            assert self._kinds in (["response.created"], ["response.created", "response.queued"])
            assert response["status"] == "in_progress"
        else:
            assert kind == f"response.{response['status']}"
            assert "response.in_progress" in self._kinds or kind == "response.failed"
        if kind not in _TERMINAL:
            assert not response["output"]
        assert self._last.get("id", response["id"]) == response["id"]
        assert self._last.get("created_at", response["created_at"]) == response["created_at"]
        self._last = response

    def end(self) -> JSON:
        assert self._kinds[0] == "response.created"
        assert self._kinds[-1] in _TERMINAL
        assert self._last["output"] == [item.done for item in self._items]
        return self._last


class _Item:
    """One item, from `output_item.added` to `output_item.done`."""

    def __init__(self, item: JSON) -> None:
        self._item = item
        self.done: JSON | None = None
        self._parts: list[JSON] = []
        self._open: list[str] | None = None
        """The deltas of the part, or the arguments, that are being said."""
        self._logprobs: list[JSON] = []
        self._text: str | None = None
        self._stages: list[str] = []
        assert item.get("status", "in_progress") == "in_progress"
        assert not item.get("content")
        if item["type"] in _ARGUMENTS:
            assert item[_ARGUMENTS[item["type"]][1]] == ""
            self._open = []

    def take(self, event: JSON) -> None:
        kind = event["type"]
        assert self.done is None, f"{kind} behind the end of the item"
        if kind == "response.output_item.done":
            self._end(event["item"])
            return
        assert event["item_id"] == self._item["id"]
        if kind == "response.content_part.added":
            self._add_part(event)
        elif kind == "response.content_part.done":
            self._end_part(event)
        elif kind.endswith((".delta", ".done")):
            self._take_text(event)
        else:
            stage, _, state = kind.rpartition(".")
            assert stage == _STAGES[self._item["type"]]
            self._stages.append(state)

    def _add_part(self, event: JSON) -> None:
        assert event["content_index"] == len(self._parts)
        assert self._open is None
        part = event["part"]
        assert part[_TEXTS[part["type"]]] == ""
        assert (part["type"] == "reasoning_text") == (self._item["type"] == "reasoning")
        self._parts.append(part)
        self._open, self._text, self._logprobs = [], None, []

    def _take_text(self, event: JSON) -> None:
        stem, _, what = event["type"].rpartition(".")
        if self._item["type"] in _ARGUMENTS:
            expected, name = _ARGUMENTS[self._item["type"]]
        else:
            assert event["content_index"] == len(self._parts) - 1
            expected, name = f"response.{self._parts[-1]['type']}", _TEXTS[self._parts[-1]["type"]]
        assert stem == expected
        assert self._open is not None
        if what == "delta":
            assert self._text is None, "a delta behind the whole text"
            self._open.append(event["delta"])
            self._logprobs += event.get("logprobs", [])
        else:
            assert self._text is None, "the whole text twice"
            self._text = "".join(self._open)
            assert event[name] == self._text
            assert event.get("logprobs", []) == self._logprobs
            assert event.get("name") in (None, self._item.get("name"))

    def _end_part(self, event: JSON) -> None:
        assert event["content_index"] == len(self._parts) - 1
        before, part = self._parts[-1], event["part"]
        assert self._text is not None
        assert part == {**before, _TEXTS[before["type"]]: self._text, **self._said_logprobs(part)}
        self._parts[-1] = part
        self._open = None

    def _said_logprobs(self, part: JSON) -> JSON:
        return {"logprobs": self._logprobs} if "logprobs" in part else {}

    def _end(self, item: JSON) -> None:
        check_item(item)
        kind = self._item["type"]
        changing = {
            "status",
            "content",
            "arguments",
            "input",
            "output",
            "error",
            "tools",
            "encrypted_content",
        }
        same = self._item.keys() - changing
        assert {name: item[name] for name in same} == {name: self._item[name] for name in same}
        assert "status" not in self._item or item["status"] in ("completed", "incomplete", "failed")
        if kind in _ARGUMENTS:
            assert item[_ARGUMENTS[kind][1]] == self._text
        else:
            assert self._open is None
            assert item.get("content", []) == self._parts
        if kind == "mcp_call":
            ends = [] if item["status"] == "incomplete" else [item["status"]]
            assert self._stages == ["in_progress", *ends]
        elif kind == "mcp_list_tools":
            assert self._stages == ["in_progress", "failed" if item.get("error") else "completed"]
        self.done = item
