"""/mcp: the whole catalog as one MCP server; `toolway mcp` is the same over stdio.

`routes.py` is what the app sees. Everything that imports the `mcp` SDK is imported at the first request.
"""

from toolway.api.mcp.routes import McpEndpoint

__all__ = ["McpEndpoint"]
