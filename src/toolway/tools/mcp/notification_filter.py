"""A read stream whose door keeps doubled `list_changed` and floods out, and tells when the server has gone."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.abc import ObjectReceiveStream
from mcp.shared._stream_protocols import ReadStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest

Inbound = SessionMessage | Exception

TOOLS_CHANGED = "notifications/tools/list_changed"
_CHANGES = (TOOLS_CHANGED, "notifications/resources/list_changed", "notifications/prompts/list_changed")

MOST_ASKED = 1000
"""Requests of a server within a minute; each is a task that waits until the server has read its answer."""


class Door(ObjectReceiveStream[Inbound]):
    """Wraps `inside`. A change notification is a call of `changed`, never a message: 20,000 of them in a row
    would otherwise start 20,000 tasks in the dispatcher and starve the calls.
    """

    def __init__(
        self, inside: ReadStream[Inbound], *, changed: Callable[[str], None], ended: Callable[[], None]
    ) -> None:
        self._inside = inside
        self._changed = changed
        self._ended = ended
        self._asked = 0
        self._minute = -1

    async def receive(self) -> Inbound:
        """The next message that is not a change notification.

        Raises:
            anyio.EndOfStream: The server has gone, or asks more than anybody could answer.
        """
        while True:
            try:
                item = await self._inside.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                self._ended()
                raise anyio.EndOfStream from None
            if self._is_flood(item):
                self._ended()
                raise anyio.EndOfStream
            if not self._is_change(item):
                return item

    def _is_flood(self, item: Inbound) -> bool:
        if not isinstance(item, SessionMessage) or not isinstance(item.message, JSONRPCRequest):
            return False
        minute = int(anyio.current_time() // 60)
        self._asked = self._asked + 1 if minute == self._minute else 1
        self._minute = minute
        return self._asked > MOST_ASKED

    def _is_change(self, item: Inbound) -> bool:
        message = item.message if isinstance(item, SessionMessage) else None
        if not isinstance(message, JSONRPCNotification) or message.method not in _CHANGES:
            return False
        self._changed(message.method)
        return True

    async def aclose(self) -> None:
        """Close the stream inside."""
        await self._inside.aclose()
