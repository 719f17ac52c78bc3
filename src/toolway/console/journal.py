"""The journal: the last conversations, kept for the console by a subscriber of their events."""

from __future__ import annotations

from toolway.types import JSON


class Journal:
    """The last conversations."""

    def newest(self, most: int) -> list[JSON]:
        """Summaries of the newest conversations, the newest first."""
        return []
