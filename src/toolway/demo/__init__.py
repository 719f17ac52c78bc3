"""`toolway demo`: a real model server, real tool servers and Toolway, on this machine and with no key."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from toolway.errors import ToolwayError

EXTRA = ("openai", "xllamacpp")


class DemoError(ToolwayError):
    """A step of the demo failed; the message says which, why, and what to do."""


def run_demo(*, port: int | None = None, stay: bool | None = None) -> int:
    """Play the demo and return the exit status: 0 when everything worked.

    `port` is Toolway's (None: its usual one, or a free one if that is taken); `stay` keeps everything up
    afterwards until Ctrl-C (None: on a terminal).
    """
    if missing := [module for module in EXTRA if find_spec(module) is None]:
        sys.stderr.write(f"The demo needs {' and '.join(missing)}. Install: pip install 'toolway[demo]'\n")
        return 1
    from toolway.demo.play import play  # noqa: PLC0415 - the demo's own children start faster without it

    return play(port=port, stay=stay)
