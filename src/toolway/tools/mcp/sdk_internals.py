"""Names of the MCP SDK that are private there, for all of Toolway: what a new version of it may break unannounced.

No other module has such a name, but for the methods of the SDK's transport that `http.HttpTransport` overrides. Those
that the SDK shows, and does not promise to keep, are in `sdk`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from mcp.shared._context_streams import ContextSendStream, create_context_streams
from mcp.shared._otel import inject_trace_context
from mcp.shared._stream_protocols import ReadStream, WriteStream

if TYPE_CHECKING:  # they load the SDK's server, and httpx2
    import httpx2
    from mcp.client.streamable_http import RequestContext, StreamableHTTPTransport
    from mcp.server.connection import Connection
    from mcp.server.session import ServerSession
    from mcp.server.streamable_http import StreamableHTTPServerTransport
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.shared.dispatcher import DispatchContext

__all__ = [
    "ContextSendStream",
    "ReadStream",
    "WriteStream",
    "add_requests_in_flight",
    "connection_of",
    "create_context_streams",
    "discard_session",
    "handle_post",
    "handle_sse",
    "inject_trace_context",
    "outbound_of",
    "owner_of_session",
    "protocol_headers",
    "set_ping_interval",
    "transports_of",
]

# -- the client


def handle_post(transport: StreamableHTTPTransport, context: RequestContext) -> Awaitable[None]:
    """Send a request and read its answer, as the SDK does."""
    return transport._handle_post_request(context)


def handle_sse(
    transport: StreamableHTTPTransport, response: httpx2.Response, context: RequestContext
) -> Awaitable[None]:
    """Read an answer that is a stream of events, as the SDK does."""
    return transport._handle_sse_response(response, context)


def protocol_headers(transport: StreamableHTTPTransport) -> dict[str, str]:
    """The headers of each request of a session."""
    return transport._prepare_headers()


# -- the server


def connection_of(session: ServerSession) -> Connection:
    """The connection on which the request of a session came."""
    return session._connection


def outbound_of(session: ServerSession) -> DispatchContext[Any]:
    """What sends requests and notifications that belong to the request of a session."""
    return session._request_outbound


def transports_of(manager: StreamableHTTPSessionManager) -> dict[str, StreamableHTTPServerTransport]:
    """The transport of each session, by its id; the manager's own dict."""
    return manager._server_instances


def owner_of_session(manager: StreamableHTTPSessionManager, session_id: str) -> str:
    """The `client_id` of whoever began a session."""
    return str(manager._session_owners[session_id]["client_id"])


def discard_session(
    manager: StreamableHTTPSessionManager, session_id: str, transport: StreamableHTTPServerTransport
) -> Awaitable[None]:
    """End a session."""
    return manager._discard_session(session_id, transport)


def add_requests_in_flight(transport: StreamableHTTPServerTransport, number: int) -> int:
    """Count requests of a session that are under way; how many there are now."""
    transport._requests_in_flight += number
    return transport._requests_in_flight


def set_ping_interval(seconds: float) -> None:
    """Have a stream to a client of 2026-07-28 pinged so often, for which the SDK's server has a constant only."""
    from mcp.server import _streamable_http_modern  # noqa: PLC0415 - loads the SDK's server

    setattr(_streamable_http_modern, "_SSE_PING_INTERVAL", seconds)  # noqa: B010 - it is final
