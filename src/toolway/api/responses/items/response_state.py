"""One response as it grows: its object, its items, and the numbered events that tell of them."""

from __future__ import annotations

from typing import Any

import orjson

from toolway.types import JSON

Event = tuple[str, bytes]
"""An event's type, and the whole event as JSON."""


class Output:
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
