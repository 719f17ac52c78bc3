"""Does a call of a tool need somebody's approval? As the client's declaration of its server says."""

from __future__ import annotations

from typing import Any

from toolway.api.responses.items import fields
from toolway.errors import InvalidRequest
from toolway.types import JSON


def approval_of(entry: JSON, where: str = "") -> str | JSON:
    """`require_approval` of an mcp entry, with all that may be left out; OpenAI's default is to ask always.

    It is "always", "never", or `{"always": FILTER, "never": FILTER}`; a filter is `{"tool_names": [...]}` or
    `{"read_only": ...}`, and may come as a list of names. Raises InvalidRequest for anything else.
    """
    wanted, name = entry.get("require_approval"), f"{where}require_approval"
    if wanted is None or wanted in ("always", "never"):
        return str(wanted or "always")
    if not isinstance(wanted, dict) or not wanted or wanted.keys() - {"always", "never"}:
        raise InvalidRequest(f'{name} must be "always", "never" or an object of these two.', param=name)
    return {kind: _filter(wanted[kind], f"{name}.{kind}") for kind in wanted if wanted[kind] is not None}


def needs_approval(entry: JSON, name: str) -> bool:
    """Whether a call of the tool with this name waits.

    A tool in neither filter asks, unless the client only said which ones ask. A filter by anything else than names
    never lets a call run unasked. Raises InvalidRequest.
    """
    wanted = approval_of(entry)
    if isinstance(wanted, str):
        return wanted == "always"
    if (never := _names(wanted.get("never"))) is not None and name in never:
        return False
    if "always" not in wanted:
        return True
    always = _names(wanted["always"])
    return always is None or name in always or "never" in wanted


def _filter(chosen: Any, where: str) -> JSON:
    if isinstance(chosen, list):
        chosen = {"tool_names": chosen}
    if not isinstance(chosen, dict) or chosen.keys() - {"tool_names", "read_only"}:
        raise fields.wrong(where, "an object with tool_names")
    fields.texts(chosen, "tool_names", f"{where}.")
    fields.flag(chosen, "read_only", f"{where}.")
    return {name: value for name, value in chosen.items() if value is not None}


def _names(chosen: JSON | None) -> list[str] | None:
    """The names in a filter; None when it does not go by names alone."""
    return chosen["tool_names"] if chosen and chosen.keys() == {"tool_names"} else None
