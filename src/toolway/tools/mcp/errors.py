"""What can go wrong between Toolway and an MCP server, free of the SDK's own exceptions."""

from __future__ import annotations

from typing import Any

from toolway.types import JSON

HTTP_TROUBLE = "toolway/http"
"""Key in a JSON-RPC error's `data` under which `http.py` tells what the HTTP layer saw."""


class RefusedError(Exception):
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
