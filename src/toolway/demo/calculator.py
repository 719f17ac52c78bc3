"""The demo's MCP server, as anybody would write one: `add`, over standard input and output.

Standard output belongs to the protocol. What a server writes to standard error is shown by whoever started it.
"""

from __future__ import annotations

import sys
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field

server = MCPServer("calculator", log_level="WARNING")


@server.tool(structured_output=False)
def add(
    a: Annotated[float, Field(description="The first number")],
    b: Annotated[float, Field(description="The second number")],
) -> str:
    """Add two numbers"""
    result = f"The sum of {a:.15g} and {b:.15g} is {a + b:.15g}"
    print(f"tools/call add a={a:.15g} b={b:.15g} -> {result}", file=sys.stderr)  # noqa: T201
    return result


if __name__ == "__main__":
    server.run("stdio")
