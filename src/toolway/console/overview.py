"""The overview: the model server, the tool servers, what is wrong, and what a client needs to know."""

from __future__ import annotations

import time
from collections.abc import Sequence

import anyio
import orjson

from toolway import __version__
from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route
from toolway.engine.model_target import USER_AGENT
from toolway.errors import ToolwayError
from toolway.net.hosts import masked
from toolway.schema.compile import definition_tokens
from toolway.types import JSON, ToolSource
from toolway.upstream.client import credential

MODEL_SECONDS = 3.0
FRESH_SECONDS = 5.0
"""The model server is not asked more often than that, however many pages are open."""
MAX_MODELS = 200


class Overview:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._model_server: JSON = {}
        self._findings: Sequence[JSON] = ()
        self._asked_at = float("-inf")
        self._is_stale = False
        self._asking = anyio.Lock()

    def routes(self) -> list[Route]:
        """The routes of the overview."""
        return [
            Route(method="GET", path="/overview", handler=self._overview,
                  summary="The state of everything, what is wrong and what to do about it.",
                  query={"fresh": "look anew at the model server"}),
        ]  # fmt: skip

    def notice(self) -> None:
        """A tool server is in another state: what was found is so no longer."""
        self._is_stale = True

    async def _overview(self, request: ConsoleRequest) -> JSON:
        await self._ask(at_once="fresh" in request.query)
        context = self._context
        settings = context.settings
        snapshot = context.engine.target.fit(context.catalog.snapshot)
        return {
            "version": __version__,
            "model_server": self._model_server,
            "servers": [summary_of(source) for source in context.catalog.sources],
            "tools": {
                "offered": len(snapshot.offered),
                "tokens": definition_tokens(snapshot.size) if snapshot.offered else 0,
            },
            "findings": self._findings,
            "conversations": await context.recorder.newest(6),
            "needs_key": context.keys.is_closed,
            "shows_contents": settings.shows_contents,
            "may_edit": settings.console.edit,
            "paths": sorted(set(context.paths())),
            "profiles": [profile.name for profile in settings.tools.profiles],
        }

    async def _ask(self, *, at_once: bool) -> None:
        async with self._asking:
            age = time.monotonic() - self._asked_at
            if not self._is_stale and age < (1.0 if at_once else FRESH_SECONDS):
                return
            self._is_stale = False
            self._model_server = await self._look_at_model_server()
            self._findings = await self._context.judge()
            self._asked_at = time.monotonic()

    async def _look_at_model_server(self) -> JSON:
        context = self._context
        headers = [USER_AGENT, *credential(context.settings.upstream.api_key)]
        target = context.engine.target
        found: JSON = {
            "url": masked(context.settings.upstream.base_url),
            "schema_target": target.schema_target,
            "is_reachable": False,
            "reason": f"no answer within {MODEL_SECONDS:g} seconds",
            "models": [],
        }
        with anyio.move_on_after(MODEL_SECONDS):
            try:
                async with context.upstream.request("GET", "/models", headers=headers) as answer:
                    body = await answer.read(2**24)
            except ToolwayError as error:
                return {**found, "reason": error.message}
            ids = _ids(body)
            if ids is None:
                return {**found, "reason": f"GET /models answers {answer.status}, not a list of models"}
            known = {name: await target.infos.get(name, headers) for name in ids[:1]}
            models = [
                {
                    "id": name,
                    "context": known[name].context if name in known else None,
                    "sees": known[name].sees if name in known else None,
                }
                for name in ids[:MAX_MODELS]
            ]
            return {**found, "is_reachable": True, "reason": None, "models": models}
        return found


def _ids(body: bytes) -> list[str] | None:
    try:
        return [str(model["id"]) for model in orjson.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return None


def summary_of(source: ToolSource) -> JSON:
    """One tool server in a line."""
    status = source.status
    return {
        "label": source.label,
        "kind": source.kind,
        "state": status.state,
        "protocol": status.protocol,
        "tools": len(status.tools),
        "error": status.error,
        "error_at": status.error_at,
        "error_stage": status.error_stage,
        "warnings": list(status.warnings),
    }
