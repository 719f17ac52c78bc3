"""Tool sources (MCP, OpenAPI, servers that a request brings along) and the catalog of their tools."""
