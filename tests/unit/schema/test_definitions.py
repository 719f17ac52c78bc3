"""Definitions of tools: serialised once for each target, within what the model server can bear."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.unit.engine.scripted_model import InMemorySource, echo
from toolway.conversation.message import ChatRequest
from toolway.engine.request_tools import RequestTools
from toolway.schema.compile import define
from toolway.tools.catalog import Snapshot
from toolway.types import Tool


def tool(name: str, parameters: Any, description: str = "d") -> Tool:
    return Tool(name=name, server="s", description=description, parameters=parameters)


def many(count: int) -> dict[str, Tool]:
    part = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "description": "x" * 300} for n in range(9)},
    }
    parameters = {"type": "object", "properties": {"a": part, "b": part}}
    return {f"tool_{n:03}": tool(f"tool_{n:03}", parameters) for n in range(count)}


def test_all_definitions_together_stay_below_the_ceiling_of_llama_cpp():
    tools = many(150)
    assert len(orjson.dumps(define(tools, "openai").all)) > 500_000
    fitted = define(tools, "llama.cpp")
    assert len(orjson.dumps(fitted.all)) <= 96_000
    assert list(fitted.fragments) == list(tools)


def test_a_tool_without_a_usable_schema_is_left_out_and_costs_the_others_nothing():
    broken = tool("broken", {"type": "object", "properties": {"\ud800": {}}})
    defined = define({"broken": broken, "fine": tool("fine", {})}, "openai")
    assert list(defined.fragments) == ["fine"]
    assert list(defined.left_out) == ["broken"]


@pytest.mark.parametrize(
    ("target", "function"),
    [
        ("openai", {"name": "t", "description": "d", "parameters": {"type": "object", "properties": {}}}),
        ("gemini", {"name": "t", "description": "d"}),
        (
            "strict",
            {
                "name": "t",
                "description": "d",
                "parameters": {
                    "type": "object",
                    "properties": {},
                    "required": [],
                    "additionalProperties": False,
                },
                "strict": True,
            },
        ),
    ],
)
def test_a_tool_without_arguments(target: Any, function: Any):
    defined = orjson.loads(orjson.dumps(define({"t": tool("t", {})}, target).all))
    assert defined == [{"type": "function", "function": function}]


def test_two_hundred_tools_are_serialised_once_not_once_a_request():
    snapshot = Snapshot((InMemorySource(**{f"tool_{n}": echo for n in range(200)}),))
    request = ChatRequest(options={}, messages=[])
    first = RequestTools(request, snapshot.for_target("llama.cpp")).put_into(request)
    assert RequestTools(request, snapshot.for_target("llama.cpp")).put_into(request).tools is first.tools
    assert (
        RequestTools(request, snapshot.for_target("openai")).put_into(request).tools
        is snapshot.all_definitions
    )
