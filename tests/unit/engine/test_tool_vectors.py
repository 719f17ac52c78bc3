"""Embeddings of tools, of a model server that has an embedding model, is slow, or says nonsense."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
import pytest

from tests.support.servers import running
from toolway.engine import tool_vectors
from toolway.engine.model_target import ModelTarget
from toolway.engine.tool_vectors import ToolVectors, open_vectors
from toolway.errors import ConfigError
from toolway.settings.load import load_settings
from toolway.stores import Store, open_store
from toolway.types import Tool
from toolway.upstream.client import Upstream

JSON = dict[str, Any]
CONCEPTS = [("weather", "umbrella"), ("mail", "letter"), ("song", "tune")]


def tool(name: str) -> Tool:
    return Tool(name=name, server="s", description=f"About {name}.", parameters={})


TOOLS = {name: tool(name) for name in ("weather", "mail", "song")}


def by_concept(texts: list[str]) -> JSON:
    vectors = [[0.1 + any(word in text for word in words) for words in CONCEPTS] for text in texts]
    data = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
    return {"data": data[::-1]}


class EmbeddingServer:
    def __init__(
        self, answer: Callable[[list[str]], Any] = by_concept, models: tuple[str, ...] = ("nomic-embed",)
    ):
        self.asked: list[list[str]] = []
        self._answer = answer
        self._models = models

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive()).get("more_body"):
            body += event["body"]
        body += event.get("body", b"")
        found: Any = {"data": [{"id": "chat"}, *({"id": model} for model in self._models)]}
        if scope["path"] == "/v1/embeddings":
            texts = orjson.loads(body)["input"]
            self.asked.append(texts)
            found = self._answer(texts)
        status = 500 if found is None else 200
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "http.response.body", "body": orjson.dumps(found)})


@asynccontextmanager
async def vectors_of(server: Any, store: Store, **settings: str) -> AsyncIterator[ToolVectors]:
    with running(server, lifespan="off") as url:
        chosen = load_settings({}, None, openai_base_url=f"{url}/v1", **settings)
        async with (
            Upstream.connect(chosen.upstream) as upstream,
            open_vectors(chosen, upstream, ModelTarget(chosen.upstream, upstream), store) as vectors,
        ):
            assert vectors is not None
            yield vectors


async def ranked(vectors: ToolVectors, query: str, tools: dict[str, Tool] = TOOLS) -> list[str]:
    """The ranking once all vectors are there."""
    with anyio.fail_after(60):
        while not (names := await vectors.rank(query, tools)):
            await anyio.lowlevel.checkpoint()
    return names


async def given_up(vectors: ToolVectors, log: pytest.LogCaptureFixture) -> None:
    """A search has vectors made, and the log says that there are none."""
    log.set_level(logging.INFO)
    assert await vectors.rank("umbrella", TOOLS) == []
    with anyio.fail_after(60):
        while "searched by words alone" not in log.text:
            await anyio.lowlevel.checkpoint()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("memory:", ttl=60, max_bytes=2**20) as opened:
        yield opened


async def test_tools_are_ranked_by_meaning_once_their_vectors_were_made(store: Store):
    server = EmbeddingServer()
    async with vectors_of(server, store) as vectors:
        assert await vectors.rank("umbrella", TOOLS) == [], "nobody waits for the first vectors"
        assert (await ranked(vectors, "umbrella"))[0] == "weather"
        assert (await ranked(vectors, "a tune"))[0] == "song"
        assert [texts for texts in server.asked if len(texts) == 3] == [
            [f"s: {name}. About {name}." for name in TOOLS]
        ]


async def test_vectors_are_kept_in_the_store(store: Store):
    async with vectors_of(EmbeddingServer(), store) as vectors:
        await ranked(vectors, "umbrella")
    again = EmbeddingServer()
    same = {name: tool(name) for name in TOOLS}
    async with vectors_of(again, store, tool_search_embeddings="nomic-embed") as vectors:
        assert (await ranked(vectors, "umbrella", same))[0] == "weather"
        assert all(texts == ["umbrella"] for texts in again.asked)


@pytest.mark.parametrize(
    "answer",
    [
        lambda texts: None,
        lambda texts: {"data": "x"},
        lambda texts: {"data": [{"embedding": [1, "x"]}]},
        lambda texts: {"data": [{"embedding": [math.inf]}] * len(texts)},
        lambda texts: {"data": []},
        lambda texts: [],
    ],
)
async def test_a_server_that_makes_no_vectors_is_left_alone(
    store: Store, answer: Callable[[list[str]], Any], caplog: pytest.LogCaptureFixture
):
    server = EmbeddingServer(answer)
    async with vectors_of(server, store) as vectors:
        await given_up(vectors, caplog)
        count = len(server.asked)
        assert await vectors.rank("umbrella", TOOLS) == []
        assert len(server.asked) == count


async def test_a_server_without_an_embedding_model_is_not_asked_for_vectors(
    store: Store, caplog: pytest.LogCaptureFixture
):
    server = EmbeddingServer(models=())
    async with vectors_of(server, store) as vectors:
        await given_up(vectors, caplog)
        assert server.asked == []


async def test_a_search_does_not_wait_for_a_query_s_vector_for_long(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    server = EmbeddingServer()
    async with vectors_of(server, store) as vectors:
        await ranked(vectors, "umbrella")
        monkeypatch.setattr(tool_vectors, "QUERY_TIMEOUT", 0.0)
        assert await vectors.rank("umbrella", TOOLS) == []


@pytest.mark.parametrize("settings", [{"tool_search": "off"}, {"tool_search_embeddings": "off"}])
async def test_nobody_is_asked_where_the_settings_want_none(store: Store, settings: dict[str, str]):
    chosen = load_settings({}, None, openai_base_url="http://127.0.0.1:9/v1", **settings)
    async with Upstream.connect(chosen.upstream) as upstream:
        target = ModelTarget(chosen.upstream, upstream)
        async with open_vectors(chosen, upstream, target, store) as vectors:
            assert vectors is None


async def test_local_vectors_need_an_extra_or_are_made_here(store: Store):
    try:
        async with vectors_of(EmbeddingServer(), store, tool_search_embeddings="local") as vectors:
            assert set(await ranked(vectors, "umbrella against the rain")) == set(TOOLS)
    except ConfigError as error:
        assert "toolway[embeddings]" in error.message
