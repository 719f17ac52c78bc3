"""What a client may rely on in a streamed answer, as functions for tests."""

from __future__ import annotations

import json
from typing import Any

JSON = dict[str, Any]


def chunks_of(text: str) -> list[JSON]:
    """The chunks of an event stream that ends with one `[DONE]`; comments are passed over."""
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") for event in events), text
    payloads = [event[6:] for event in events]
    assert payloads[-1] == "[DONE]", text
    assert payloads.count("[DONE]") == 1, text
    return [json.loads(payload, parse_constant=_no_json) for payload in payloads[:-1]]


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def content_of(chunks: list[JSON], member: str = "content") -> str:
    """The text of all deltas, without parts that are no text."""
    pieces = [c["choices"][0]["delta"].get(member) for c in chunks if c.get("choices")]
    return "".join(piece for piece in pieces if isinstance(piece, str))


def calls_of(text: str) -> list[JSON]:
    """The tool calls of a streamed answer, put together from their deltas."""
    calls: dict[int, JSON] = {}
    for chunk in chunks_of(text):
        for part in (chunk["choices"][0]["delta"].get("tool_calls") or ()) if chunk["choices"] else ():
            call = calls.setdefault(part["index"], {"id": "", "type": "function", "function": {}})
            call["id"] = call["id"] or part.get("id") or ""
            for member, piece in (part.get("function") or {}).items():
                call["function"][member] = call["function"].get(member, "") + piece
    return [call for _, call in sorted(calls.items())]


def error_of(chunks: list[JSON]) -> JSON:
    """The error at the end of a stream that failed: an event without choices, and no finish_reason before it."""
    assert "choices" not in chunks[-1], chunks[-1]
    assert not any(c["choices"] and c["choices"][0].get("finish_reason") for c in chunks[:-1]), chunks
    assert_error(chunks[-1])
    error: JSON = chunks[-1]["error"]
    return error


def assert_error(body: JSON) -> None:
    """OpenAI's envelope, with a message for people."""
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"], body


def assert_one_clean_answer(chunks: list[JSON]) -> None:
    """One id, one role, one finish_reason, usage only at the end."""
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    with_choices = [c["choices"][0] for c in chunks if c["choices"]]
    assert [c["delta"]["role"] for c in with_choices if "role" in c["delta"]] == ["assistant"]
    assert with_choices[0]["delta"].get("role") == "assistant"
    finishes = [c["finish_reason"] for c in with_choices if c.get("finish_reason") is not None]
    assert len(finishes) == 1
    assert with_choices[-1]["finish_reason"] == finishes[0]
    assert all(c["index"] == 0 for c in with_choices)
    assert not any(c.get("usage") for c in chunks if c["choices"])
