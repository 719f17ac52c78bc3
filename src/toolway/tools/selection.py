"""Which of the offered tools one request wants: patterns over their names, servers named by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from toolway.types import Tool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tools that match one of `patterns`, or the tools `names` (None: all) of the server `server`."""

    patterns: tuple[str, ...] = ()
    server: str | None = None
    names: frozenset[str] | None = None

    def takes(self, name: str, tool: Tool) -> bool:
        """Whether the tool that models see as `name` is among them."""
        if self.server is not None:
            return tool.server == self.server and (
                self.names is None or name in self.names or tool.name in self.names
            )
        full = f"{tool.server}.{tool.name}"
        return any(fnmatchcase(name, pattern) or fnmatchcase(full, pattern) for pattern in self.patterns)


Selection = Sequence[Sequence[Choice]]
"""All that narrow the offer: a tool must be taken by one choice of each. Nothing in it narrows nothing."""


def is_selected(name: str, tool: Tool, selection: Selection) -> bool:
    """Whether a tool passes each part of the selection."""
    return all(any(choice.takes(name, tool) for choice in choices) for choices in selection)
