"""The keys of the mcp.json: who has one, what it may do, when it was used; adding, rotating and revoking them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from toolway.access.keys import add_key, described, revoke_key, rights_of, rotate_key
from toolway.access.principal import principal_of_key
from toolway.console.access import Access
from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, ConsoleResponse, Route
from toolway.errors import ConfigError, Forbidden, InvalidRequest, NotFound, ToolwayError
from toolway.settings.mcp_json import json_schema
from toolway.stores import EntryKind, Key
from toolway.types import JSON

T = TypeVar("T")

MAX_BODY = 64 * 2**10
USED_SECONDS = 5.0
"""Seconds between two times at which the processes tell each other which keys they saw."""
USED_TTL = 90 * 86_400.0
_USED = EntryKind("key used", float)


class Keys:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext, access: Access, tasks: TaskGroup) -> None:
        self._context = context
        self._access = access
        self._changing = anyio.Lock()
        tasks.start_soon(self._keep_used)

    def routes(self) -> list[Route]:
        """The routes of the keys."""
        return [
            Route(method="GET", path="/keys", handler=self._list,
                  summary="The keys of the file: what each may do, until when, when it was used last."),
            Route(method="POST", path="/keys", handler=self._add,
                  summary="Make a key; its secret is answered once, and kept nowhere.",
                  body={"name": {"type": "string"}, "rights": {"type": "object"}}),
            Route(method="POST", path="/keys/{}/rotate", handler=self._rotate,
                  summary="Give a key another secret, answered once; the old one opens nothing any more."),
            Route(method="DELETE", path="/keys/{}", handler=self._revoke, summary="Take a key out of the file."),
        ]  # fmt: skip

    async def _list(self, _: ConsoleRequest) -> JSON:
        settings = self._context.config.settings
        principals = [principal_of_key(key, settings.access) for key in settings.access.keys]
        stored = await self._context.store.get_all([_usage_key(principal.id) for principal in principals])
        here = self._context.keys.used_at
        return {
            "keys": [
                {**described(key), "used_at": max(here.get(principal.id, 0.0), at or 0.0) or None}
                for key, principal, at in zip(settings.access.keys, principals, stored, strict=True)
            ],
            "of_environment": len(self._context.settings.server.api_keys),
            "groups": {group.name: rights_of(group) for group in settings.access.groups},
            "file": str(self._context.config.path),
            "may_edit": self._context.settings.console.edit,
            "is_open": not self._access.needs_key,
            "schema": await anyio.to_thread.run_sync(_schema),
        }

    async def _add(self, request: ConsoleRequest) -> ConsoleResponse:
        body = await request.body(MAX_BODY)
        name, rights = body.get("name"), body.get("rights", {})
        if not isinstance(name, str) or not isinstance(rights, dict) or "hash" in rights:
            raise InvalidRequest('name must be a text, and "rights" an object without a hash.', param="name")
        if not self._access.needs_key and "console" not in (rights.get("routes") or ()):
            raise InvalidRequest(
                "The first key closes Toolway for all who have none, and its console too: let this one open the "
                'console (among its "routes"), or set TOOLWAY_CONSOLE_KEYS before.',
                param="routes",
            )
        secret = await self._change(lambda: add_key(self._context.config.path, name, rights))
        self._context.note_change("key.added", request.session.by, name)
        return await self._secret(request, name, secret)

    async def _rotate(self, request: ConsoleRequest) -> ConsoleResponse:
        name = self._existing_name(request)
        secret = await self._change(lambda: rotate_key(self._context.config.path, name))
        self._context.note_change("key.rotated", request.session.by, name)
        return await self._secret(request, name, secret)

    async def _revoke(self, request: ConsoleRequest) -> JSON:
        name = self._existing_name(request)
        await self._change(lambda: revoke_key(self._context.config.path, name))
        self._context.note_change("key.revoked", request.session.by, name)
        return {"revoked": name}

    def _existing_name(self, request: ConsoleRequest) -> str:
        name = request.names[0]
        if name not in {key.name for key in self._context.config.settings.access.keys}:
            raise NotFound("There is no key of this name in the file.")
        return name

    async def _change(self, change: Callable[[], T]) -> T:
        """Change the file, and have it in force at once. Raises InvalidRequest, Forbidden."""
        if not self._context.settings.console.edit:
            raise Forbidden("TOOLWAY_CONSOLE_EDIT=false: the file with the keys is not changed here.")
        async with self._changing:
            try:
                changed = await anyio.to_thread.run_sync(change)
            except ConfigError as error:
                where = f"{self._context.config.path}:"
                raise InvalidRequest(error.message.replace(where, "line ")) from None
            self._context.config.reload()
        return changed

    async def _secret(self, request: ConsoleRequest, name: str, secret: str) -> ConsoleResponse:
        """A new secret, with a session of it where its key replaces what the asker came in by."""
        value: JSON = {"name": name, "key": secret}
        try:
            await self._access.check(request.scope)
        except ToolwayError:
            try:
                session, cookie = self._access.sign_in(request.scope, secret)
            except ToolwayError:
                return ConsoleResponse(value=value)
            return ConsoleResponse(value={**value, "token": session.token}, headers=[cookie])
        return ConsoleResponse(value=value)

    async def _keep_used(self) -> None:
        """Tell the other processes, and the next ones, when each key was used here."""
        written: dict[str, float] = {}
        while True:
            await anyio.sleep(USED_SECONDS)
            used = dict(self._context.keys.used_at)
            for identity in [one for one, at in used.items() if written.get(one) != at]:
                await self._context.store.put(_usage_key(identity), used[identity], ttl=USED_TTL)
            written = used


def _usage_key(identity: str) -> Key[float]:
    return _USED.key("console keys", identity)


@cache
def _schema() -> JSON:
    """The JSON Schema of what a key may do."""
    schema: JSON = json_schema()["properties"]["keys"]["additionalProperties"]
    properties = {name: value for name, value in schema["properties"].items() if name != "hash"}
    return {**schema, "properties": properties, "required": []}
