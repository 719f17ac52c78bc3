"""The messages of one server before a session reads them: floods and changes of lists are kept out."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream
from mcp_types import JSONRPCNotification, JSONRPCRequest

from toolway.tools.mcp.messages import RpcResponse
from toolway.tools.mcp.options import LogBudget
from toolway.tools.mcp.sdk import ReadStream, SessionMessage

Inbound = SessionMessage | Exception

TOOLS_CHANGED = "notifications/tools/list_changed"
_CHANGES = (TOOLS_CHANGED, "notifications/resources/list_changed", "notifications/prompts/list_changed")

MAX_REQUESTS = 1000
"""Requests of a server within a minute; each is a task that waits until the server has read its answer."""

UNASKED_RATE, UNASKED_BURST = 200.0, 1000.0
"""Notifications of a server a second, and at once; each is a task, and perhaps a line of the log."""
CHANGES_BURST = 50_000.0
"""Change notifications at once, which cost next to nothing: servers send one for each of their tools."""
DROP_PAUSE = 0.002
"""Seconds after each one above that: what is not read costs nothing, and slows down only who sends it."""


class InboundFilter(ObjectReceiveStream[Inbound]):
    """The read stream of a session, without `list_changed` notifications and floods.

    A change notification is a call of `changed`, never a message: 20,000 of them in a row would otherwise start
    20,000 tasks in the dispatcher and starve the calls. What comes unasked beyond a budget is given to `dropped`, and
    read slowly. `answered` names the request that an answer ends; None: there is none.
    """

    def __init__(
        self,
        inside: ReadStream[Inbound],
        *,
        changed: Callable[[str], None],
        ended: Callable[[], None],
        dropped: Callable[[], None] = lambda: None,
        answered: Callable[[RpcResponse], RpcResponse | None] = lambda answer: answer,
    ) -> None:
        self._inside = inside
        self._changed = changed
        self._ended = ended
        self._dropped = dropped
        self._answered = answered
        self._requests = LogBudget(rate=MAX_REQUESTS / 60, burst=MAX_REQUESTS)
        self._unasked = LogBudget(rate=UNASKED_RATE, burst=UNASKED_BURST)
        self._changes = LogBudget(rate=UNASKED_RATE, burst=CHANGES_BURST)
        self._since_checkpoint = 0

    async def receive(self) -> Inbound:
        """The next message that somebody waits for.

        Raises:
            anyio.EndOfStream: The server has gone, or asks more than anybody could answer.
        """
        while True:
            await self._let_others_run()
            try:
                item = await self._inside.receive()
            except (anyio.EndOfStream, anyio.ClosedResourceError):
                self._ended()
                raise anyio.EndOfStream from None
            message = item.message if isinstance(item, SessionMessage) else None
            if isinstance(message, RpcResponse):
                if answer := self._answered(message):
                    return SessionMessage(answer)
                await self._count_unread(self._unasked)
                continue
            if isinstance(message, JSONRPCRequest) and not self._requests.spend():
                self._ended()
                raise anyio.EndOfStream
            if isinstance(message, JSONRPCNotification) and message.method in _CHANGES:
                self._changed(message.method)
                await self._count_unread(self._changes)
            elif not isinstance(message, JSONRPCNotification) or self._unasked.spend():
                return item
            else:
                await self._count_unread(self._unasked)

    async def _count_unread(self, budget: LogBudget) -> None:
        """One more message that nobody reads; there may be some."""
        if not budget.spend():
            self._dropped()
            await anyio.sleep(DROP_PAUSE)

    async def _let_others_run(self) -> None:
        """A stream with a full inbox never waits by itself."""
        self._since_checkpoint += 1
        if self._since_checkpoint >= 50:
            self._since_checkpoint = 0
            await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close the stream inside."""
        await self._inside.aclose()
