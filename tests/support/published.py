"""The fields that the published schema of Open Responses (2026-04-24) requires, and a look at whether they are there.

`tests/support/responses.py` checks kinds, order and OpenAI's types; this is what a stranger's validator would miss.
"""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]

RESPONSE = (
    "id object created_at completed_at status incomplete_details model previous_response_id instructions output error"
    " tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs"
    " temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata"
    " safety_identifier prompt_cache_key"
)
COMPACTION = "id object output created_at usage"
USAGE = "input_tokens output_tokens total_tokens input_tokens_details output_tokens_details"
ITEMS = {
    "message": "id status role content",
    "function_call": "id call_id name arguments status",
    "reasoning": "id summary",
    "compaction": "id encrypted_content",
}
PARTS = {
    "input_text": "text",
    "output_text": "text annotations",
    "refusal": "refusal",
    "reasoning_text": "text",
}
_PLACE = "item_id output_index content_index "
EVENTS = {
    **dict.fromkeys(
        [
            f"response.{kind}"
            for kind in ("created", "queued", "in_progress", "completed", "failed", "incomplete")
        ],
        "response",
    ),
    "response.output_item.added": "output_index item",
    "response.output_item.done": "output_index item",
    "response.content_part.added": _PLACE + "part",
    "response.content_part.done": _PLACE + "part",
    "response.output_text.delta": _PLACE + "delta",
    "response.output_text.done": _PLACE + "text",
    "response.refusal.delta": _PLACE + "delta",
    "response.refusal.done": _PLACE + "refusal",
    # OpenAI's names and clients; Open Responses says `reasoning` for `reasoning_text` here.
    "response.reasoning_text.delta": _PLACE + "delta",
    "response.reasoning_text.done": _PLACE + "text",
    "response.function_call_arguments.delta": "item_id output_index delta",
    "response.function_call_arguments.done": "item_id output_index arguments",
    "error": "error",
}
ERROR = "type code message param"


def assert_published(response: JSON) -> None:
    """The response object has all fields of the schema, and items of its kinds alone."""
    _has(response, RESPONSE, "the response")
    assert response["object"] == "response"
    for tool in response["tools"]:
        _has(tool, "type name description parameters strict", "a tool")
    if response["usage"] is not None:
        assert_usage(response["usage"])
    _has(response["reasoning"] or {"effort": None, "summary": None}, "effort summary", "reasoning")
    if response["text"]["format"]["type"] == "json_schema":
        _has(response["text"]["format"], "name description schema strict", "text.format")
    for item in response["output"]:
        assert_published_item(item)


def assert_published_compaction(response: JSON) -> None:
    _has(response, COMPACTION, "the compaction")
    assert response["object"] == "response.compaction"
    assert_usage(response["usage"])
    for item in response["output"]:
        assert_published_item(item)


def assert_usage(usage: JSON) -> None:
    _has(usage, USAGE, "usage")
    assert "cached_tokens" in usage["input_tokens_details"]
    assert "reasoning_tokens" in usage["output_tokens_details"]


def assert_published_item(item: JSON) -> None:
    assert item["type"] in ITEMS, f"the schema knows no item of the type {item['type']}"
    _has(item, ITEMS[item["type"]], item["type"])
    for part in item.get("content") or ():
        assert_published_part(part)


def assert_published_part(part: JSON) -> None:
    assert part["type"] in PARTS, f"the schema knows no part of the type {part['type']}"
    _has(part, PARTS[part["type"]], part["type"])


def assert_published_event(event: JSON) -> None:
    kind = event["type"]
    assert kind in EVENTS, f"the schema knows no event of the type {kind}"
    _has(event, EVENTS[kind] + " sequence_number", kind)
    if "response" in event:
        assert_published(event["response"])
    if "item" in event:
        assert_published_item(event["item"])
    if "part" in event:
        assert_published_part(event["part"])
    if kind == "error":
        _has(event["error"], ERROR, "error.error")


def _has(value: JSON, names: str, what: str) -> None:
    missing = set(names.split()) - value.keys()
    assert not missing, f"{what} has no {sorted(missing)}"
