"""What the model is told when its arguments do not fit the tool."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as when
from hypothesis import settings
from hypothesis import strategies as st

from toolway.schema.arguments import validation_error, without_unset_nulls
from toolway.types import Tool


def tool(**parameters: Any) -> Tool:
    return Tool(name="book", server="s", description="", parameters={"type": "object", **parameters})


BOOK = tool(
    properties={
        "city": {"type": "string", "minLength": 1},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "class": {"enum": ["first", "second"]},
        "when": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Range"}]},
        "note": {"type": ["string", "null"]},
    },
    required=["city"],
    additionalProperties=False,
    **{
        "$defs": {
            "Range": {"type": "object", "required": ["from"], "properties": {"from": {"type": "string"}}}
        }
    },
)


def test_arguments_that_fit_are_no_mismatch() -> None:
    assert (
        validation_error(BOOK, {"city": "Paris", "days": 3, "class": "first", "when": {"from": "x"}}) is None
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "- `city` is required and missing"),
        ({"city": 3}, '- `city`: the value is not of type "string"; it was 3'),
        ({"city": "x", "days": 15}, "- `days`: the value is greater than the maximum of 14; it was 15"),
        ({"city": "x", "class": "third"}, '- `class`: the value is not one of "first" or "second"; it was "third"'),
        ({"city": "x", "when": {"from": 3}}, '- `when.from`: the value is not of type "string"; it was 3'),
        ({"city": "x", "when": {}}, "- `when.from` is required and missing"),
        ({"city": "x", "town": 1}, "- unknown `town`; the arguments are `city`, `days`, `class`, `when`, `note`"),
        ({"city": "x", "when": 3}, "- `when`: the value is not valid under any of the schemas listed in the 'anyOf' "
                                   "keyword; it was 3"),
    ],
)  # fmt: skip
def test_a_mismatch_says_what_is_wrong_and_where(arguments: dict[str, Any], line: str) -> None:
    assert validation_error(BOOK, arguments) == f"The arguments do not fit the tool book:\n{line}"


def test_all_faults_are_told_at_once_but_not_without_end() -> None:
    many = tool(required=[f"a{i}" for i in range(100)])
    assert (validation_error(many, {}) or "").count("\n") == 5


def test_a_huge_value_is_not_repeated() -> None:
    assert len(validation_error(BOOK, {"city": ["x" * 100_000]}) or "") < 300


@pytest.mark.parametrize("value", ["\ud800", 10**400, float("nan")])
def test_a_value_that_cannot_be_checked_is_a_mismatch_or_fits(value: Any) -> None:
    assert isinstance(validation_error(BOOK, {"city": "x", "days": value}), str)


def test_arguments_nested_too_deep_are_a_mismatch() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert "cannot be checked" in (validation_error(tool(properties={"a": {"enum": [1]}}), {"a": deep}) or "")


@pytest.mark.parametrize(
    "broken",
    [
        {"properties": {"a": {"type": "strange"}}},
        {"properties": {"a": {"$ref": "http://127.0.0.1:1/schema.json"}}},
        {"properties": {"a": {"$ref": "file:///etc/hostname"}}},
        {"properties": {"a": {"$ref": "#/$defs/Nowhere"}}},
        {"properties": {"a": {"pattern": "(?<"}}},
        {"properties": []},
        {"$schema": "http://127.0.0.1:1/unknown", "properties": {}},
    ],
)
def test_with_a_schema_that_does_not_compile_only_the_required_names_are_checked(broken: Any) -> None:
    lenient = tool(**broken, required=["b"])
    assert validation_error(lenient, {"a": 1, "b": 2}) is None
    assert "`b` is required" in (validation_error(lenient, {"a": 1}) or "")


def test_formats_are_not_asserted() -> None:
    assert (
        validation_error(tool(properties={"a": {"type": "string", "format": "date-time"}}), {"a": "tomorrow"})
        is None
    )


def test_a_pattern_that_explodes_ends() -> None:
    slow = tool(properties={"a": {"type": "string", "pattern": "^(a|a)*(?=b)$"}})
    assert validation_error(slow, {"a": "a" * 5000}) is not None


def test_a_null_for_an_optional_argument_that_takes_none_means_not_given() -> None:
    assert without_unset_nulls(
        BOOK, {"city": None, "days": None, "class": None, "when": None, "note": None, "x": None}
    ) == {
        "city": None,  # required: the model has to hear of it
        "note": None,  # null says something here
        "x": None,
    }


def test_arguments_without_nulls_are_handed_on_as_they_are() -> None:
    arguments = {"city": "x"}
    assert without_unset_nulls(BOOK, arguments) is arguments


@settings(max_examples=200, deadline=None)
@when(arguments=st.dictionaries(st.sampled_from([*BOOK.parameters["properties"], "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)))  # fmt: skip
def test_no_arguments_raise(arguments: dict[str, Any]) -> None:
    validation_error(BOOK, without_unset_nulls(BOOK, arguments))
