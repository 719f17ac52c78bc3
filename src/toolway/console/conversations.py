"""The conversations: a list that can be searched, and all that is kept of one."""

from __future__ import annotations

from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route, limit_of
from toolway.errors import NotFound
from toolway.types import JSON

PAGE, MOST = 100, 500
MAX_TEXT = 200
SAME = ("state", "caller", "conversation")
QUERY = {
    "text": "what a line or what was said holds",
    "tool": "a part of the name of a tool that was called",
    "state": "running, done, waiting, error or left",
    "caller": "the name of a key",
    "conversation": "the id that approvals and the audit log give: all requests of one conversation",
    "before": "the id of a conversation: older ones are answered",
    "limit": f"how many, at most {MOST}",
}


class Conversations:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._recorder = context.recorder
        self._shows_contents = context.settings.shows_contents

    def routes(self) -> list[Route]:
        """The routes of the conversations."""
        return [
            Route(method="GET", path="/conversations", handler=self._list,
                  summary="The newest conversations, by text, tool, state and caller.",
                  query=QUERY),
            Route(method="GET", path="/conversations/{}", handler=self._one,
                  summary="All that is kept of one conversation."),
        ]  # fmt: skip

    async def _list(self, request: ConsoleRequest) -> JSON:
        query = request.query
        most = limit_of(query, PAGE, MOST)
        tool, same = query.get("tool"), {name: query[name] for name in SAME if query.get(name)}

        def fits(line: JSON) -> bool:
            return (not tool or any(tool in name for name in line["tools"])) and all(
                line.get(name) == value for name, value in same.items()
            )

        text = query.get("text", "")[:MAX_TEXT].strip()
        found, more = await self._recorder.search(text, fits, query.get("before", ""), most)
        return {
            "conversations": found,
            "more": more,
            "left_out": self._recorder.left_out,
            "shows_contents": self._shows_contents,
        }

    async def _one(self, request: ConsoleRequest) -> JSON:
        if found := await self._recorder.find(request.names[0]):
            return found
        raise NotFound("This conversation is no longer kept.")
