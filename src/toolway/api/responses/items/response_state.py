"""The state of one response that is being generated: its object, its items, and the texts that grow by delta events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from toolway.types import JSON
from toolway.wire.lenient_json import mended

Event = tuple[str, bytes]
"""An event's type, and the whole event as JSON."""

_HALF = ("\ud800", "\udbff")
"""The range of characters that are the first half of one: a model server may cut there."""


class ResponseState:
    """`frame` is the response object without its items; it is the caller's to change."""

    def __init__(self, frame: JSON) -> None:
        self.frame = frame
        self.items: list[JSON] = []
        self._number = 0

    @property
    def resource(self) -> JSON:
        """The response as it is now; it does not change when more happens."""
        return {**self.frame, "output": self.items.copy()}

    @property
    def has_begun(self) -> bool:
        """Whether there was an event."""
        return self._number > 0

    def add(self, prefix: str, item: JSON, *, made_in: str = "") -> tuple[int, list[Event]]:
        """A new item; its id begins with that of its response, to be found again by it, and ends with `made_in`."""
        index = len(self.items)
        item = {"id": f"{prefix}_{self.frame['id'].removeprefix('resp_')}{index:04x}{made_in}", **item}
        self.items.append(item)
        return index, [self.event("response.output_item.added", {"output_index": index, "item": item})]

    def done(self, index: int, **changes: Any) -> Event:
        """The last changes of an item."""
        item = self.change(index, **changes)
        return self.event("response.output_item.done", {"output_index": index, "item": item})

    def change(self, index: int, **changes: Any) -> JSON:
        """An item with these members."""
        item = self.items[index] = {**self.items[index], **changes}
        return item

    def about(self, index: int, kind: str, **more: Any) -> Event:
        """An event about an item."""
        return self.event(kind, {"item_id": self.items[index]["id"], "output_index": index, **more})

    def whole(self, kind: str) -> Event:
        """An event about the response."""
        return self.event(kind, {"response": self.resource})

    def event(self, kind: str, body: JSON) -> Event:
        """Any event."""
        return kind, orjson.dumps({"type": kind, **body})[:-1] + self.numbered()

    def numbered(self) -> bytes:
        """The end of the next event, for those who write its beginning themselves."""
        self._number += 1
        return b',"sequence_number":%d}' % (self._number - 1)


class DeltaStream:
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
            if _HALF[0] <= text[-1] <= _HALF[1]:
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


class TextPart:
    """A part of text that is being said: which one of which item."""

    def __init__(self, kind: str, item: str, index: int, number: int) -> None:
        self.kind, self.index, self.number = kind, index, number
        self.logprobs: list[JSON] = []
        self._tail = b',"logprobs":[]' if kind == "output_text" else b""
        about = {"item_id": item, "output_index": index, "content_index": number}
        self.deltas = DeltaStream(f"response.{kind}.delta", about)

    def delta(self, text: str, end: bytes, logprobs: Sequence[JSON] = ()) -> Event:
        """The event for one more piece; `end` is the end of every event."""
        tail = self._tail
        if logprobs:
            self.logprobs += logprobs
            tail = b',"logprobs":' + orjson.dumps(logprobs)
        return self.deltas.kind, self.deltas.add(text) + tail + end

    def as_json(self) -> JSON:
        """The part with what was said by now."""
        text = self.deltas.whole()
        if self.kind == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}
        return {"type": self.kind, ("refusal" if self.kind == "refusal" else "text"): text}


class ClientCall:
    """A call of the client's that is being written."""

    def __init__(self, item: str, index: int, is_custom: bool) -> None:
        self.index, self.is_custom = index, is_custom
        about = {"item_id": item, "output_index": index}
        self.deltas = DeltaStream("response.function_call_arguments.delta", about)
