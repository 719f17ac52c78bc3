"""Whatever a model writes and whatever a source raises or returns, a call ends in a result that can be sent."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import VALUES
from toolway.tools.invoke import invoke
from toolway.types import JSON, OnProgress, Progress, Tool, ToolCall, ToolResult
from toolway.wire.lenient_json import dumps

ANYTHING = Tool(name="t", server="s", description="", parameters={"type": "object"})
CHECKED = Tool(
    name="t",
    server="s",
    description="",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}}},
)


async def result_of(arguments: str, tool: Tool = ANYTHING, run: Any = None) -> ToolResult:
    async def echo(tool: Tool, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        return ToolResult(text=json.dumps(arguments))

    call = ToolCall(id="1", name="t", arguments=arguments)
    return await invoke(call, tool, run or echo, tool_timeout=10)


@pytest.mark.parametrize("levels", [200, 900, 3000, 100_000])
async def test_arguments_that_are_nested_too_deeply_are_an_error_that_the_model_reads(levels: int):
    result = await result_of('{"city":' + "[" * levels + "]" * levels + "}")
    assert result.is_error
    assert "the arguments of t cannot be used: it is nested" in result.text


async def test_a_number_of_thousands_of_digits_is_an_error_that_the_model_reads():
    result = await result_of('{"a":' + "9" * 5000 + "}")
    assert result.is_error
    assert "a number of 5,000 digits" in result.text
    assert len(result.text) < 300


async def test_an_integer_beyond_64_bits_reaches_the_tool_as_it_was_written():
    for tool in (ANYTHING, CHECKED):
        assert (await result_of('{"a":123456789012345678901234567890}', tool)).text == (
            '{"a": 123456789012345678901234567890}'
        )


async def test_what_a_source_raises_is_a_result_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture):
    async def fail(*_: Any) -> ToolResult:
        raise RuntimeError("no promise was kept")

    result = await result_of("{}", run=fail)
    assert result.is_error
    assert "t failed inside Toolway (RuntimeError)" in result.text
    assert "no promise was kept" in caplog.text


async def test_halves_of_characters_in_a_result_become_one_that_can_be_sent():
    async def answer(*_: Any) -> ToolResult:
        return ToolResult(text="a\ud83cb")

    assert (await result_of("{}", run=answer)).text == "a\ufffdb"


async def test_links_into_a_librarys_documentation_are_left_out_of_errors():
    said = (
        "1 validation error for call[add]\nb\n  Missing required argument [type=missing_argument]\n"
        "    For further information visit https://errors.pydantic.dev/2.12/v/missing_argument"
    )

    async def answer(*_: Any) -> ToolResult:
        return ToolResult(text=said, is_error=True)

    assert (await result_of("{}", run=answer)).text == said.rpartition("\n")[0]


async def test_halves_of_characters_in_a_report_of_progress_are_mended():
    reports: list[Progress] = []

    async def report(tool: Tool, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        assert on_progress
        on_progress(Progress(progress=1, message="a\ud83cb"))
        return ToolResult(text="done")

    await invoke(
        ToolCall(id="1", name="t", arguments="{}"),
        ANYTHING,
        report,
        tool_timeout=10,
        on_progress=reports.append,
    )
    assert [report.message for report in reports] == ["a\ufffdb"]


KEYWORDS = "type properties items anyOf enum required $ref maximum additionalProperties".split()
SCHEMAS = st.dictionaries(
    st.sampled_from(KEYWORDS), VALUES | st.sampled_from(["object", "string", "#", "#/properties/a"])
)


async def assert_result(arguments: Any, schema: JSON, text: str) -> None:
    """A call with these arguments of a tool with this schema, which answers this text, has a result."""

    async def answer(*_: Any) -> ToolResult:
        return ToolResult(text=f"{text}\ud800")

    tool = Tool(name="t", server="s", description="", parameters=schema)
    for written in (dumps({"a": arguments}).decode(), dumps(arguments).decode(), text):
        result = await result_of(written, tool, answer)
        assert orjson.dumps(result.text)
        assert "failed inside" not in result.text


@given(arguments=VALUES, schema=SCHEMAS, text=st.text())
async def test_hostile_arguments_schemas_and_results_end_in_a_result(arguments: Any, schema: JSON, text: str):
    await assert_result(arguments, schema, text)
