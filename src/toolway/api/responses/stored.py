"""What stands below /v1/responses/: stored responses, read, listed, cancelled and deleted."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, unquote

from starlette.types import Receive, Scope, Send

from toolway.api.responses.background import Background
from toolway.api.responses.records import Records
from toolway.errors import InvalidRequest, NotFound
from toolway.server.caller import caller_id
from toolway.server.json_response import send_json
from toolway.types import JSON

MAX_LIMIT = 100


class Stored:
    """An ASGI app for the routes of one response."""

    def __init__(self, records: Records, background: Background) -> None:
        self._records = records
        self._background = background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises InvalidRequest."""
        identity, _, what = unquote(scope["path"]).removeprefix("/v1/responses/").partition("/")
        owner, query = caller_id(scope), _query(scope)
        match scope["method"], what:
            case "GET" | "HEAD", "":
                await self._get(scope, receive, send, owner, identity)
            case "DELETE", "":
                await self._background.delete(owner, identity)
                await send_json(send, 200, {"id": identity, "object": "response", "deleted": True})
            case "POST", "cancel":
                await send_json(send, 200, await self._background.cancel(owner, identity))
            case "GET" | "HEAD", "input_items":
                record = await self._records.get(owner, identity)
                await send_json(send, 200, _page(list(record.items), query))
            case method, _:
                raise NotFound(f"There is no {method} {scope['path'][:200]} here.")

    async def _get(self, scope: Scope, receive: Receive, send: Send, owner: str, identity: str) -> None:
        query = _query(scope)
        if query.get("stream", "").lower() not in ("true", "1"):
            await send_json(send, 200, await self._background.look(owner, identity))
            return
        after = _number(query, "starting_after", -1)
        events = await self._background.events(owner, identity, after + 1)
        await self._background.stream(scope, receive, send, events)


def _page(items: list[JSON], query: Mapping[str, str]) -> JSON:
    """One page of a list, as OpenAI cuts it: newest first unless `order` is asc, `limit` of them behind `after`."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order")
    limit = _number(query, "limit", 20)
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {MAX_LIMIT}.", param="limit")
    listed = items if order == "asc" else items[::-1]
    if after := query.get("after"):
        known = [item["id"] for item in listed]
        if after not in known:
            raise InvalidRequest(f"There is no item with the id {after[:100]!r} in this list.", param="after")
        listed = listed[known.index(after) + 1 :]
    page = listed[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(listed) > limit,
    }


def _query(scope: Scope) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} must be a whole number from 0 on.", param=name)
    return int(text)
