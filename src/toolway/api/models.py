"""GET /v1/models and /v1/models/{id}: the model server's list, with profiles and aliases, for clients of both kinds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from toolway.api.answers import answer_errors
from toolway.errors import InvalidRequest, NotFound
from toolway.server.asgi import relayed, send_json, send_whole
from toolway.server.caller import as_openai_caller, caller_of, principal_of
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import is_anthropic, request_id
from toolway.settings.settings import Settings
from toolway.types import JSON, Header, Principal
from toolway.upstream.client import Upstream, UpstreamResponse

ROOT = "/v1/models"
DEFAULT_LIMIT = 1000

_MAX_BYTES = 16 * 2**20
_CONTEXT = ("max_model_len", "context_length", "max_context_length", "max_input_tokens")
"""How servers call the tokens that a model reads."""


class ModelList:
    """An ASGI app. A client that names a version of Anthropic's API gets its form of the list, all others OpenAI's.

    What is no list of models is relayed as it came, and so is all that needs no change.
    """

    def __init__(self, upstream: Upstream, settings: Settings, passthrough: ASGIApp) -> None:
        self._upstream = upstream
        self._settings = settings
        self._passthrough = passthrough
        self._has_more = bool(settings.tools.profiles or settings.upstream.model_aliases)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the longer list."""
        wants_openai = not is_anthropic(scope)
        is_changed = self._has_more or bool(principal_of(scope).models)
        if scope["method"] not in ("GET", "HEAD") or (
            wants_openai and (scope["path"] != ROOT or not is_changed)
        ):
            await self._passthrough(scope, receive, send)
            return
        listed = self._openai(scope, send) if wants_openai else self._anthropic(scope, send)

        async def answer() -> None:
            with error_at_stop(scope):
                await listed

        await answer_errors(scope, send, cancel_on_disconnect(scope, receive, answer))

    async def _openai(self, scope: Scope, send: Send) -> None:
        answer, listed = await self._fetch(scope)
        if isinstance(listed, dict):
            await send_json(send, 200, listed, relayed(answer.headers))
            return
        kind: list[Header] = [header for header in answer.headers if header[0] == b"content-type"]
        await send_whole(send, answer.status, listed, [*kind, *relayed(answer.headers)])

    async def _anthropic(self, scope: Scope, send: Send) -> None:
        _, listed = await self._fetch(scope)
        found = listed["data"] if isinstance(listed, dict) else ()
        models = [_as_anthropic(model) for model in found if isinstance(model.get("id"), str)]
        identity = unquote(scope["path"]).removeprefix(ROOT).strip("/")
        body = _find_model(models, identity) if identity else _page(models, scope["query_string"])
        await send_json(send, 200, body, [(b"request-id", request_id().encode())])

    async def _fetch(self, scope: Scope) -> tuple[UpstreamResponse, JSON | bytes]:
        """The model server's answer, and its list with ours in it; its bytes if it is none. Raises UpstreamError."""
        caller = caller_of(scope, self._settings.upstream)
        query = caller.query
        if is_anthropic(scope):
            caller, query = as_openai_caller(caller), b""
        async with self._upstream.request("GET", "/models", query=query, headers=caller.headers) as answer:
            if not answer.is_success:
                raise await answer.refusal()
            body = await answer.read(_MAX_BYTES)
        try:
            parsed: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            parsed = None
        models = parsed.get("data") if isinstance(parsed, dict) else None
        allowed = principal_of(scope)
        if not isinstance(models, list):
            return answer, {"object": "list", "data": []} if allowed.models else body
        if allowed.models:
            parsed.pop("models", None)  # llama.cpp tells them twice
            models = [m for m in models if isinstance(m, dict) and allowed.may_use_model(m.get("id"))]
        return answer, {**parsed, "data": self._with_ours(models, allowed)}

    def _with_ours(self, listed: Sequence[Any], allowed: Principal) -> list[JSON]:
        models = [model for model in listed if isinstance(model, dict)]
        by_name = {model["id"]: model for model in models if isinstance(model.get("id"), str)}
        aliases = [
            {**by_name.get(alias.model, {"object": "model"}), "id": alias.name}
            for alias in self._settings.upstream.model_aliases
            if not alias.is_pattern and alias.name not in by_name and allowed.may_use_model(alias.model)
        ]
        profiles = [
            {**model, "id": f"{model['id']}@{profile.name}"}
            for model in [*by_name.values(), *aliases]
            for profile in self._settings.tools.profiles
        ]
        return [*models, *aliases, *profiles]


def _as_anthropic(model: JSON) -> JSON:
    """A model in both forms at once: members of Anthropic's list beside those that the model server wrote."""
    name, created = model["id"], model.get("created")
    at = created if isinstance(created, int | float) and 0 <= created < 2**32 else 0
    meta = model.get("meta")
    sizes = [model.get(member) for member in _CONTEXT] + [
        meta.get("n_ctx") if isinstance(meta, dict) else None
    ]
    size = next((size for size in sizes if type(size) is int), None)
    return {
        **model,
        "type": "model",
        "display_name": model["display_name"] if isinstance(model.get("display_name"), str) else name,
        "created_at": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": size,
        "max_tokens": size,
    }


def _find_model(models: Sequence[JSON], identity: str) -> JSON:
    found = next((model for model in models if model["id"] == identity), None)
    if found is None:
        raise NotFound(f"model: {identity[:200]}")
    return found


def _page(models: Sequence[JSON], query: bytes) -> JSON:
    """A page as Anthropic cuts it: `limit` models behind `after_id`, or before `before_id`."""
    asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
    limit = asked.get("limit", str(DEFAULT_LIMIT))
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= DEFAULT_LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {DEFAULT_LIMIT}.", param="limit")
    names = [model["id"] for model in models]
    begin, end = 0, len(models)
    if (after := asked.get("after_id")) in names:
        begin = names.index(after) + 1
    if (before := asked.get("before_id")) in names:
        end = names.index(before)
        begin = max(begin, end - int(limit))
    page = list(models[begin:end][: int(limit)])
    return {
        "data": page,
        "object": "list",
        "has_more": begin > 0 if before in names else begin + len(page) < end,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
