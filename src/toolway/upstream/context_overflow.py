"""How a model server says that a conversation is too long for its model."""

from __future__ import annotations

import re
from typing import Any

import orjson

from toolway.conversation.message import error_in
from toolway.errors import UpstreamError, UpstreamStatus

_OVERFLOW = re.compile(
    rb"exceed_context_size|context_(?:length|window)_exceeded|context the overflows|max_model_len"
    rb"|context (?:length|size|window)[^.]{0,60}exceed|exceed[^.]{0,60}context (?:length|size|window)"
    rb"|maximum context length|model's context length|(?:prompt|input) is too long"
    rb"|reduce the length of the (?:messages|input|prompt)",
    re.IGNORECASE,
)
"""The wordings of llama.cpp, OpenAI, vLLM, llama-cpp-python, LM Studio and Anthropic's own API."""

_STATUSES = frozenset({400, 413, 422, 500})


def is_overflow(error: UpstreamError) -> bool:
    """Whether the model server refused because the conversation is too long.

    A stream that is empty means it too: llama-cpp-python and some builds of LM Studio say no more than that.
    """
    if isinstance(error, UpstreamStatus):
        return error.status in _STATUSES and bool(_OVERFLOW.search(error.body))
    if error.code == "upstream_cut":
        return "without" in error.message
    text = f"{error.type} {error.code} {error.message}"
    return bool(_OVERFLOW.search(text.encode(errors="replace")))


def refusal_code(error: UpstreamError) -> str | None:
    """The code by which clients know an error: its own word, or OpenAI's where it has a number or none."""
    told = (_told(error) or error) if isinstance(error, UpstreamStatus) else error
    if told.code and not told.code.isdigit():
        return told.code
    if is_overflow(error):
        return "context_length_exceeded"
    return "rate_limit_exceeded" if error.status == 429 or "rate_limit" in told.type else told.code


def _told(error: UpstreamStatus) -> UpstreamError | None:
    """The error that the body of a refusal holds."""
    try:
        body: Any = orjson.loads(error.body)
    except orjson.JSONDecodeError:
        return None
    return error_in(body) if isinstance(body, dict) else None


def excess_of(error: UpstreamError) -> float:
    """The share of the prompt that must go, with some room for an answer: 0.5 when the server names no numbers."""
    prompt, context = _sizes(error)
    if not prompt or not context:
        return 0.5
    return min(0.95, max(0.1, 1 - 0.75 * context / prompt))


def _sizes(error: UpstreamError) -> tuple[float, float]:
    """llama.cpp's `n_prompt_tokens` and `n_ctx`; zeros when they are not told."""
    if not isinstance(error, UpstreamStatus):
        return 0, 0
    try:
        body: Any = orjson.loads(error.body)
    except orjson.JSONDecodeError:
        return 0, 0
    error_object = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error_object, dict):
        return 0, 0
    prompt, context = error_object.get("n_prompt_tokens"), error_object.get("n_ctx")
    return (prompt, context) if isinstance(prompt, int) and isinstance(context, int) else (0, 0)
