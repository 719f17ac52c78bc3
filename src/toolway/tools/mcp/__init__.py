"""Tools of MCP servers: stdio, streamable HTTP and legacy SSE, each kept alive by one task.

`source.py` is what the rest of Toolway sees. Everything that imports the `mcp` SDK is imported at the first
connection, so that a Toolway without MCP servers does not pay for it (about 38 MB).
"""

from toolway.tools.mcp.options import ConnectOptions
from toolway.tools.mcp.source import MCPSource, ReconnectPolicy

__all__ = ["ConnectOptions", "MCPSource", "ReconnectPolicy"]
