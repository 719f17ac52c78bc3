"""The dialects that clients speak: one line for each, which routes, keys, rules and error envelopes are read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DialectName = Literal["chat", "responses", "messages", "mcp", "rest"]
"""What a dialect is called in `routes` of a key, `dialects` of a rule and the audit log."""

ErrorFormat = Literal["openai", "anthropic", "json-rpc", "problem"]
"""The envelope of its errors."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """An API at and below `path`, and at the paths in `more`."""

    name: DialectName
    path: str
    errors: ErrorFormat
    more: tuple[str, ...] = ()
    asks_models: bool = False
    """Whether a model answers its requests, rather than a tool."""

    @property
    def paths(self) -> tuple[str, ...]:
        """At and below which it stands."""
        return (self.path, *self.more)


CHAT = Dialect(name="chat", path="/v1/chat/completions", errors="openai", asks_models=True)
RESPONSES = Dialect(name="responses", path="/v1/responses", errors="openai", asks_models=True)
MESSAGES = Dialect(name="messages", path="/v1/messages", errors="anthropic", asks_models=True)
MCP = Dialect(name="mcp", path="/mcp", errors="json-rpc")
REST = Dialect(name="rest", path="/tools", errors="problem", more=("/openapi.json", "/docs"))

DIALECTS = (CHAT, RESPONSES, MESSAGES, MCP, REST)


def is_below(path: str, root: str) -> bool:
    """Whether a path is this one, or one below it."""
    return path == root or path.startswith(f"{root}/")
