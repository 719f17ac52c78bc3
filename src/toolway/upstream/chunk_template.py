"""Chunks that differ from the one before in nothing but their text, known without parsing them."""

from __future__ import annotations

from toolway.types import JSON

QUOTE, BACKSLASH = b'"\\'


class ChunkTemplate:
    """What stands around the text in chunk after chunk of one stream.

    Parsing is most of what a chunk costs, and nearly all chunks of a stream are the same but for a word.
    """

    def __init__(self) -> None:
        self._head = self._tail = b""

    def learn(self, chunk: JSON, payload: bytes) -> None:
        """Take this chunk as the pattern, if one plain text is all that its delta holds."""
        self._head = b""
        choices = chunk["choices"]
        delta = choices[0]["delta"] if choices else {}
        text = delta.get("content")
        if len(delta) == 1 and isinstance(text, str) and text:
            quoted = b'"%s"' % text.encode()
            before, _, after = payload.partition(quoted)
            if before.endswith((b'"content":', b'"content": ')) and quoted not in after:
                self._head, self._tail = before + b'"', b'"' + after

    def text_in(self, payload: bytes) -> str | None:
        """The text of a chunk that repeats the pattern; None for any other, and where a parser is needed."""
        head, tail = self._head, self._tail
        if not (head and payload.startswith(head) and payload.endswith(tail)):
            return None
        quoted = payload[len(head) : -len(tail)]
        if not quoted or QUOTE in quoted or BACKSLASH in quoted:
            return None
        try:
            text = quoted.decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None
