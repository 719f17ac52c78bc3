"""What the model server tells about a model: how much it can read, whether it sees, whether it can be made to call."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import orjson

from toolway.errors import UpstreamError
from toolway.types import JSON, JSON_TYPE, Header
from toolway.upstream.client import Upstream

log = logging.getLogger("toolway.upstream")

TIMEOUT = 3.0
"""Seconds for all questions together; who does not answer by then says nothing."""

MAX_AGE = 300.0
"""Seconds after which the server is asked again: a model can be loaded anew with another context."""

OLLAMA_CONTEXT = 4096
"""Tokens that a model of Ollama reads when neither its file nor the server's settings say more."""

_NUM_CTX = re.compile(r"^num_ctx\s+(\d{1,9})\s*$", re.MULTILINE)
_MAX_BYTES = 16 * 2**20
_IGNORE_TOOL_CHOICE = frozenset({"llamacpp", "organization_owner", "library"})
"""`owned_by` of servers that take a named tool_choice for `auto` or refuse it: llama.cpp, LM Studio, Ollama."""

_CACHE_PROMPTS = _IGNORE_TOOL_CHOICE | {"vllm", "sglang", "llama-swap"}
"""`owned_by` of servers that run on the machine of whoever asks them, and keep what they have read."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """`context` in tokens. None is what the server does not tell."""

    context: int | None = None
    sees: bool | None = None
    ignores_choice: bool = False
    """Whether a tool_choice that names a tool must be enforced by other means."""
    caches_prompts: bool = False
    """Whether its server need not read anew the beginning of a prompt that it has read before."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `/v1/models` answered at `came_at` (monotonic seconds). `body` is empty when that was no JSON object."""

    status: int
    headers: Sequence[Header]
    body: JSON
    came_at: float

    def names(self, model: str) -> bool:
        """Whether a model of this id or alias is in the list."""
        return any(_has_name(entry, model) for entry in _entries(self.body))

    @property
    def ids(self) -> list[str]:
        """The names of the models."""
        return [entry["id"] for entry in _entries(self.body) if isinstance(entry.get("id"), str)]

    @property
    def is_ollamas(self) -> bool:
        """Whether the list is Ollama's."""
        return any(entry.get("owned_by") == "library" for entry in _entries(self.body))


class ModelInfos:
    """Asks when somebody wants to know, and remembers the answer for some minutes.

    Read are `/v1/models` (vLLM's `max_model_len`, llama.cpp's `meta.n_ctx`, `context_length` and the modalities
    of others), llama.cpp's `/props`, LM Studio's `/api/v0/models`, and Ollama's `/api/show` and `/api/ps`.
    `on_listing` is told of each list that comes.
    """

    def __init__(self, upstream: Upstream, on_listing: Callable[[Listing], None] | None = None) -> None:
        self._upstream = upstream
        self._on_listing = on_listing
        self._newest: Listing | None = None
        self._listing = anyio.Lock()
        self._known: dict[str, tuple[float, ModelInfo]] = {}
        self._asking = anyio.Lock()

    def cached(self, model: Any) -> ModelInfo | None:
        """What is known of `model` without asking; None: nothing, or no more."""
        return self._fresh(model if isinstance(model, str) else "")

    async def get(self, model: Any, headers: Sequence[Header]) -> ModelInfo:
        """What is known of `model`; `headers` hold the credential. Never raises for the server's trouble."""
        name = model if isinstance(model, str) else ""
        if (known := self._fresh(name)) is not None:
            return known
        async with self._asking:
            if (known := self._fresh(name)) is not None:
                return known
            since, info = await self._ask(name, headers)
            if len(self._known) > 1000:
                self._known.clear()
            self._known[name] = (since + MAX_AGE, info)
        log.debug("model %s: context %s, sees %s", name, info.context, info.sees)
        return info

    async def are_listed(self, models: Sequence[str], headers: Sequence[Header]) -> list[bool]:
        """Which of these the server has in its list, as far as it tells; the first decides whether it is asked anew."""
        listing = None
        with anyio.move_on_after(TIMEOUT):
            listing = await self.listing(headers, models[0])
        return [listing is not None and listing.names(model) for model in models]

    async def listing(self, headers: Sequence[Header], model: str | None = None) -> Listing | None:
        """`/v1/models`, not older than MAX_AGE and, if one can be had, with `model` in it. None: no answer came."""
        async with self._listing:
            newest = self._newest
            if (
                newest
                and newest.came_at + MAX_AGE > time.monotonic()
                and (model is None or newest.names(model))
            ):
                return newest
            listing = await self._list(headers)
            if listing and listing.body:
                self._newest = listing
            if listing and self._on_listing:
                self._on_listing(listing)
            return listing

    async def _list(self, headers: Sequence[Header]) -> Listing | None:
        try:
            async with self._upstream.request("GET", "/models", headers=headers) as answer:
                body = await answer.read(_MAX_BYTES)
        except UpstreamError:
            return None
        parsed = _object_in(body) if answer.status == 200 else {}
        return Listing(status=answer.status, headers=answer.headers, body=parsed, came_at=time.monotonic())

    def _fresh(self, name: str) -> ModelInfo | None:
        until, info = self._known.get(name, (0.0, None))
        return info if until > time.monotonic() else None

    async def _ask(self, name: str, headers: Sequence[Header]) -> tuple[float, ModelInfo]:
        """What is known of a model, and since when."""
        asked = [header for header in headers if header[0] not in (b"content-type", b"content-length")]
        since, info = time.monotonic(), ModelInfo()
        with anyio.move_on_after(TIMEOUT):
            listing = await self.listing(asked, name)
            if listing:
                since, info = listing.came_at, _from_list(listing.body, name)
            if listing and listing.is_ollamas:
                shown = await self._read("/api/show", asked, {"model": name})
                info = _merged(info, _from_ollama(shown, await self._read("/api/ps", asked), name))
            if info.context is None or info.sees is None:
                info = _merged(info, _from_props(await self._read("/props", asked)))
            if info.context is None or info.sees is None:
                info = _merged(info, _from_lm_studio(await self._read("/api/v0/models", asked), name))
        return since, info

    async def _read(self, path: str, headers: Sequence[Header], question: JSON | None = None) -> JSON:
        method, body = "GET", None
        if question is not None:
            method, body, headers = "POST", orjson.dumps(question), [*headers, JSON_TYPE]
        try:
            async with self._upstream.request(method, path, headers=headers, body=body, root=True) as answer:
                return _object_in(await answer.read(_MAX_BYTES)) if answer.status == 200 else {}
        except UpstreamError:
            return {}


def _object_in(body: bytes) -> JSON:
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _from_list(body: JSON, name: str) -> ModelInfo:
    entry = _entry(body, name)
    meta = entry.get("meta")
    context = entry.get("max_model_len") or entry.get("context_length") or entry.get("max_context_length")
    if isinstance(meta, dict) and not context:
        context = meta.get("n_ctx")
    owner = str(entry.get("owned_by")).lower()
    architecture = entry.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return ModelInfo(
        context=_positive(context),
        sees="image" in modalities if isinstance(modalities, list) else None,
        ignores_choice=owner in _IGNORE_TOOL_CHOICE,
        caches_prompts=owner in _CACHE_PROMPTS,
    )


def _from_props(body: JSON) -> ModelInfo:
    settings, modalities = body.get("default_generation_settings"), body.get("modalities")
    return ModelInfo(
        context=_positive(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        sees=bool(modalities.get("vision")) if isinstance(modalities, dict) else None,
    )


def _from_lm_studio(body: JSON, name: str) -> ModelInfo:
    entry = _entry(body, name)
    if not entry:
        return ModelInfo()
    kind = entry.get("type")
    return ModelInfo(
        context=_positive(entry.get("loaded_context_length") or entry.get("max_context_length")),
        sees=kind == "vlm" if isinstance(kind, str) else None,
    )


def _from_ollama(shown: JSON, running: JSON, name: str) -> ModelInfo:
    """What `/api/show` says of a model and `/api/ps` of those that are loaded.

    How much a model reads is decided when it is loaded, by `num_ctx` of its file or else by the server.
    """
    loaded = next(
        (entry for entry in _entries(running, "models") if entry.get("name") in (name, f"{name}:latest")), {}
    )
    parameters, about = shown.get("parameters"), shown.get("model_info")
    if not isinstance(about, dict):
        return ModelInfo()
    asked = _NUM_CTX.search(parameters) if isinstance(parameters, str) else None
    most = [_positive(value) or 0 for key, value in about.items() if key.endswith(".context_length")]
    by_default = min([OLLAMA_CONTEXT, *(length for length in most if length)])
    capabilities = shown.get("capabilities")
    return ModelInfo(
        context=_positive(loaded.get("context_length")) or (int(asked[1]) if asked else by_default),
        sees="vision" in capabilities if isinstance(capabilities, list) else None,
    )


def _entry(body: JSON, name: str) -> JSON:
    """The entry of a model list that has this id or alias; the only one when there is just one."""
    entries = _entries(body)
    return next(
        (entry for entry in entries if _has_name(entry, name)), entries[0] if len(entries) == 1 else {}
    )


def _entries(body: JSON, member: str = "data") -> list[JSON]:
    data = body.get(member)
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _has_name(entry: JSON, name: str) -> bool:
    aliases = entry.get("aliases")
    return entry.get("id") == name or (isinstance(aliases, list) and name in aliases)


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _merged(info: ModelInfo, more: ModelInfo) -> ModelInfo:
    return replace(
        info,
        context=more.context if info.context is None else info.context,
        sees=more.sees if info.sees is None else info.sees,
    )
