"""A real MCP server on stdio, run by mcpo's own environment: it tells times, and fails where a test wants it."""

from mcp.server.fastmcp import FastMCP

ZONES = {"Europe/Paris": "18:30", "Asia/Tokyo": "01:30"}

server = FastMCP("time")


@server.tool()
def get_current_time(timezone: str) -> str:
    """The time of day in a time zone."""
    if timezone not in ZONES:
        raise ValueError(f"no such time zone: {timezone}")
    return f"It is {ZONES[timezone]} in {timezone}"


@server.tool()
def list_zones() -> list[str]:
    """All time zones that this server knows."""
    return sorted(ZONES)


@server.tool()
def add(a: int, b: int = 1) -> int:
    """The sum of two numbers."""
    return a + b


if __name__ == "__main__":
    server.run()
