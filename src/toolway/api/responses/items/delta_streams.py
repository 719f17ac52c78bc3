"""What is told piece by piece: a text, the arguments of a call."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from toolway.api.responses.items.response_state import Event
from toolway.types import JSON
from toolway.wire.lenient_json import mended

HALF = ("\ud800", "\udbff")
"""The range of characters that are the first half of one: a model server may cut there."""


class Said:
    """A text that is told in events of one type. `about` stands in each of the events, which have the type `kind`."""

    def __init__(self, kind: str, about: JSON) -> None:
        self.kind = kind
        self._head = orjson.dumps({"type": kind, **about})[:-1] + b',"delta":'
        self._pieces: list[str] = []
        self._half = ""

    def add(self, text: str) -> bytes:
        """The event for one more piece, but for its end. Half a character waits for its other half."""
        if self._half:
            text, self._half = self._half + text, ""
        try:
            quoted = orjson.dumps(text)
        except TypeError:
            if HALF[0] <= text[-1] <= HALF[1]:
                text, self._half = text[:-1], text[-1]
            text = mended(text)
            quoted = orjson.dumps(text)
        self._pieces.append(text)
        return self._head + quoted

    def rest(self) -> str:
        """What is still to be told when no more comes: a sign for a half that stayed alone."""
        half, self._half = self._half, ""
        return mended(half)

    def whole(self) -> str:
        """All that was told."""
        return "".join(self._pieces)


class Speech:
    """A part of text that is being said: which one of which item."""

    def __init__(self, kind: str, item: str, index: int, number: int) -> None:
        self.kind, self.index, self.number = kind, index, number
        self.logprobs: list[JSON] = []
        self._tail = b',"logprobs":[]' if kind == "output_text" else b""
        about = {"item_id": item, "output_index": index, "content_index": number}
        self.said = Said(f"response.{kind}.delta", about)

    def more(self, text: str, end: bytes, logprobs: Sequence[JSON] = ()) -> Event:
        """The event for one more piece; `end` is the end of every event."""
        tail = self._tail
        if logprobs:
            self.logprobs += logprobs
            tail = b',"logprobs":' + orjson.dumps(logprobs)
        return self.said.kind, self.said.add(text) + tail + end

    def part(self) -> JSON:
        """The part with what was said by now."""
        text = self.said.whole()
        if self.kind == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}
        return {"type": self.kind, ("refusal" if self.kind == "refusal" else "text"): text}


class Function:
    """A call of the client's that is being written."""

    def __init__(self, item: str, index: int, is_custom: bool) -> None:
        self.index, self.is_custom = index, is_custom
        about = {"item_id": item, "output_index": index}
        self.said = Said("response.function_call_arguments.delta", about)
