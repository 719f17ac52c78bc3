"""Calls that wait for a person, and standing approvals: listed, answered, revoked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import anyio
from anyio.abc import TaskGroup

from toolway.access.approvals import POLL_SECONDS, Approval, Approvals, Scope, Verdict
from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route
from toolway.errors import InvalidRequest, StoreError
from toolway.types import JSON

TOPIC = "approvals"
MAX_BODY = 10_000
MAX_REASON = 1_000
SCOPES: dict[Any, Scope] = {None: "", "": "", "conversation": "conversation", "key": "key"}


class ApprovalRoutes:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext, tasks: TaskGroup) -> None:
        self._context = context
        self._approvals: Approvals = context.engine.policy.approvals
        self._news = anyio.Event()
        tasks.start_soon(self._watch)

    def routes(self) -> list[Route]:
        """The routes of the approvals."""
        return [
            Route(method="GET", path="/approvals", handler=self._list,
                  summary="The calls that wait for a person, the oldest first."),
            Route(method="POST", path="/approvals/{}", handler=self._answer,
                  summary='Answer with {"approve": true or false, "reason", "always": "conversation" or "key"}.'),
            Route(method="GET", path="/grants", handler=self._grants,
                  summary='The tools that somebody said "always" for.'),
            Route(method="DELETE", path="/grants/{}", handler=self._revoke, summary='Take an "always" back.'),
        ]  # fmt: skip

    async def _watch(self) -> None:
        """Tell open pages when something else waits: at once what happened here, soon what did in other processes."""
        feed, published = self._context.feed, None
        self._approvals.listeners.append(self._wake)
        while True:
            with anyio.move_on_after(POLL_SECONDS):
                await self._news.wait()
            self._news = anyio.Event()
            if not feed.is_watched(TOPIC):
                published = None
                continue
            with suppress(StoreError):
                waiting, grants = await self._approvals.waiting(), await self._approvals.grants()
                now = [one.id for one in waiting] + [one.id for one in grants]
                if now != published:
                    feed.publish(TOPIC, {"waiting": len(waiting)})
                published = now

    def _wake(self) -> None:
        self._news.set()

    async def _list(self, _: ConsoleRequest) -> JSON:
        return {"approvals": [approval_json(approval) for approval in await self._approvals.waiting()]}

    async def _answer(self, request: ConsoleRequest) -> JSON:
        body = await request.body(MAX_BODY)
        approve, always, reason = body.get("approve"), body.get("always"), body.get("reason", "")
        if not isinstance(approve, bool):
            raise InvalidRequest("approve must be true or false.", param="approve")
        if not isinstance(always, str | None) or always not in SCOPES:
            raise InvalidRequest('always must be "conversation" or "key".', param="always")
        if not isinstance(reason, str) or len(reason) > MAX_REASON:
            raise InvalidRequest(f"reason must be a text of at most {MAX_REASON} characters.", param="reason")
        verdict = Verdict(approve=approve, by=request.session.by, reason=reason, always=SCOPES[always])
        counts = await self._approvals.answer(request.names[0], verdict)
        return {"approve": counts.approve, "by": counts.by, "is_first": counts.at == verdict.at}

    async def _grants(self, _: ConsoleRequest) -> JSON:
        found = await self._approvals.grants()
        shown = ("id", "scope", "key", "name", "tool", "server", "by", "created", "seconds")
        return {"grants": [{name: getattr(grant, name) for name in shown} for grant in found]}

    async def _revoke(self, request: ConsoleRequest) -> JSON:
        await self._approvals.revoke(request.names[0])
        self._context.note_change("grant.revoked", request.session.by, request.names[0])
        return {"revoked": request.names[0]}


def approval_json(approval: Approval) -> JSON:
    """An approval without whose it is but for the name of the key: the rest is a digest of credentials."""
    hidden = ("owner", "slot", "tool_digest")
    shown = {name: value for name, value in asdict(approval).items() if name not in hidden}
    return {**shown, "expires": approval.created + approval.seconds}
