"""As `sdk`, of the SDK's transport over HTTP, which loads httpx2."""

from __future__ import annotations

from mcp.client.streamable_http import RequestContext, StreamableHTTPTransport

__all__ = ["RequestContext", "StreamableHTTPTransport"]
