"""The tools: what each is and takes, what the model sees of it, who may use it, and a call to try it."""

from __future__ import annotations

from time import monotonic
from typing import Any

import anyio

from toolway.access.principal import principal_of_key
from toolway.console.context import ConsoleContext
from toolway.console.event_feed import ProgressTopic
from toolway.console.routes import ConsoleRequest, Route
from toolway.engine.model_target import RefusedTool
from toolway.errors import InvalidRequest, NotFound
from toolway.schema.compile import definition_tokens
from toolway.server.cancellation import cancel_on_disconnect
from toolway.tools.catalog import Snapshot
from toolway.tools.direct_tools import DirectTools
from toolway.types import JSON, Caller, Tool, ToolResult, is_selected
from toolway.wire.lenient_json import dumps, dumps_text, harmless, loads

MAX_DESCRIPTION = 300
"""Characters of a description in the list."""
CALLER = Caller(id="console", name="console")
"""Who calls a tool from here, for rules and the audit log."""
MAX_ARGUMENTS = 64 * 2**20
MAX_WATCH = 64
"""Characters of the name by which a page follows its call."""


class Tools:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._direct_tools = DirectTools(context.catalog, timeout=context.settings.loop.tool_timeout)

    def routes(self) -> list[Route]:
        """The routes of the tools."""
        return [
            Route(method="GET", path="/tools", handler=self._list,
                  summary="Every tool by the name that the model sees, and the tokens that it takes."),
            Route(method="GET", path="/tools/{}", handler=self._one,
                  summary="One tool: its schema, what the model sees of it, who may use it."),
            Route(method="POST", path="/tools/{}/call", handler=self._call,
                  summary="Run a tool; a failure of the tool is a result with is_error. Its progress is the topic "
                  "call:WATCH of the events.",
                  body={"arguments": {"type": "object"}, "watch": {"type": "string"}}),
        ]  # fmt: skip

    @property
    def _snapshot(self) -> Snapshot:
        return self._context.engine.target.fit(self._context.catalog.snapshot)

    async def _list(self, _: ConsoleRequest) -> JSON:
        snapshot, refused = self._snapshot, self._refused()
        return {
            "tools": [self._line(name, tool, snapshot, refused) for name, tool in snapshot.tools.items()],
            "tokens": definition_tokens(snapshot.size) if snapshot.offered else 0,
            "target": snapshot.target,
        }

    def _refused(self) -> dict[tuple[str, str], RefusedTool]:
        return {(tool.server, tool.name): tool for tool in self._context.engine.target.refused}

    def _line(
        self, name: str, tool: Tool, snapshot: Snapshot, refused: dict[tuple[str, str], RefusedTool]
    ) -> JSON:
        refusal = refused.get((tool.server, name))
        reason = snapshot.left_out.get(name) or (refusal.reason if refusal else None)
        if not tool.available:
            reason = "its server is away"
        return {
            "name": name,
            "server": tool.server,
            "description": tool.description[:MAX_DESCRIPTION],
            "tokens": _tokens(snapshot, name),
            "is_offered": name in snapshot.offered,
            "reason": reason,
        }

    async def _one(self, request: ConsoleRequest) -> JSON:
        name, snapshot = request.names[0], self._snapshot
        tool = snapshot.tools.get(name)
        if tool is None:
            raise NotFound("There is no tool of this name now.")
        access = self._context.config.settings.access
        allowed = [
            key.name
            for key in access.keys
            if is_selected(name, tool, principal_of_key(key, access).selection)
        ]
        return {
            **self._line(name, tool, snapshot, self._refused()),
            "description": tool.description,
            "original_name": tool.name,
            "timeout": tool.timeout or self._context.settings.loop.tool_timeout,
            "schema": harmless(tool.parameters),
            "definition": _definition(snapshot, name),
            "target": snapshot.target,
            "keys": allowed if access.keys else None,
        }

    async def _call(self, request: ConsoleRequest) -> Any:
        body = await request.body(MAX_ARGUMENTS)
        arguments = body.get("arguments", {})
        if not isinstance(arguments, dict):
            raise InvalidRequest("arguments must be an object.", param="arguments")
        watch = body.get("watch", "")
        if not isinstance(watch, str) or len(watch) > MAX_WATCH:
            raise InvalidRequest(f"watch must be a text of at most {MAX_WATCH} characters.", param="watch")
        progress = ProgressTopic(self._context.feed, f"call:{watch}")
        answers: list[JSON] = []

        async def run() -> None:
            begun = monotonic()
            # Whoever has the console is the operator, whom no rule binds: as with `toolway call`.
            async with anyio.create_task_group() as group:
                if watch:
                    group.start_soon(progress.run)
                result = await self._direct_tools.call(
                    request.names[0], dumps_text(arguments), (), gate=None, on_progress=progress
                )
                group.cancel_scope.cancel()
            if result is not None:
                answers.append({"seconds": monotonic() - begun, **_result_fields(result)})

        await cancel_on_disconnect(request.scope, request.receive, run)
        if not answers:
            raise NotFound("There is no tool of this name now.")
        return answers[0]


def _tokens(snapshot: Snapshot, name: str) -> int:
    return definition_tokens(snapshot.sizes[name]) if name in snapshot.offered else 0


def _definition(snapshot: Snapshot, name: str) -> Any:
    return loads(dumps(snapshot.definition(name))) if name in snapshot.offered else None


def _result_fields(result: ToolResult) -> JSON:
    raw = result.raw() if result.raw else {}
    blocks = raw.get("content")
    audio = [
        {"media_type": str(block.get("mimeType"))[:100], "data": block["data"]}
        for block in (blocks if isinstance(blocks, list) else ())
        if isinstance(block, dict) and block.get("type") == "audio" and isinstance(block.get("data"), str)
    ]
    return {
        "is_error": result.is_error,
        "text": result.text,
        "images": [{"media_type": image.media_type, "data": image.data} for image in result.images],
        "audio": audio,
        "structured": harmless(raw.get("structuredContent")),
    }
