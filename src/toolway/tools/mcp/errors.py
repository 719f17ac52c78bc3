"""Errors of MCP connections and calls, free of the SDK's own exceptions, and the sentences that tell them."""

from __future__ import annotations

import re
import signal
from typing import Any

from toolway.errors import SourceError
from toolway.types import JSON

HTTP_TROUBLE = "toolway/http"
"""Key in a JSON-RPC error's `data` under which `http.py` tells what the HTTP layer saw."""


class RpcError(Exception):
    """The server, or the HTTP layer before it, answered with an error. `http` is empty over stdio."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        http = data.get(HTTP_TROUBLE) if isinstance(data, dict) else None
        self.code = code
        self.message = message
        self.http: JSON = http if isinstance(http, dict) else {}
        self.data = self.http.get("data") if self.http else data

    @property
    def status(self) -> int | None:
        """The HTTP status, where there was one."""
        return self.http.get("status")

    @property
    def needs_auth(self) -> bool:
        """Whether the server wants other credentials."""
        return self.status in (401, 403)

    @property
    def missing_scope(self) -> str | None:
        """What the server wants to be allowed besides (RFC 6750, 3.1); empty if it does not say which."""
        challenge = str(self.http.get("authenticate") or "")
        if self.status != 403 or "insufficient_scope" not in challenge:
            return None
        found = re.search(r'(?<![\w-])scope="([^"]*)"', challenge)
        return found[1] if found else ""

    @property
    def session_lost(self) -> bool:
        """Whether the server has forgotten the session, or is not there to remember it."""
        forgotten = self.status == 404 or (self.status == 400 and "session" in self.message.lower())
        return bool(self.http.get("down")) or (forgotten and bool(self.http.get("session")))

    @property
    def unsent(self) -> bool:
        """Whether the request surely did nothing."""
        return self.session_lost or bool(self.http.get("unsent"))


class LostError(Exception):
    """The connection ended before the answer. `sent`: whether the server may have seen the request."""

    def __init__(self, message: str = "the connection was closed", *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


def exit_reason(server: Any) -> str:
    """How a stdio server (None: another kind) came to its end."""
    if server is None:
        return "the server closed the connection"
    if server.returncode is None:
        return "the server closed its output"
    if server.returncode >= 0:
        return f"the server ended with exit status {server.returncode}"
    try:
        return f"the server was ended by {signal.Signals(-server.returncode).name}"
    except ValueError:
        return f"the server was ended by signal {-server.returncode}"


def cause_of(error: Exception) -> Exception:
    """The first exception inside the groups that task groups make."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: Exception, label: str, *, configured: bool = True) -> str:
    """What happened, and what the operator can do where that is known; nothing if it is no server of his."""
    if isinstance(error, RpcError) and error.needs_auth and not configured:
        return f"the server wants other credentials (HTTP {error.status})"
    if isinstance(error, RpcError) and error.missing_scope is not None:
        scope = f"the scope {error.missing_scope!r}" if error.missing_scope else "a scope"
        return f"the server wants {scope}, which was not granted (HTTP 403): run: toolway login {label}"
    if isinstance(error, RpcError) and error.needs_auth:
        return (
            f"the server wants other credentials (HTTP {error.status}): set "
            f'"headers": {{"Authorization": "Bearer ..."}} for {label!r} in mcp.json, or run: toolway login {label}'
        )
    if isinstance(error, RpcError):
        return f"{error.message} (code {error.code})" if not error.http else error.message
    if isinstance(error, LostError | SourceError):
        return str(error)
    return f"{type(error).__name__}: {error}"
