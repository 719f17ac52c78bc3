"""Pinned tools: how those of a server differ from what was accepted, line by line; and accepting exactly that."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.to_thread

from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route
from toolway.errors import ConfigError, Forbidden, InvalidRequest, NotFound
from toolway.tools.pins import Change, PinnedSource, accept, changes_of, lock_path, read_pinned
from toolway.types import JSON

MAX_BODY = 2**20
MAX_LINES = 1_000
"""Lines of one difference that are shown."""


class PinRoutes:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._path = lock_path(context.config.settings.tools)

    def routes(self) -> list[Route]:
        """The routes of the pins."""
        return [
            Route(method="GET", path="/servers/{}/pins", handler=self._list,
                  summary="How the tools of a server differ from those that were accepted, line by line."),
            Route(method="POST", path="/servers/{}/pins", handler=self._accept,
                  summary="Accept tools as they were shown, each by its digest; empty for one that is gone.",
                  body={"accept": {"type": "object", "additionalProperties": {"type": "string"}}}),
        ]  # fmt: skip

    async def _list(self, request: ConsoleRequest) -> JSON:
        pins = self._context.factory.pins
        try:
            shown = await anyio.to_thread.run_sync(self._change_rows, request.names[0])
        except ConfigError as error:
            raise InvalidRequest(error.message) from None
        return {
            "is_on": bool(pins and pins.is_on),
            "file": str(self._path),
            "exists": self._path.exists(),
            "changes": shown,
            "may_edit": self._context.settings.console.edit,
        }

    def _change_rows(self, label: str) -> Sequence[JSON]:
        return [
            {
                "tool": change.tool,
                "kind": change.kind,
                "digest": change.digest,
                "difference": (lines := change.difference)[:MAX_LINES],
                "lines": len(lines),
                "suspicions": change.suspicions,
            }
            for change in self._changes(label)
        ]

    async def _accept(self, request: ConsoleRequest) -> JSON:
        if not self._context.settings.console.edit:
            raise Forbidden("TOOLWAY_CONSOLE_EDIT=false: the lock file is not changed here.")
        wanted = (await request.body(MAX_BODY)).get("accept")
        if not isinstance(wanted, dict):
            raise InvalidRequest(
                "accept must be an object: a tool -> the digest that was shown.", param="accept"
            )
        label = request.names[0]
        try:
            changes = [change for change in self._changes(label) if change.tool in wanted]
            now = {change.tool: change.digest for change in changes}
            if now != wanted:
                raise InvalidRequest(
                    "A tool was changed again since it was shown; look at it anew.", code="pins_changed"
                )
            await anyio.to_thread.run_sync(accept, self._path, changes)
        except ConfigError as error:
            raise InvalidRequest(error.message) from None
        for change in changes:
            self._context.note_change("pin.accepted", request.session.by, f"{change.server}.{change.tool}")
        if self._context.factory.pins and self._context.factory.pins.read():
            self._context.catalog.refresh()
        return {"accepted": len(changes)}

    def _changes(self, label: str) -> Sequence[Change]:
        """Those of one server. Raises NotFound, ConfigError."""
        sources = self._context.catalog.sources
        if label not in {source.label for source in sources}:
            raise NotFound("There is no tool server of this name.")
        statuses = {
            source.label: source.whole if isinstance(source, PinnedSource) else source.status
            for source in sources
        }
        return [change for change in changes_of(statuses, read_pinned(self._path)) if change.server == label]
