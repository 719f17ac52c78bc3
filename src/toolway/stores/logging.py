"""What goes wrong in a store, in the log: said at once, then seldom."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("toolway.store")

QUIET_SECONDS = 60.0
"""A store that is down fails every request; one line for so long says it."""


class Trouble:
    """Counts what it does not say."""

    def __init__(self) -> None:
        self._silent_until = float("-inf")
        self._unsaid = 0

    def note(self, what: object) -> None:
        """Something failed; `what` says it in words."""
        now = time.monotonic()
        if now < self._silent_until:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last line)" if self._unsaid else ""
        self._silent_until, self._unsaid = now + QUIET_SECONDS, 0
        log.warning("the store failed: %s%s", what, more)


def too_large(size: int, max_bytes: int) -> str:
    """Why a value of `size` bytes is not kept."""
    return f"a value of {size:,} bytes is over TOOLWAY_STORE_MAX_BYTES ({max_bytes:,}) and is not kept"
