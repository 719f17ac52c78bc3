"""Arguments that are slightly off: what is certain is repaired, what is not is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.schemas import anything, whole_schemas
from toolway.schema.arguments import failing_schema, repair_arguments, validation_error
from toolway.types import Tool

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "size": {"type": "integer"}}}


def tool(schema: Any, **root: Any) -> Tool:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], **root}
    return Tool(name="t", server="s", description="", parameters=parameters)


@pytest.mark.parametrize(
    ("schema", "written", "meant"),
    [
        ({"type": "integer"}, "3", 3),
        ({"type": "integer"}, " -12 ", -12),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": ["integer", "null"]}, "3", 3),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "array", "items": {"type": "integer"}}, '["1", 2]', [1, 2]),
        ({"type": "array", "items": {"type": "string"}}, "a", ["a"]),
        ({"type": "array", "items": {"type": "integer"}}, "7", [7]),
        ({"type": "array", "items": {"type": "object"}}, {"a": 1}, [{"a": 1}]),
        ({"enum": ["Celsius", "Fahrenheit"]}, "celsius", "Celsius"),
        ({"const": "on"}, "ON", "on"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "3", 3),
        ({"anyOf": [{"enum": ["A", "B"]}, {"type": "array", "items": {"type": "integer"}}]}, "b", "B"),
        ({"$ref": "#/$defs/Node"}, {"next": {}, "size": "4"}, {"next": {}, "size": 4}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a"]},
         '{"a": "x", "b": null}', {"a": "x"}),
    ],
)  # fmt: skip
def test_what_is_certain_is_repaired(schema: Any, written: Any, meant: Any):
    target = tool(schema, **{"$defs": {"Node": NODE}})
    assert validation_error(target, {"x": written})
    mended = repair_arguments(target, {"x": written})
    assert mended == {"x": meant}
    assert type(mended["x"]) is type(meant)
    assert validation_error(target, mended) is None


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "string"}, 3),
        ({"type": "integer"}, "3.5"),
        ({"type": "integer"}, "three"),
        ({"type": "integer"}, "007"),
        ({"type": "boolean"}, "yes"),
        ({"type": "object"}, "{broken"),
        ({"type": "object"}, "[1]"),
        ({"enum": ["A", "a"]}, " a"),
        ({"type": "array", "items": {"type": "integer"}}, "many"),
        ({"type": "array"}, "a"),
        ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, "maybe"),
    ],
)
def test_what_is_a_guess_is_left_as_it_is(schema: Any, written: Any):
    assert repair_arguments(tool(schema), {"x": written}) == {"x": written}


def test_what_fits_is_the_same_object():
    arguments = {"x": {"a": [1, {"b": "c"}]}}
    assert repair_arguments(tool({"type": "object"}), arguments) is arguments


def test_the_model_reads_the_schema_of_what_does_not_fit():
    target = tool({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": NODE}})
    shown = failing_schema(target, {"x": 3})
    assert '"size": {"type": "integer"}' in shown
    assert "$ref" not in shown
    assert len(shown) < 1600


@given(whole_schemas(), st.dictionaries(st.sampled_from(["a", "b", "x"]), anything, max_size=3))
def test_nothing_that_comes_in_breaks_it(schema: Any, arguments: Any):
    target = Tool(name="t", server="s", description="", parameters=schema)
    assert isinstance(repair_arguments(target, arguments), dict)
    assert isinstance(failing_schema(target, arguments), str)
