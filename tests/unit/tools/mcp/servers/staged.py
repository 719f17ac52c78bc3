"""An MCP server on the SDK's MCPServer, as people write them: one tool that says how far it is, and waits."""

from pathlib import Path

import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("staged")


@server.tool()
async def copy(gates: list[str], ctx: Context) -> str:
    """Copies something in stages; before the next it waits until the gate, a named pipe, is opened for writing."""
    for number, gate in enumerate(gates, 1):
        await ctx.report_progress(number, len(gates) + 1, f"stage {number}")
        await anyio.to_thread.run_sync(Path(gate).read_bytes)
    return "copied"


if __name__ == "__main__":
    server.run()
