"""What the model server tells about a model: how much it can read, whether it sees, whether it can be made to call."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio
import orjson

from toolway.errors import ToolwayError
from toolway.types import JSON
from toolway.upstream import Header, Upstream

log = logging.getLogger("toolway.upstream")

PATIENCE = 3.0
"""Seconds for all questions together; who does not answer by then says nothing."""

FRESH = 300.0
"""Seconds after which the server is asked again: a model can be loaded anew with another context."""

_MAX_BYTES = 4 * 2**20
_DEAF = frozenset({"llamacpp", "organization_owner", "library"})
"""`owned_by` of servers that take a named tool_choice for `auto` or refuse it: llama.cpp, LM Studio, Ollama."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """`context` in tokens. None is what the server does not tell."""

    context: int | None = None
    sees: bool | None = None
    ignores_choice: bool = False
    """Whether a tool_choice that names a tool must be enforced by other means."""


class ModelInfos:
    """Asks when somebody wants to know, and remembers the answer for some minutes.

    Read are `/v1/models` (vLLM's `max_model_len`, llama.cpp's `meta.n_ctx`, `context_length` and the modalities
    of others), llama.cpp's `/props` and LM Studio's `/api/v0/models`.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._known: dict[str, tuple[float, ModelInfo]] = {}
        self._asking = anyio.Lock()

    async def get(self, model: Any, headers: Sequence[Header]) -> ModelInfo:
        """What is known of `model`; `headers` hold the credential. Never raises for the server's trouble."""
        name = model if isinstance(model, str) else ""
        if (known := self._fresh(name)) is not None:
            return known
        async with self._asking:
            if (known := self._fresh(name)) is not None:
                return known
            info = await self._ask(name, headers)
            if len(self._known) > 1000:
                self._known.clear()
            self._known[name] = (time.monotonic() + FRESH, info)
        log.debug("model %s: context %s, sees %s", name, info.context, info.sees)
        return info

    def _fresh(self, name: str) -> ModelInfo | None:
        until, info = self._known.get(name, (0.0, ModelInfo()))
        return info if until > time.monotonic() else None

    async def _ask(self, name: str, headers: Sequence[Header]) -> ModelInfo:
        asked = [header for header in headers if header[0] not in (b"content-type", b"content-length")]
        info = ModelInfo()
        with anyio.move_on_after(PATIENCE):
            listed = await self._read("/models", asked, root=False)
            info = _from_list(listed, name)
            if info.context is None or info.sees is None:
                info = _merged(info, _from_props(await self._read("/props", asked)))
            if info.context is None or info.sees is None:
                info = _merged(info, _from_lm_studio(await self._read("/api/v0/models", asked), name))
        return info

    async def _read(self, path: str, headers: Sequence[Header], *, root: bool = True) -> JSON:
        try:
            async with self._upstream.request("GET", path, headers=headers, root=root) as answer:
                if answer.status != 200:
                    return {}
                parsed: Any = orjson.loads(await answer.read(_MAX_BYTES))
        except (ToolwayError, orjson.JSONDecodeError):
            return {}
        return parsed if isinstance(parsed, dict) else {}


def _from_list(body: JSON, name: str) -> ModelInfo:
    entry = _entry(body, name)
    meta = entry.get("meta")
    context = entry.get("max_model_len") or entry.get("context_length") or entry.get("max_context_length")
    if isinstance(meta, dict) and not context:
        context = meta.get("n_ctx")
    architecture = entry.get("architecture")
    modalities = architecture.get("input_modalities") if isinstance(architecture, dict) else None
    return ModelInfo(
        context=_count(context),
        sees="image" in modalities if isinstance(modalities, list) else None,
        ignores_choice=str(entry.get("owned_by")).lower() in _DEAF,
    )


def _from_props(body: JSON) -> ModelInfo:
    settings, modalities = body.get("default_generation_settings"), body.get("modalities")
    return ModelInfo(
        context=_count(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        sees=bool(modalities.get("vision")) if isinstance(modalities, dict) else None,
    )


def _from_lm_studio(body: JSON, name: str) -> ModelInfo:
    entry = _entry(body, name)
    if not entry:
        return ModelInfo()
    kind = entry.get("type")
    return ModelInfo(
        context=_count(entry.get("loaded_context_length") or entry.get("max_context_length")),
        sees=kind == "vlm" if isinstance(kind, str) else None,
    )


def _entry(body: JSON, name: str) -> JSON:
    """The entry of a model list that has this id or alias; the only one when there is just one."""
    listed = body.get("data")
    entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
    for entry in entries:
        aliases = entry.get("aliases")
        if entry.get("id") == name or (isinstance(aliases, list) and name in aliases):
            return entry
    return entries[0] if len(entries) == 1 else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _merged(info: ModelInfo, more: ModelInfo) -> ModelInfo:
    return replace(
        info,
        context=more.context if info.context is None else info.context,
        sees=more.sees if info.sees is None else info.sees,
    )
