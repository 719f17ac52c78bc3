"""Tool results -> what the model reads: one message for each call, in a size that a context can bear."""

from __future__ import annotations

from toolway.lax import mended
from toolway.types import JSON, ToolCall, ToolResult


def tool_message(call: ToolCall, result: ToolResult, *, max_chars: int) -> JSON:
    """The `role: tool` message for one call. Its content is a string and never empty."""
    text = result.text.strip() or "(the tool returned nothing)"
    if result.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": call.id, "content": shorten(mended(text), max_chars)}


def shorten(text: str, max_chars: int) -> str:
    """`text`, or its head and tail with a note between them that says how much is missing."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    note = f"\n\n[... {len(text) - max_chars:,} of {len(text):,} characters left out: ask for less at once ...]\n\n"
    return text[:head] + note + text[-tail:]
