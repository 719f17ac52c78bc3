"""What real model servers tell about their models, each in its own way."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from tests.support.servers import running
from toolway.engine.model_target import ModelTarget
from toolway.settings.load import load_settings
from toolway.upstream.client import Upstream
from toolway.upstream.model_info import ModelInfo, ModelInfos

JSON = dict[str, Any]
OLLAMA = {"data": [{"id": "m", "owned_by": "me"}, {"id": "n:7b", "owned_by": "library"}]}
SERVERS: dict[str, tuple[dict[str, JSON], ModelInfo]] = {
    "llama.cpp": (
        {
            "/v1/models": {
                "data": [
                    {
                        "id": "m",
                        "owned_by": "llamacpp",
                        "architecture": {"input_modalities": ["text", "image"]},
                        "meta": {"n_ctx": 4096, "n_ctx_train": 8192},
                    }
                ]
            }
        },
        ModelInfo(context=4096, sees=True, ignores_choice=True, caches_prompts=True),
    ),
    "an older llama.cpp": (
        {
            "/v1/models": {"data": [{"id": "/models/m.gguf", "meta": {"n_ctx_train": 8192}}]},
            "/props": {"default_generation_settings": {"n_ctx": 2048}, "modalities": {"vision": False}},
        },
        ModelInfo(context=2048, sees=False),
    ),
    "vLLM": (
        {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 32768}]}},
        ModelInfo(context=32768, caches_prompts=True),
    ),
    "LM Studio": (
        {
            "/v1/models": {"data": [{"id": "m", "owned_by": "organization_owner"}, {"id": "other"}]},
            "/api/v0/models": {
                "data": [
                    {"id": "other", "type": "llm", "max_context_length": 1},
                    {"id": "m", "type": "vlm", "max_context_length": 131072, "loaded_context_length": 8192},
                ]
            },
        },
        ModelInfo(context=8192, sees=True, ignores_choice=True, caches_prompts=True),
    ),
    "Ollama, the model loaded": (
        {
            "/v1/models": {
                "data": [{"id": "m", "owned_by": "library"}, {"id": "n:7b", "owned_by": "library"}]
            },
            "/api/show": {
                "model_info": {"llama.context_length": 131072},
                "capabilities": ["vision", "tools"],
            },
            "/api/ps": {"models": [{"name": "n:7b"}, {"name": "m:latest", "context_length": 32768}]},
        },
        ModelInfo(context=32768, sees=True, ignores_choice=True, caches_prompts=True),
    ),
    "Ollama, a context in the model's file": (
        {
            "/v1/models": OLLAMA,
            "/api/show": {"parameters": 'stop "x"\nnum_ctx                        8192\n', "model_info": {}},
        },
        ModelInfo(context=8192),
    ),
    "Ollama, nothing said": (
        {
            "/v1/models": OLLAMA,
            "/api/show": {"parameters": "num_ctx many", "model_info": {"llama.context_length": 131072}},
            "/api/ps": {"models": []},
        },
        ModelInfo(context=4096),
    ),
    "Ollama, a model that reads less than that": (
        {
            "/v1/models": OLLAMA,
            "/api/show": {"model_info": {"bert.context_length": 512}, "capabilities": ["completion"]},
        },
        ModelInfo(context=512, sees=False),
    ),
    "OpenAI": (
        {"/v1/models": {"data": [{"id": "m", "owned_by": "system"}, {"id": "n", "owned_by": "openai"}]}},
        ModelInfo(),
    ),
    "one that says nonsense": (
        {"/v1/models": {"data": [{"id": "m", "max_model_len": "long", "meta": 3, "architecture": []}, 7]}},
        ModelInfo(),
    ),
    "one that says nothing": ({}, ModelInfo()),
}


@asynccontextmanager
async def model_infos(answers: dict[str, JSON]):
    async with connected(answers) as (upstream, _, asked):
        yield ModelInfos(upstream), asked


@asynccontextmanager
async def connected(answers: dict[str, JSON], **more: Any):
    asked: list[tuple[str, dict[bytes, bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append((scope["path"], dict(scope["headers"])))
        known = scope["path"] in answers
        await send({"type": "http.response.start", "status": 200 if known else 404, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(answers.get(scope["path"], {}))})

    with running(app, lifespan="off") as url:
        settings = load_settings({}, None, openai_base_url=f"{url}/v1", **more)
        async with Upstream.connect(settings.upstream) as upstream:
            yield upstream, settings, asked


@pytest.mark.parametrize("server", SERVERS)
async def test_what_servers_tell_of_a_model(server: str):
    answers, expected = SERVERS[server]
    async with model_infos(answers) as (infos, _):
        assert await infos.get("m", []) == expected


async def test_the_server_is_asked_once_and_with_the_clients_credential():
    async with model_infos(SERVERS["llama.cpp"][0]) as (infos, asked):
        for _ in range(3):
            await infos.get("m", [(b"authorization", b"Bearer k"), (b"content-type", b"application/json")])
    assert [path for path, _ in asked] == ["/v1/models"]
    assert asked[0][1][b"authorization"] == b"Bearer k"
    assert b"content-type" not in asked[0][1]


async def test_a_server_that_is_down_tells_nothing():
    settings = load_settings({}, None, openai_base_url="http://127.0.0.1:9/v1")
    async with Upstream.connect(settings.upstream) as upstream:
        assert await ModelInfos(upstream).get("m", []) == ModelInfo()


async def test_the_list_that_told_which_server_it_is_also_tells_of_its_models():
    async with connected(SERVERS["llama.cpp"][0], openai_api_key="ours") as (upstream, settings, asked):
        backend = ModelTarget(settings.upstream, upstream)
        assert await backend.learn()
        assert (await backend.infos.get("m", [])).context == 4096
    assert [path for path, _ in asked] == ["/v1/models"]
    assert asked[0][1][b"authorization"] == b"Bearer ours"


async def test_a_list_that_a_client_had_to_be_asked_for_tells_which_server_it_is():
    async with connected(SERVERS["llama.cpp"][0]) as (upstream, settings, _):
        backend = ModelTarget(settings.upstream, upstream)
        assert backend.schema_target == "openai"
        await backend.infos.get("m", [])
        assert backend.schema_target == "llama.cpp"


async def test_a_model_that_is_not_in_the_list_is_asked_for_again():
    async with model_infos(SERVERS["LM Studio"][0]) as (infos, asked):
        await infos.get("m", [])
        await infos.get("loaded later", [])
        await infos.get("loaded later", [])
    assert [path for path, _ in asked].count("/v1/models") == 2
