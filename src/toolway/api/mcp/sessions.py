"""Bounds of the sessions of /mcp: how many a caller may have, and all together, and which one ends for a new one."""

from __future__ import annotations

from collections import defaultdict
from math import inf

from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

MAX_SESSIONS = 2_000
"""Clients of the versions that have sessions (before 2026-07-28) at a time."""

MAX_SESSIONS_OF_CALLER = 500
"""Those of one key, or of one credential where there are no keys."""


class SessionBounds:
    """Makes room among the sessions of a manager. What may end is idle: it has neither a request nor a stream open."""

    def __init__(self, manager: StreamableHTTPSessionManager) -> None:
        self._manager = manager

    async def make_room(self, caller: str) -> bool:
        """End what has to end before this caller (`caller_id`) may begin one more session; False: nothing may.

        Of a caller that has its number the session ends that was idle the longest. Where all together have theirs, it
        is one of the caller that has the most, so that nobody loses one to somebody with more.
        """
        while sessions := self._to_shrink(caller):
            idle = {i: scope.deadline for i, t in sessions.items() if (scope := t.idle_scope) is not None}
            first = min(idle, key=lambda identity: idle[identity], default="")
            if idle.get(first, inf) == inf:
                return False
            await self._manager._discard_session(first, sessions[first])
        return True

    def _to_shrink(self, caller: str) -> dict[str, StreamableHTTPServerTransport]:
        """The sessions of which one has to end; none where there is room."""
        by_owner: defaultdict[str, dict[str, StreamableHTTPServerTransport]] = defaultdict(dict)
        for identity, transport in self._manager._server_instances.items():
            by_owner[_owner(self._manager._session_owners[identity]["client_id"])][identity] = transport
        own = by_owner[_owner(caller)]
        if len(own) >= MAX_SESSIONS_OF_CALLER:
            return own
        if len(self._manager._server_instances) >= MAX_SESSIONS:
            return max(by_owner.values(), key=len)
        return {}


def _owner(caller: str) -> str:
    """Whose number counts: the key's, whatever credentials for the model server come along."""
    return caller.partition(":")[0]
