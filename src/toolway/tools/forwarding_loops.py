"""Forwarding loops of Toolways: none offers its own tools again that come back to it, however long the loop is.

Each Toolway that passes a tool on writes its name behind those in the tool's `_meta`, as routers do with the path of a
route (RFC 4271, 9.1.2): two that have each other as servers would otherwise double their tools at every change.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

from toolway.settings.settings import ToolSettings
from toolway.tools.source_wrappers import StatusTransformer
from toolway.types import JSON, SourceStatus, Tool, ToolSource

PATH = "toolway/path"
MAX_NAMES = 32
"""Names in one path that are read."""

ITSELF = (
    "all its tools are this Toolway's own, come back in a circle; take the server out of the configuration"
)


def name_of(settings: ToolSettings) -> str:
    """What a Toolway with these servers is called in paths; all its workers and replicas have one name."""
    servers = [*settings.endpoints, *settings.servers]
    places = [f"{s.label} {getattr(s, 'url', '') or getattr(s, 'command', '')}" for s in servers]
    return hashlib.sha256("\n".join(places).encode()).hexdigest()[:16]


def passed_on(tool: Tool, name: str) -> JSON:
    """What else is told of a tool (`Tool.extra`), with this Toolway in its path."""
    return {**tool.extra, "_meta": {**_meta(tool), PATH: [*tool.path, name]}}


def _meta(tool: Tool) -> JSON:
    meta = tool.extra.get("_meta")
    return meta if isinstance(meta, dict) else {}


def _with_path(tool: Tool) -> Tool:
    """The tool with its path, which its server tells in its `_meta`, as its own."""
    path = _meta(tool).get(PATH)
    if not isinstance(path, list):
        return tool
    meta = {key: value for key, value in _meta(tool).items() if key != PATH}
    extra = {key: value for key, value in tool.extra.items() if key != "_meta"} | (
        {"_meta": meta} if meta else {}
    )
    return replace(tool, extra=extra, path=tuple(name for name in path[-MAX_NAMES:] if isinstance(name, str)))


class ForwardingLoopFilter(StatusTransformer):
    """`inner` without the tools that this Toolway passed on itself."""

    def __init__(self, inner: ToolSource, name: str) -> None:
        super().__init__(inner)
        self._name = name

    def _transform(self, status: SourceStatus) -> SourceStatus:
        self.kind = self.inner.kind
        tools = tuple(map(_with_path, status.tools))
        others = tuple(tool for tool in tools if self._name not in tool.path)
        if len(others) == len(tools):
            return replace(status, tools=others) if any(tool.path for tool in tools) else status
        if others:
            warning = f"{len(tools) - len(others)} of its tools are this Toolway's own, come back in a circle: left out"
            return replace(status, tools=others, warnings=(*status.warnings, warning))
        return replace(
            status, state="failed", tools=(), error=ITSELF, error_at=time.time(), error_stage="list tools"
        )
