"""One MCP server as a ToolSource: its status, and calls that outlive a restart of the server."""

from __future__ import annotations

import logging
from collections.abc import Callable

from toolway.errors import SourceError
from toolway.settings.mcp_server import McpServerConfig
from toolway.tools.mcp.errors import LostError, RefusedError, explain
from toolway.tools.mcp.options import ConnectOptions
from toolway.tools.mcp.supervisor import ReconnectPolicy, Supervisor
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult

HEADER_MISMATCH = -32020


class MCPSource:
    """See `types.ToolSource`. The connection belongs to a `Supervisor`."""

    kind = "mcp"

    def __init__(
        self,
        config: McpServerConfig,
        options: ConnectOptions | None = None,
        policy: ReconnectPolicy | None = None,
    ) -> None:
        self.label = config.label
        self.config = config
        self._options = options or ConnectOptions()
        logger = self._options.logger or logging.getLogger(f"toolway.server.{config.label}")
        self._supervisor = Supervisor(config, self._options, policy or ReconnectPolicy(), logger)

    @property
    def status(self) -> SourceStatus:
        """The newest status."""
        return self._supervisor.status

    async def run(self, changed: Callable[[], None]) -> None:
        """Keep the connection alive until cancelled; see `ToolSource.run`."""
        await self._supervisor.run(changed)

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one tool; see `ToolSource.call`. What cannot have reached the server is sent once more."""
        try:
            with self._supervisor.activity.call():
                return await self._call(tool, arguments, on_progress)
        except RefusedError as refusal:
            return _error(explain(refusal, self.label, configured=self._options.egress is None))
        except LostError as lost:
            ended = f"The server {self.label!r} ended during the call ({lost}) and is being restarted."
            unknown = "Whether the call had an effect is unknown."
            return _error(f"{ended} {unknown}{self._supervisor.log.last_words()}")
        except SourceError as error:
            return _error(f"The server {self.label!r} is not available: {error}")

    async def _call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        supervisor = self._supervisor
        for last in (False, True):
            session = await supervisor.current_session()
            try:
                result = await session.call(tool.handle, arguments, on_progress)
            except RefusedError as refusal:
                if refusal.session_lost or refusal.status == 401:
                    supervisor.drop(session, refusal)
                elif refusal.code == HEADER_MISMATCH and not last:
                    tool = await supervisor.relist(session, tool)
                    continue
                if last or not refusal.unsent:
                    raise
            except LostError as lost:
                if last or lost.sent:
                    raise
                supervisor.drop(session, None)
            else:
                supervisor.call_succeeded()
                return result
        raise AssertionError("unreachable")


def _error(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True)
