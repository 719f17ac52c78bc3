"""Tools of MCP servers: stdio, streamable HTTP and legacy SSE, each kept alive by one task.

`source.py` is what the rest of Toolway sees. Everything that imports the `mcp` SDK is imported at the first
connection, so that a Toolway without MCP servers does not pay for it, and one with some for no more of it than it uses.
"""

from toolway.tools.mcp.bare_packages import use_bare_packages
from toolway.tools.mcp.options import ConnectOptions
from toolway.tools.mcp.source import MCPSource, ReconnectPolicy

__all__ = ["ConnectOptions", "MCPSource", "ReconnectPolicy"]

use_bare_packages()
