"""/mcp and /mcp/<profile>: Streamable HTTP, every protocol version that the SDK's server speaks."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus
from starlette.types import ASGIApp, Receive, Scope, Send

from toolway.access.policy import Policy
from toolway.dialects import MCP
from toolway.errors import InvalidRequest
from toolway.server.asgi import ClientGone
from toolway.server.caller import caller_of
from toolway.server.envelopes import send_error
from toolway.settings.settings import Settings
from toolway.tools.direct_tools import DirectTools
from toolway.tools.profiles import narrowed
from toolway.types import Caller

CALLER = "toolway.mcp.caller"
"""Where the caller stands in a request's scope, with the tools that the request may see."""

SEARCHES = "toolway.searches"
"""Whether the tools are searched stands here in it."""

SDK = "toolway.api.mcp.sessions"
"""Imported at the first request, because the `mcp` SDK comes with it (about 38 MB)."""


class McpEndpoint:
    """The endpoint as an ASGI app, while `running`. A profile behind /mcp/ narrows what there is."""

    def __init__(self, direct_tools: DirectTools, policy: Policy, settings: Settings) -> None:
        self._direct_tools = direct_tools
        self._policy = policy
        self._settings = settings
        self._group: TaskGroup | None = None
        self._opening = anyio.Lock()
        self._sessions: ASGIApp | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests while the block lasts."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = self._sessions = None
                group.cancel_scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            caller = self._caller(scope)
            sessions = self._sessions or await self._open()
            await sessions({**scope, CALLER: caller, SEARCHES: self._searches(scope)}, receive, send)
        except ClientGone:
            pass
        except InvalidRequest as error:
            await send_error(scope, send, error)

    def _searches(self, scope: Scope) -> bool:
        """Whether the profile has its tools searched."""
        name = _profile_name(scope)
        return any(
            profile.tool_search == "on" for profile in self._settings.tools.profiles if profile.name == name
        )

    def _caller(self, scope: Scope) -> Caller:
        caller = caller_of(scope, self._settings.upstream)
        name = _profile_name(scope)
        if not name:
            return caller
        profiles = self._settings.tools.profiles
        return replace(
            caller, selection=narrowed(caller.selection, name, profiles, self._direct_tools.all_tools)
        )

    async def _open(self) -> ASGIApp:
        async with self._opening:
            if self._sessions is None:
                if self._group is None:
                    raise RuntimeError("the endpoint is not running")
                self._sessions = await self._group.start(self._serve)
            return self._sessions

    async def _serve(self, *, task_status: TaskStatus[ASGIApp]) -> None:
        sdk = await anyio.to_thread.run_sync(importlib.import_module, SDK)
        async with sdk.open_sessions(self._direct_tools, self._policy, self._settings) as sessions:
            task_status.started(sessions)
            await anyio.sleep_forever()


def _profile_name(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(MCP.path).strip("/")
