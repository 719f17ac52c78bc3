"""The audit log: its newest entries, by time, key, tool, server, decision and event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio.to_thread

from toolway.access.audit import is_place, is_time, matches, newest_first
from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route, limit_of
from toolway.errors import InvalidRequest
from toolway.types import JSON

PAGE, MOST = 100, 500
SEARCH_SECONDS = 2.0
"""How long is looked for entries that fit; the next request goes on from there."""
MEMBERS = {
    "key": "toolway.key.name",
    "tool": "gen_ai.tool.name",
    "server": "toolway.server",
    "decision": "toolway.decision",
    "event": "event",
}
"""What can be asked for, and the member of an entry that it is."""
QUERY = {
    **{name: f"a pattern (*, ?, [abc]) of {member}" for name, member in MEMBERS.items()},
    "since": "a time in UTC or its beginning, like 2026-11-29T08",
    "until": "a time in UTC or its beginning; what happened before it",
    "before": "the `next` of an answer: what is older than that",
    "limit": f"how many, at most {MOST}",
}


class Audit:
    """Its route, and what it answers."""

    def __init__(self, context: ConsoleContext) -> None:
        self._settings = context.settings.audit

    def routes(self) -> list[Route]:
        """The route of the audit log."""
        return [
            Route(method="GET", path="/audit", handler=self._list, query=QUERY,
                  summary="The newest entries of the audit log."),
        ]  # fmt: skip

    async def _list(self, request: ConsoleRequest) -> JSON:
        query, file = request.query, self._settings.file
        _check(query)
        if file is None or file == "-":
            return {"file": file, "entries": [], "next": None}
        wanted = {member: query[name] for name, member in MEMBERS.items() if query.get(name)}
        find = partial(self._find, Path(file), wanted, query, limit_of(query, PAGE, MOST))
        try:
            found = await anyio.to_thread.run_sync(find)
        except OSError as error:
            raise InvalidRequest(f"The audit log {file} cannot be read: {error.strerror}.") from None
        return {"file": file, **found}

    def _find(self, path: Path, wanted: Mapping[str, str], query: Mapping[str, str], most: int) -> JSON:
        """Entries that fit; `next`: where to go on, None at the end; `reached`: the time of the last that was seen."""
        since, until = query.get("since", ""), query.get("until", "")
        end = time.monotonic() + SEARCH_SECONDS
        found: list[JSON] = []
        reached = ""
        for place, entry in newest_first(path, self._settings.audit_files, query.get("before", "")):
            reached = str(entry.get("time", ""))
            if since and reached < since:
                break
            if (not until or reached < until) and matches(entry, wanted):
                found.append(entry)
            if len(found) == most or time.monotonic() > end:
                return {"entries": found, "next": place, "reached": reached}
        return {"entries": found, "next": None, "reached": reached}


def _check(query: Mapping[str, str]) -> None:
    for name in ("since", "until"):
        if query.get(name) and not is_time(query[name]):
            message = f"{name} must be a time or its beginning, like 2026-11-29 or 2026-11-29T12."
            raise InvalidRequest(message, param=name)
    if query.get("before") and not is_place(query["before"]):
        raise InvalidRequest("before must be the `next` of an answer.", param="before")
    limit_of(query, PAGE, MOST)
