"""Schemas that break llama.cpp as they are: compiled they are taken, and raw ones are found and left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest

from tests.support.app_server import serving
from tests.support.model import ModelServer, needs_model
from tests.support.servers import running
from tests.support.tools import CITY, ToolService, document
from toolway.schema.compile import compile_schema
from toolway.settings.load import load_settings

pytestmark = needs_model

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "name": {"type": "string"}}}
NASTY: dict[str, Any] = {
    "an unanchored pattern": {"type": "string", "pattern": "\\S"},
    "a lookahead": {"type": "string", "pattern": "^(?!con$)[a-z]+$"},
    "shorthand classes": {"type": "string", "pattern": r"^\w+@\w+\.\d{2}$"},
    "a long repetition": {"type": "string", "pattern": "^[a-z]{1,5000}$"},
    "a large least length": {"type": "string", "minLength": 5000},
    "a large least count": {"type": "array", "items": {"type": "string"}, "minItems": 5000},
    "bounds that exclude each other": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 5,
        "maxItems": 2,
    },
    "nested bounds": {
        "type": "array",
        "maxItems": 500,
        "items": {"type": "array", "maxItems": 500, "items": {}},
    },
    "a recursive reference": {"$ref": "#/$defs/Node"},
    "a reference that leads nowhere": {"$ref": "#/$defs/Nothing"},
    "a boolean schema": True,
    "items that are a boolean": {"type": "array", "items": True},
    "no type": {},
    "several types": {"type": ["string", "integer", "null"]},
    "an unknown type": {"type": "any"},
    "an empty enum": {"type": "string", "enum": []},
    "a mixed enum": {"enum": ["a", 1, None]},
    "no alternatives": {"anyOf": []},
    "one of": {"oneOf": [{"type": "string"}, {"type": "object"}]},
    "everything but": {"not": {"type": "string"}},
    "huge bounds": {"type": "integer", "minimum": -(2**63), "maximum": 10**20},
}
BAD = {"type": "object", "properties": {"text": {"type": "string", "minLength": 5000}}}


@pytest.mark.parametrize("name", NASTY)
def test_a_compiled_schema_is_taken(model_server: ModelServer, name: str):
    schema = {"type": "object", "properties": {"x": NASTY[name]}, "required": ["x"], "$defs": {"Node": NODE}}
    function = {"name": "tool", "description": "d", "parameters": compile_schema(schema, "llama.cpp")}
    body = {
        "model": model_server.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "max_tokens": 2,
    }
    answer = httpx2.post(f"{model_server.base_url}/chat/completions", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text


@contextmanager
def toolway(model_server: ModelServer, operations: dict[str, Any], **settings: Any) -> Iterator[str]:
    tools = ToolService()
    tools.document = document(operations)
    with running(tools, lifespan="off") as endpoint:
        given = {
            "openai_base_url": model_server.base_url,
            "endpoints": endpoint,
            "debug_output": False,
            **settings,
        }
        with serving(load_settings(env={}, dotenv=None, **given)) as url:
            yield url


def ask(url: str, model: str) -> Any:
    direct = openai.DefaultHttpxClient(trust_env=False)
    question: Any = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0, http_client=direct
    ) as client:
        return client.chat.completions.create(model=model, messages=question, max_tokens=4, temperature=0)


def refused(url: str) -> list[str]:
    return list(httpx2.get(f"{url}/readyz", trust_env=False).json().get("refused_by_upstream", ()))


def test_a_refused_tool_is_found_in_front_of_the_real_server(model_server: ModelServer):
    operations = {"get_weather": CITY, "get_time": CITY, "bad": BAD}
    with toolway(model_server, operations, schema_profile="openai") as url:
        assert ask(url, model_server.model).choices
        assert refused(url) == ["bad"]


def test_the_profile_is_found_from_the_real_server(model_server: ModelServer):
    with toolway(model_server, {"bad": BAD}) as url:
        assert ask(url, model_server.model).choices
        assert refused(url) == []
