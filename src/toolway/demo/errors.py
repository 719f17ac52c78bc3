"""The one error of the demo."""

from __future__ import annotations

from toolway.errors import ToolwayError


class DemoError(ToolwayError):
    """A step of the demo failed; the message says which, why, and what to do."""
