"""What a request asks of Toolway itself: its headers `X-Toolway-*`, a profile behind the model's name, MCP entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolway.engine.limits import Bounds
from toolway.errors import InvalidRequest
from toolway.server.json_response import Header
from toolway.settings.profiles import Profile, split_model
from toolway.settings.settings import Settings
from toolway.tools.selection import Choice, Selection
from toolway.types import JSON

PREFIX = b"x-toolway-"
TOOLS = b"x-toolway-tools"
_LOWERED = {
    b"x-toolway-max-rounds": "max_rounds",
    b"x-toolway-max-calls": "max_calls",
    b"x-toolway-max-seconds": "max_seconds",
}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """`body` and `headers` without what is Toolway's alone; `bounds` are never above the settings."""

    body: JSON
    headers: Sequence[Header]
    selection: Selection
    bounds: Bounds


def bounds_of(settings: Settings) -> Bounds:
    """What a request may use that asks for no less."""
    return Bounds(
        max_rounds=settings.loop.max_rounds,
        max_calls=settings.loop.max_calls,
        max_seconds=settings.loop.max_seconds,
        max_repeats=settings.loop.max_repeats,
        max_similar=settings.loop.max_similar,
    )


def read_wishes(
    body: JSON,
    headers: Sequence[Header],
    *,
    bounds: Bounds,
    profiles: Sequence[Profile],
    servers: Iterable[str],
) -> Wishes:
    """Raises InvalidRequest for a header that says nothing and for the label of a server that is not there."""
    selection: list[Sequence[Choice]] = []
    said = {name: value for name, value in headers if name.startswith(PREFIX)}
    if said:
        headers = [header for header in headers if header[0] not in said]
        bounds = _lowered(bounds, said)
        if TOOLS in said:
            selection.append(_chosen(said[TOOLS]))
    if profiles:
        model, profile = split_model(body.get("model"), profiles)
        if profile:
            body = {**body, "model": model}
            selection.append([Choice(patterns=profile.patterns)])
    if body.get("tools") and (entries := [tool for tool in body["tools"] if _is_mcp(tool)]):
        body = _without_mcp(body)
        selection.append(choices_of(entries, servers))
    return Wishes(body=body, headers=headers, selection=selection, bounds=bounds)


def _lowered(bounds: Bounds, said: Mapping[bytes, bytes]) -> Bounds:
    for header, name in _LOWERED.items():
        if header in said:
            wanted = _number(header, said[header])
            limit = getattr(bounds, name)
            bounds = replace(bounds, **{name: min(limit, type(limit)(wanted))})
    return bounds


def _number(header: bytes, value: bytes) -> float:
    text = value.decode("latin-1").strip()
    if not text.isascii() or not text.replace(".", "", 1).isdigit() or len(text) > 20:
        raise InvalidRequest(f"The header {header.decode()} must be a number from 0 on, not {text[:50]!r}.")
    return float(text)


def _chosen(value: bytes) -> list[Choice]:
    """`none`, or patterns separated by commas."""
    patterns = [part.strip() for part in value.decode("latin-1").split(",") if part.strip()]
    if not patterns:
        raise InvalidRequest("The header x-toolway-tools must be none or patterns like weather,git.*")
    return [] if patterns == ["none"] else [Choice(patterns=tuple(patterns))]


def _is_mcp(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "mcp"


def _without_mcp(body: JSON) -> JSON:
    rest = [tool for tool in body["tools"] if not _is_mcp(tool)]
    if rest:
        return {**body, "tools": rest}
    return {key: value for key, value in body.items() if key != "tools"}


def choices_of(entries: Sequence[JSON], servers: Iterable[str]) -> list[Choice]:
    """The tools that entries of the type mcp name. Raises InvalidRequest for a label that is none of `servers`."""
    labels = set(servers)
    return [_choice(entry, labels) for entry in entries]


def _choice(entry: JSON, servers: set[str]) -> Choice:
    """`{"type": "mcp", "server_label", "allowed_tools"}` of OpenAI's Responses API; the names may be in an object."""
    label = entry.get("server_label")
    if label not in servers:
        known = ", ".join(sorted(servers)) or "none"
        raise InvalidRequest(
            f"There is no tool server with the label {str(label)[:100]!r} here; those that are: {known}.",
            param="tools",
        )
    allowed = entry.get("allowed_tools")
    if isinstance(allowed, dict):
        allowed = allowed.get("tool_names")
    if allowed is None:
        return Choice(server=label)
    if not isinstance(allowed, list):
        raise InvalidRequest("allowed_tools must be a list of names.", param="tools")
    return Choice(server=label, names=frozenset(name for name in allowed if isinstance(name, str)))
