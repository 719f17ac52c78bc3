"""How patient an MCP source is with its server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """All times are seconds."""

    connect_timeout: float = 180.0
    """From start to the list of tools: `npx` and `uvx` download on the first run."""
    restart_wait: float = 15.0
    """How long a call waits for a server that is being restarted."""
    first_delay: float = 0.1
    longest_delay: float = 30.0
    steady_after: float = 10.0
    """A life this long, or one in which a call was answered, makes the next restart an immediate one."""
    patience: int = 5
    """Lives in a row that came to nothing until the server counts as failed; restarts go on, slowly."""
    settle: float = 0.05
    """Between the first word of changed tools and the new list: a storm becomes one list."""
