"""`toolway demo`: a real model server, real tool servers and Toolway, on this machine and with no key."""

from toolway.errors import ToolwayError


class DemoError(ToolwayError):
    """A step of the demo failed; the message says which, why, and what to do."""
