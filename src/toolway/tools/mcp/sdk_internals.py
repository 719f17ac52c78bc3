"""Names of the MCP SDK that are private there, for all of Toolway: what a new version of it may break unannounced.

No other module imports such a name. Those that it shows, and does not promise to keep, are in `sdk`.
"""

from __future__ import annotations

from mcp.shared._context_streams import ContextSendStream, create_context_streams
from mcp.shared._otel import inject_trace_context
from mcp.shared._stream_protocols import ReadStream, WriteStream

__all__ = [
    "ContextSendStream",
    "ReadStream",
    "WriteStream",
    "create_context_streams",
    "inject_trace_context",
    "set_ping_interval",
]


def set_ping_interval(seconds: float) -> None:
    """Have a stream to a client of 2026-07-28 pinged so often, for which the SDK's server has a constant only."""
    from mcp.server import _streamable_http_modern  # noqa: PLC0415 - loads the SDK's server

    setattr(_streamable_http_modern, "_SSE_PING_INTERVAL", seconds)  # noqa: B010 - it is final
