"""Tool results -> what the model reads: texts in a size that its context can bear, pictures it can see, notes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from toolway.types import JSON, Image, ToolCall, ToolResult
from toolway.wire.lenient_json import mended

PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The kinds that models take."""

MAX_PICTURES = 8
"""Pictures that one round shows."""

READ_MORE = "toolway_read_more"
"""The tool that reads on in a result that was cut."""

LEAST = 2000
"""Characters of results in one round that every model is trusted with."""

CHARS_PER_TOKEN = 3
"""On the safe side: English has about four, JSON and code about three."""

PICTURES_OF = "Images returned by "
"""How the message that holds the pictures of a round begins."""

_CUT_ID = re.compile(READ_MORE + r' with \{"id": "(\w+)"')


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Characters of tool results that the model gets: of each one, and of all of one round together."""

    result: int
    round: int

    def within(self, context: int | None) -> Budget:
        """The budget for a model with a context of so many tokens: a quarter for one result, half for a round."""
        if context is None:
            return self
        chars = context * CHARS_PER_TOKEN
        return Budget(
            result=min(self.result, max(LEAST, chars // 4)), round=min(self.round, max(LEAST, chars // 2))
        )

    def shares(self, lengths: Sequence[int]) -> list[int]:
        """How many characters each result of a round keeps: short ones stay whole, long ones share what is left."""
        kept = [min(length, self.result) for length in lengths]
        left = self.round
        for rank, position in enumerate(sorted(range(len(kept)), key=kept.__getitem__)):
            kept[position] = min(kept[position], left // (len(kept) - rank))
            left -= kept[position]
        return kept


def tool_message(call: ToolCall, text: str) -> JSON:
    """The `role: tool` message for one call. Its content is a string and never empty."""
    return {"role": "tool", "tool_call_id": call.id, "content": text}


def text_of(result: ToolResult) -> str:
    """A result's text as the model reads it when it is whole."""
    text = result.text.strip() or "(the tool returned nothing)"
    if result.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return mended(text)


def shorten(text: str, max_chars: int, kept_as: str | None = None) -> str:
    """`text`, or its head and tail with a note between them that says how much is missing and how to see it.

    `kept_as` is the id under which READ_MORE finds the whole text; None when that tool is not there.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    how = "ask for less at once"
    if kept_as:
        how = (
            f'to see more, call {READ_MORE} with {{"id": "{kept_as}", "offset": {head}}} '
            f'or with {{"id": "{kept_as}", "search": "words"}}'
        )
    note = f"\n\n[... {len(text) - max_chars:,} of {len(text):,} characters left out: {how} ...]\n\n"
    return text[:head] + note + (text[-tail:] if tail else "")


def id_in(text: str) -> str | None:
    """The id of the whole text in the note of one that was cut."""
    match = _CUT_ID.search(text)
    return match[1] if match else None


def pictures_message(pictures: Sequence[tuple[ToolCall, Image]]) -> JSON:
    """A user message with these pictures: no backend takes any in a `role: tool` message."""
    names = ", ".join(dict.fromkeys(call.name for call, _ in pictures))
    parts: list[JSON] = [{"type": "text", "text": f"{PICTURES_OF}{names}:"}]
    for _, image in pictures:
        url = f"data:{image.media_type};base64,{image.data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}


def without_pictures(message: JSON) -> JSON:
    """A message of `pictures_message` with a note in place of the pictures; any other message as it is."""
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, list) or len(content) < 2:
        return message
    first = content[0].get("text") if isinstance(content[0], dict) else None
    if not isinstance(first, str) or not first.startswith(PICTURES_OF):
        return message
    return {**message, "content": f"{first} (left out: the conversation became too long)"}
