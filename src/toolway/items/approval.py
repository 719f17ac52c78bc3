"""Does a call of a tool need somebody's approval? As the client's declaration of its server says."""

from __future__ import annotations

from typing import Any

from toolway.errors import InvalidRequest
from toolway.types import JSON


def approval_of(entry: JSON) -> Any:
    """`require_approval` of an mcp entry; OpenAI's default is to ask always."""
    return "always" if entry.get("require_approval") is None else entry["require_approval"]


def needs_approval(entry: JSON, name: str) -> bool:
    """`require_approval` of an mcp entry: "always" (the default), "never", or `{"always": FILTER, "never": FILTER}`.

    A filter is `{"tool_names": [...]}` or a list of names. A tool in neither asks, unless the client only said which
    ones ask. A filter by anything else than names never lets a call run unasked. Raises InvalidRequest.
    """
    wanted = approval_of(entry)
    if wanted in ("always", "never"):
        return bool(wanted == "always")
    if not isinstance(wanted, dict) or not wanted or wanted.keys() - {"always", "never"}:
        raise InvalidRequest(
            'require_approval must be "always", "never" or an object of these two.', param="tools"
        )
    if (never := _names(wanted.get("never"))) is not None and name in never:
        return False
    if wanted.get("always") is None:
        return True
    always = _names(wanted["always"])
    return always is None or name in always or wanted.get("never") is not None


def _names(chosen: Any) -> list[Any] | None:
    """The names in a filter; None when it does not go by names alone."""
    if isinstance(chosen, dict):
        chosen = chosen.get("tool_names") if chosen.keys() == {"tool_names"} else None
    return chosen if isinstance(chosen, list) else None
