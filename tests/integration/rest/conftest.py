"""The same Toolway as the tests of /mcp have, asked over REST."""

from tests.integration.mcp.conftest import app, mcp_json

__all__ = ["app", "mcp_json"]
