"""The response object: every field of the published schema, with OpenAI's defaults where the client said nothing."""

from __future__ import annotations

from typing import Any

from toolway.api.responses.items.request import ResponseRequest
from toolway.api.responses.items.tools import shown_members, tool_as_shown
from toolway.types import JSON

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

_MOST_TOKENS = 2**53
"""More is an error of the model server's, and no JSON reader takes it."""

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
    repeated = {
        name: default if given.get(name) is None else given[name] for name, default in _DEFAULTS.items()
    }
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
    input_tokens = _count(usage.get("prompt_tokens"))
    output_tokens = _count(usage.get("completion_tokens"))
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {
            "cached_tokens": _detail(usage, "prompt_tokens_details", "cached_tokens"),
            "cache_write_tokens": _detail(usage, "prompt_tokens_details", "cache_write_tokens"),
        },
        "output_tokens": output_tokens,
        "output_tokens_details": {
            "reasoning_tokens": _detail(usage, "completion_tokens_details", "reasoning_tokens")
        },
        "total_tokens": _count(usage.get("total_tokens")) or input_tokens + output_tokens,
    }


def _detail(usage: JSON, group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    """A number of tokens; servers that compute in floating point write 12.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
        return 0
    return int(value)
