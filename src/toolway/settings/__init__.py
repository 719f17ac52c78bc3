"""The environment, .env and mcp.json as frozen settings."""
