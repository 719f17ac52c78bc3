"""A read stream whose door keeps doubled `list_changed` out and tells when the server has gone."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.abc import ObjectReceiveStream
from mcp.shared._stream_protocols import ReadStream
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification

Inbound = SessionMessage | Exception

TOOLS_CHANGED = "notifications/tools/list_changed"
_CHANGES = (TOOLS_CHANGED, "notifications/resources/list_changed", "notifications/prompts/list_changed")


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

    async def receive(self) -> Inbound:
        """The next message that is not a change notification.

        Raises:
            anyio.EndOfStream: The server has gone.
        """
        while True:
            try:
                item = await self._inside.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                self._ended()
                raise anyio.EndOfStream from None
            if not self._is_change(item):
                return item

    def _is_change(self, item: Inbound) -> bool:
        message = item.message if isinstance(item, SessionMessage) else None
        if not isinstance(message, JSONRPCNotification) or message.method not in _CHANGES:
            return False
        self._changed(message.method)
        return True

    async def aclose(self) -> None:
        """Close the stream inside."""
        await self._inside.aclose()
