"""GET /v1/models when there are profiles: the model server's list, and each model once more for each profile."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from toolway.errors import UpstreamError
from toolway.server.caller import upstream_headers
from toolway.server.disconnect import cancel_on_disconnect
from toolway.server.json_response import relayed, send_error, send_json, send_whole
from toolway.settings.settings import Settings
from toolway.types import JSON, Header
from toolway.upstream.client import Upstream

_MAX_BYTES = 16 * 2**20


class ModelList:
    """An ASGI app. What is no list of models is relayed as it came."""

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self._upstream = upstream
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the longer list."""
        await cancel_on_disconnect(scope, receive, lambda: self._answer(scope, send))

    async def _answer(self, scope: Scope, send: Send) -> None:
        headers = upstream_headers(scope, self._settings.upstream)
        query = scope["query_string"]
        try:
            async with self._upstream.request("GET", "/models", query=query, headers=headers) as answer:
                body = await answer.read(_MAX_BYTES)
        except UpstreamError as error:
            await send_error(send, error)
            return
        listed = self._with_profiles(body) if answer.status == 200 else None
        if listed is not None:
            await send_json(send, 200, listed, relayed(answer.headers))
            return
        kind: list[Header] = [header for header in answer.headers if header[0] == b"content-type"]
        await send_whole(send, answer.status, body, [*kind, *relayed(answer.headers)])

    def _with_profiles(self, body: bytes) -> JSON | None:
        try:
            parsed: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        models = parsed.get("data") if isinstance(parsed, dict) else None
        if not isinstance(models, list):
            return None
        more = [
            {**model, "id": f"{model['id']}@{profile.name}"}
            for model in models
            if isinstance(model, dict) and isinstance(model.get("id"), str)
            for profile in self._settings.tools.profiles
        ]
        return {**parsed, "data": [*models, *more]}
