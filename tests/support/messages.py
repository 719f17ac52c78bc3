"""Checks an event stream, a message or an error of the Messages API against what Anthropic's clients rely on."""

from __future__ import annotations

import re
from typing import Any

import orjson

JSON = dict[str, Any]

EVENTS = frozenset({
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
    "message_stop", "ping", "error",
})  # fmt: skip
DELTAS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("thinking", "signature"),
    "input_json_delta": ("tool_use", "partial_json"),
}
"""By the type of a delta: the type of its block, and the member that holds the text."""

STOP_REASONS = frozenset({"end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal"})
ERRORS = frozenset({
    "invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error",
    "request_too_large", "rate_limit_error", "api_error", "timeout_error", "overloaded_error",
})  # fmt: skip
BLOCKS = {
    "text": {"text"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "tool_use": {"id", "name", "input"},
    "mcp_tool_listing": {"mcp_server_name", "tools"},
    "mcp_tool_use": {"id", "name", "server_name", "input"},
    "mcp_tool_result": {"tool_use_id", "is_error", "content"},
    "server_tool_use": {"id", "name", "input"},
    "tool_search_tool_result": {"tool_use_id", "content"},
}
"""The members of each block."""


def events_of(text: str) -> list[JSON]:
    """The events of a stream, each checked to have its name and its type alike; comments are passed over."""
    events = []
    for piece in text.split("\n\n"):
        lines = [line for line in piece.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        assert [line.split(": ", 1)[0] for line in lines] == ["event", "data"], piece
        event = orjson.loads(lines[1].removeprefix("data: "))
        assert lines[0] == f"event: {event['type']}"
        events.append(event)
    return events


def read_message(text: str) -> JSON:
    """The message that a stream tells, its order checked; with an `error` if it ends with one."""
    events = [event for event in events_of(text) if event["type"] != "ping"]
    first, *rest = events
    assert first["type"] == "message_start"
    message = first["message"]
    assert message["content"] == []
    assert message["stop_reason"] is None
    assert message["usage"]["input_tokens"] > 0
    pieces: list[str] | None = None
    for position, event in enumerate(rest):
        kind = event["type"]
        assert kind in EVENTS, kind
        content = message["content"]
        if kind == "error":
            assert position == len(rest) - 1
            return {**message, "error": event}
        if kind == "content_block_start":
            assert pieces is None, "one block open at a time"
            assert event["index"] == len(content)
            content.append(event["content_block"])
            pieces = []
        elif kind == "content_block_delta":
            assert pieces is not None
            assert event["index"] == len(content) - 1
            of, member = DELTAS[event["delta"]["type"]]
            block = content[-1]
            assert block["type"] == of
            if of == "tool_use":
                pieces.append(event["delta"][member])
            else:
                block[member] += event["delta"][member]
        elif kind == "content_block_stop":
            assert event["index"] == len(content) - 1
            if pieces:
                content[-1]["input"] = orjson.loads("".join(pieces))
            pieces = None
        elif kind == "message_delta":
            assert pieces is None
            message |= event["delta"]
            message["usage"] |= event["usage"]
        else:
            assert kind == "message_stop"
            assert position == len(rest) - 1
    assert rest[-1]["type"] == "message_stop", "the stream has its end"
    return check_message(message)


def check_message(message: JSON) -> JSON:
    """A whole message: its blocks, and the reason that follows from them."""
    assert re.fullmatch(r"msg_\w{10,}", message["id"])
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["stop_reason"] in STOP_REASONS
    for block in message["content"]:
        assert block.keys() == {"type", *BLOCKS[block["type"]]}
        assert isinstance(block.get("input", {}), dict)
    has_calls = any(block["type"] == "tool_use" for block in message["content"])
    if message["stop_reason"] in ("end_turn", "tool_use"):
        assert has_calls == (message["stop_reason"] == "tool_use")
    assert (message["stop_sequence"] is not None) == (message["stop_reason"] == "stop_sequence")
    usage = message["usage"]
    assert all(type(usage[name]) is int and usage[name] >= 0 for name in ("input_tokens", "output_tokens"))
    return message


def check_error(body: JSON) -> str:
    """An error in Anthropic's envelope; its message."""
    assert body["type"] == "error"
    assert body["error"].keys() - {"details"} == {"type", "message"}
    assert body["error"]["type"] in ERRORS
    assert re.fullmatch(r"req_\w{10,}", body["request_id"])
    return str(body["error"]["message"])
