"""What a connection to an MCP server needs beside its configuration; free of the SDK."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from toolway.net.ssrf import SsrfGuard
from toolway.types import JSON

Transport = Literal["stdio", "http", "sse"]

Sampler = Callable[[JSON], Awaitable[JSON]]
"""Answers `sampling/createMessage`: its params -> its result."""


@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """The same for every connection of one source."""

    max_result_bytes: int = 32 * 2**20
    """The longest message that is read."""
    sampler: Sampler | None = None
    """None: a server that asks for a model is refused."""
    auth: Callable[[], Any] | None = None
    """Makes an httpx2.Auth, or None, for each connection."""
    egress: SsrfGuard | None = None
    """A server that no operator configured is reached through it, and in no other way."""
    logger: logging.Logger | None = None
    """None: one of the server's own, `toolway.server.LABEL`."""
