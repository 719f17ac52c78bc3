"""Toolway gives every OpenAI client the tools of many MCP and OpenAPI servers."""

__version__ = "0.1.0"
