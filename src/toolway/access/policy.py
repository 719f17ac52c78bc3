"""The policy in force: what is configured about calls, and the gate that every request's calls pass."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from toolway.access.approval_question import write_waiting
from toolway.access.approvals import Approvals
from toolway.access.audit import AuditLog
from toolway.access.gate import CallGate, Elicit, ask_client
from toolway.access.keys import KeyRing
from toolway.access.rules import CallOrigin, Rules
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.telemetry.logging import Redactor
from toolway.types import Caller

log = logging.getLogger("toolway.config")


@asynccontextmanager
async def open_policy(
    settings: Settings, store: Store, *, keys: KeyRing | None = None, is_served: bool = True
) -> AsyncIterator[Policy]:
    """The policy of these settings, with its audit log while the block lasts. `is_served`: this process listens."""
    if settings.audit.file is None:
        yield Policy(settings, store, keys=keys, is_served=is_served)
        return
    audit = AuditLog(
        settings.audit.file,
        max_bytes=settings.audit.audit_max_bytes,
        files=settings.audit.audit_files,
        arguments=settings.audit.audit_arguments == "text",
        redact=Redactor(settings.secrets),
    )
    try:
        yield Policy(settings, store, audit, keys=keys, is_served=is_served)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(audit.close)


class Policy:
    """What is configured now; `configure` puts something else in force for all requests that begin after it."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        audit: AuditLog | None = None,
        *,
        keys: KeyRing | None = None,
        is_served: bool = True,
    ) -> None:
        self.audit = audit
        self._keys = keys or KeyRing()
        self.approvals = Approvals(
            store, seconds=settings.approvals.approval_ttl, grant_seconds=settings.approvals.grant_ttl
        )
        self.redact = Redactor(settings.secrets)
        self._wait = settings.approvals.approval_wait
        self._write_waiting = partial(write_waiting, settings=settings, is_served=is_served)
        self.rules = Rules()
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Have the rules of these settings in force."""
        known = self.rules.warnings
        self.rules = Rules(settings.access.rules, settings.labels)
        for warning in self.rules.warnings:
            if warning not in known:
                log.warning("%s", warning)
        self.redact.learn(settings.secrets)

    def check(self, caller: Caller) -> None:
        """Raise Unauthorized where no more calls may be run for a caller, whose key was taken away."""
        self._keys.check(caller.principal)

    def gate(
        self,
        caller: Caller,
        *,
        dialect: str,
        model: object = "",
        asks: bool = False,
        messages: Sequence[Any] = (),
        wait: float | None = None,
        elicit: Elicit | None = None,
    ) -> CallGate | None:
        """What the calls of one request pass before they run; None when nothing is to be decided or noted.

        `asks` says that its client wants to be asked about some calls, whatever the rules say. The audit log tells
        conversations apart by their first `messages`. `wait` and `elicit` take the place of those that all have.
        """
        if not (self.rules.rules or self.audit or asks):
            return None
        origin = CallOrigin(
            key=caller.name,
            group=caller.principal.group,
            model=model if isinstance(model, str) else "",
            dialect=dialect,
        )
        return CallGate(
            self.rules,
            self.approvals,
            self.audit,
            caller=caller,
            origin=origin,
            wait=self._wait if wait is None else wait,
            elicit=elicit or partial(ask_client, redact=self.redact),
            write_waiting=self._write_waiting,
            messages=messages,
        )
