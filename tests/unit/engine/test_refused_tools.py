"""The search for tools that a model server refuses: right, and with few questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.engine.refused_tools import find_culprits, is_about_tools, most_probes, suspects
from toolway.errors import UpstreamError, UpstreamStatus, UpstreamTimeout


class Server:
    """Refuses what holds one of the bad names; counts its questions."""

    def __init__(self, bad: Sequence[str], always: bool = False) -> None:
        self.bad = set(bad)
        self.always = always
        self.asked = 0

    async def refuses(self, names: Sequence[str]) -> bool:
        self.asked += 1
        return self.always or bool(self.bad & set(names))


def names(count: int) -> list[str]:
    return [f"tool_{n}" for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 16, 200, 1000])
async def test_one_culprit_is_found_in_as_many_steps_as_halving_takes(count: int):
    for bad in {0, count // 2, count - 1}:
        server = Server([f"tool_{bad}"])
        assert await find_culprits(names(count), server.refuses) == [f"tool_{bad}"]
        assert server.asked <= math.ceil(math.log2(max(count, 2))) + 3


async def test_what_is_refused_without_our_tools_is_not_ours():
    server = Server([], always=True)
    assert await find_culprits(names(50), server.refuses) == []
    assert server.asked == 1


async def test_tools_that_are_refused_only_together_are_nobodys_fault():
    async def refuses(some: Sequence[str]) -> bool:
        return len(some) > 30

    assert await find_culprits(names(50), refuses) == []


async def test_a_suspect_is_asked_about_first():
    server = Server(["tool_77"])
    assert await find_culprits(names(100), server.refuses, ["tool_77"]) == ["tool_77"]
    assert server.asked == 3


@given(st.integers(1, 300), st.sets(st.integers(0, 299), max_size=6))
def test_whoever_is_named_is_guilty_and_the_questions_are_bounded(count: int, bad: set[int]):
    server = Server([f"tool_{n}" for n in bad if n < count])
    found = anyio.run(find_culprits, names(count), server.refuses)
    assert set(found) <= server.bad
    assert server.asked <= most_probes(count)
    assert not server.bad or found


def status(code: int, message: str) -> UpstreamStatus:
    return UpstreamStatus(code, [], orjson.dumps({"error": {"message": message}}))


@pytest.mark.parametrize(
    "message",
    [
        "Failed to initialize samplers: failed to parse grammar",
        "Unable to generate parser for this template. JSON schema conversion failed: Pattern must start with '^'",
        "Invalid schema for function 'x': object schema missing properties",
        "GenerateContentRequest.tools[0].function_declarations[3].parameters.properties[tags].items: missing field.",
        "Unknown name \"exclusiveMinimum\" at 'tools[0].function_declarations[6].parameters': Cannot find field.",
        "tools.0.custom.input_schema: JSON schema is invalid",
    ],
)
def test_a_refusal_of_a_tool_is_known_by_its_words(message: str):
    assert is_about_tools(status(400, message))
    assert is_about_tools(UpstreamError(message))
    assert not is_about_tools(status(429, message))
    assert not is_about_tools(UpstreamTimeout(message))


def test_what_the_error_names_is_suspected():
    assert suspects(status(400, "Invalid schema for function 'tool_7': no"), names(10)) == ["tool_7"]
