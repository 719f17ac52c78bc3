"""The shapes of chat completions in requests to the Responses API, rewritten as its own.

Programs that came from chat completions keep `role: "tool"` messages, `tool_calls` of an assistant and
`{"type": "function", "function": {...}}` at times. OpenAI refuses these; their meaning is plain, and the agent that
sends them has nobody to mend it in mid-conversation, so they are taken here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from toolway.api import fields
from toolway.errors import InvalidRequest
from toolway.types import JSON

_WRAPPED = frozenset({"function", "custom", "allowed_tools", "grammar", "json_schema"})
"""Types that chat completions write as an object in an object: `{"type": T, T: {...}}`."""

_CALL_ITEMS = {"function": "function_call", "custom": "custom_tool_call"}
"""The item that tells a call, by the call's type."""

_TOOL_MESSAGE = fields.object_of({"tool_call_id": fields.Name})
_CALLS = fields.object_of({"tool_calls": Annotated[list[JSON], fields.Expected("a list of calls")]})
_CALL = fields.object_of({"id": fields.Name, "type": str})


def own_shapes(body: JSON) -> JSON:
    """The body with its tools, choice, form and input as the Responses API has them.

    Raises InvalidRequest for a message of a chat completion that has no meaning; what is wrong in any other way is
    left as it is, for whoever reads it.
    """
    given = body.get("input")
    if given is None and body.get("messages") is not None:
        raise InvalidRequest(
            "Missing required parameter: 'input'. Send the messages as input, or this request to /v1/chat/completions.",
            param="input",
            code="missing_required_parameter",
        )
    new = {name: _unwrapped_all(body[name]) for name in ("tools", "tool_choice") if body.get(name)}
    if isinstance(text := body.get("text"), dict) and text.get("format"):
        new["text"] = {**text, "format": _unwrapped(text["format"])}
    if isinstance(given, list) and any(map(_is_of_chat, given)):
        fields.check_size("input", len(given), sum(_calls_of(item) for item in given))
        new["input"] = [
            read for number, item in enumerate(given) for read in _items(item, f"input[{number}]")
        ]
    return {**body, **new} if new else body


def _unwrapped_all(value: Any) -> Any:
    """Tools or a choice of them, with the formats in them and the tools of a namespace or a choice."""
    if isinstance(value, list):
        return [_unwrapped_tool(each) for each in value]
    return _unwrapped_tool(value)


def _unwrapped_tool(value: Any) -> Any:
    value = _unwrapped(value)
    if not isinstance(value, dict):
        return value
    new = {"format": _unwrapped(value["format"])} if value.get("format") else {}
    if isinstance(inner := value.get("tools"), list):
        new["tools"] = [_unwrapped(each) for each in inner]
    return {**value, **new} if new else value


def _unwrapped(value: Any) -> Any:
    """`{"type": T, T: {...}}` as `{"type": T, ...}`; anything else as it is."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _WRAPPED or not isinstance(inner := value.get(kind), dict):
        return value
    return {**{name: each for name, each in value.items() if name != kind}, **inner, "type": kind}


def _calls_of(item: Any) -> int:
    calls = item.get("tool_calls") if isinstance(item, dict) else None
    return len(calls) if isinstance(calls, list) else 0


def _is_of_chat(item: Any) -> bool:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        return False
    return item.get("role") == "tool" or bool(item.get("tool_calls"))


def _items(item: Any, where: str) -> Iterator[Any]:
    if not _is_of_chat(item):
        yield item
        return
    if item.get("role") == "tool":
        call_id = fields.check(_TOOL_MESSAGE, item, where)["tool_call_id"]
        yield {"type": "function_call_output", "call_id": call_id, "output": item.get("content")}
        return
    reasoning = item.get("reasoning_content") or item.get("reasoning")
    if isinstance(reasoning, str):
        yield {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": reasoning}]}
    if item.get("content"):
        yield {"type": "message", "role": item.get("role"), "content": item["content"]}
    for number, call in enumerate(fields.check(_CALLS, item, where)["tool_calls"]):
        yield _call(call, f"{where}.tool_calls[{number}]")


def _call(call: JSON, where: str) -> JSON:
    given = fields.check(_CALL, {"type": "function", **call}, where)
    kind = given["type"]
    if kind not in _CALL_ITEMS:
        raise fields.invalid(kind, f"{where}.type", "Calls are of the type function or custom.")
    if not isinstance(body := call.get(kind), dict):
        raise fields.missing(f"{where}.{kind}")
    return {**body, "type": _CALL_ITEMS[kind], "call_id": given["id"]}
