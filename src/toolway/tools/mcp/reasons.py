"""Why a connection ended or a call failed, in sentences for people and models."""

from __future__ import annotations

import signal
from typing import Any

from toolway.errors import SourceError
from toolway.tools.mcp.errors import LostError, RefusedError


def ended(server: Any) -> str:
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
    if isinstance(error, RefusedError) and error.needs_auth and not configured:
        return f"the server wants other credentials (HTTP {error.status})"
    if isinstance(error, RefusedError) and error.needs_auth:
        return (
            f"the server wants other credentials (HTTP {error.status}): set "
            f'"headers": {{"Authorization": "Bearer ..."}} for {label!r} in mcp.json, or run: toolway login {label}'
        )
    if isinstance(error, RefusedError):
        return f"{error.message} (code {error.code})" if not error.http else error.message
    if isinstance(error, LostError | SourceError):
        return str(error)
    return f"{type(error).__name__}: {error}"
