"""Notes in the audit log who was denied before anything was done: an unknown key, a route, a quota that is used up."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from toolway.access.audit import AuditLog
from toolway.errors import ToolwayError

QUIET_SECONDS = 10.0
"""One line tells of all denials of a kind in so many seconds, or who is denied could fill the log as it likes."""

MAX_KINDS = 1_000
"""Of so many kinds it is remembered when they were told."""


class Denials:
    """Tells the audit log of denials, once there is one; who has the same key or address is told of together."""

    def __init__(self) -> None:
        self.audit: AuditLog | None = None
        self._told: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()
        """When a kind was told, and how many there were since."""

    def note(self, error: ToolwayError, key: str = "", where: Mapping[str, Any] | None = None) -> None:
        """Somebody was denied with this error: `key` is the name of the key, `where` what else is known."""
        if self.audit is None:
            return
        where = where or {}
        kind = (key, str(where.get("client.address", "")), error.message.partition(";")[0])
        now = time.monotonic()
        told, more = self._told.pop(kind, (-QUIET_SECONDS, 0))
        if now - told < QUIET_SECONDS:
            self._told[kind] = (told, more + 1)
            return
        self._told[kind] = (now, 0)
        if len(self._told) > MAX_KINDS:
            self._told.popitem(last=False)
        self.audit.denied(key, error, {**where, **({"toolway.repeats": more} if more else {})})
