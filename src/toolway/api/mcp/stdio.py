"""`toolway mcp`: the catalog as an MCP server on standard input and output."""

from __future__ import annotations

from mcp.server.stdio import stdio_server

from toolway.access.policy import Policy
from toolway.api.mcp.server import CatalogServer
from toolway.tools.direct import DirectTools
from toolway.types import Caller


async def serve_stdio(direct: DirectTools, policy: Policy, caller: Caller) -> None:
    """Serve the one client at the other end of the pipes until it closes them."""
    server = CatalogServer(direct, policy, lambda _: caller)
    async with stdio_server() as (read, write), server.running():
        await server.run(read, write, server.create_initialization_options())
