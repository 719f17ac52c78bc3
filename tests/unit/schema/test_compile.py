"""Schemas as each kind of model server takes them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given

from tests.support.schemas import assert_compiled, whole_schemas
from toolway.schema.compile import MAX_BYTES, TERSEST, CannotCompile, compile_schema, why_too_many
from toolway.schema.targets import RULES, SchemaTarget, portable_pattern
from toolway.wire.lenient_json import dumps

every = pytest.mark.parametrize("target", RULES)


def one(schema: Any, target: SchemaTarget = "openai", **root: Any) -> Any:
    """What becomes of the property `x`, which is required."""
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"], **root}
    compiled = compile_schema(whole, target)
    assert_compiled(compiled, target)
    return compiled["properties"]["x"]


@every
@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "string"}, {"properties": None}])
def test_the_root_is_an_object_with_properties(schema: Any, target: SchemaTarget):
    compiled = compile_schema(schema, target)
    assert compiled["type"] == "object"
    assert compiled["properties"] == {}


@every
def test_a_reference_is_put_in_its_place(target: SchemaTarget):
    city = {"type": "string", "description": "A city."}
    assert one({"$ref": "#/$defs/City"}, target, **{"$defs": {"City": city}}) == city


@every
def test_a_schema_within_itself_is_cut(target: SchemaTarget):
    node = {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}}}
    compiled = one({"$ref": "#/$defs/Node"}, target, **{"$defs": {"Node": node}})
    assert "name" in compiled["properties"]
    assert b"$ref" not in dumps(compiled)


@every
@pytest.mark.parametrize(
    "ref", ["#/$defs/Nowhere", "https://example.com/schema.json", "#/$defs/Loop", "#/%zz"]
)
def test_a_reference_that_leads_nowhere_takes_what_it_can(ref: str, target: SchemaTarget):
    one({"$ref": ref}, target, **{"$defs": {"Loop": {"$ref": "#/$defs/Loop"}}})


def test_what_stands_beside_a_reference_counts():
    compiled = one({"$ref": "#/$defs/A", "description": "mine"}, **{"$defs": {"A": {"type": "string"}}})
    assert compiled == {"type": "string", "description": "mine"}


@every
def test_definitions_that_multiply_are_bounded(target: SchemaTarget):
    defs = {f"L{n}": {"type": "object", "properties": {f"p{k}": {"$ref": f"#/$defs/L{n + 1}"} for k in range(9)}}
            for n in range(9)}  # fmt: skip
    compiled = compile_schema({"$ref": "#/$defs/L0", "$defs": {**defs, "L9": {"type": "string"}}}, target)
    assert len(dumps(compiled)) <= MAX_BYTES
    assert "p0" in compiled["properties"]


@every
def test_the_same_schema_gives_the_same_bytes(target: SchemaTarget):
    schema = {"type": "object", "properties": {"b": {"enum": ["z", "a"]}, "a": {"type": ["string", "null"]}}}
    assert orjson.dumps(compile_schema(schema, target)) == orjson.dumps(compile_schema(schema, target))


@every
def test_what_no_shortening_makes_small_enough_cannot_be_compiled(target: SchemaTarget):
    huge = {"type": "object", "properties": {f"property_{n:05}": {"type": "string"} for n in range(3000)}}
    with pytest.raises(CannotCompile, match="bytes"):
        compile_schema(huge, target, terse=TERSEST)


@every
def test_text_that_no_json_can_hold_cannot_be_compiled(target: SchemaTarget):
    with pytest.raises(CannotCompile):
        compile_schema({"type": "object", "properties": {"\ud800": {}}}, target)


def test_alternatives_at_the_root_become_one_object():
    schema = {
        "anyOf": [
            {"properties": {"a": {"type": "string"}}},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    }
    assert compile_schema(schema, "openai") == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    }


@pytest.mark.parametrize(
    ("schema", "target", "compiled"),
    [
        ({"$schema": "x", "$id": "y", "type": "string", "x-odd": 1}, "openai", {"type": "string"}),
        ({"type": "array"}, "openai", {"type": "array", "items": {}}),
        ({"type": "array"}, "gemini", {"type": "array", "items": {"type": "string"}}),
        (
            {"allOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}], "description": "d"},
            "llama.cpp",
            {"description": "d", "type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
        ),
        ({"oneOf": [{"type": "string"}]}, "llama.cpp", {"type": "string"}),
        (
            {"type": ["string", "integer"]},
            "llama.cpp",
            {"type": "string", "anyOf": [{"type": "string"}, {"type": "integer"}]},
        ),
        (
            {"type": ["string", "null"]},
            "llama.cpp",
            {"type": "string", "anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
        ({"type": ["string", "null"]}, "openai", {"type": ["string", "null"]}),
        ({"type": ["string", "null"]}, "gemini", {"type": "string", "nullable": True}),
        ({"type": "string", "maxLength": 100_000, "minLength": 1}, "llama.cpp", {"type": "string", "minLength": 1}),
        ({"type": "string", "minLength": 9, "maxLength": 1}, "llama.cpp", {"type": "string"}),
        ({"type": "string", "pattern": "^(?!a).*$"}, "llama.cpp", {"type": "string"}),
        ({"type": "string", "pattern": r"^\d{4}$"}, "llama.cpp", {"type": "string", "pattern": "^[0-9]{4}$"}),
        (
            {"type": "object"},
            "llama.cpp",
            {"type": "object", "properties": {}, "additionalProperties": True},
        ),
        ({"type": "object"}, "gemini", {"type": "string", "description": "(a JSON object, written as a string)"}),
        ({"enum": [1, 2]}, "gemini", {"type": "integer"}),
        ({"enum": ["a", "b", ""]}, "gemini", {"type": "string", "enum": ["a", "b"]}),
        ({"const": "a"}, "gemini", {"type": "string", "enum": ["a"]}),
        ({"const": "a"}, "llama.cpp", {"type": "string", "const": "a"}),
        ({"type": "string", "enum": []}, "openai", {"type": "string"}),
        ({"type": "integer", "maximum": 10**20}, "llama.cpp", {"type": "integer"}),
        ({"type": "integer", "exclusiveMinimum": 0}, "gemini", {"type": "integer"}),
        (
            {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d"},
            "gemini",
            {"description": "d", "type": "string", "nullable": True},
        ),
        (True, "openai", {}),
        ({}, "strict", {"type": ["string", "number", "boolean", "null"]}),
    ],
)  # fmt: skip
def test_a_schema_is_said_in_the_words_of_the_server(schema: Any, target: SchemaTarget, compiled: Any):
    assert one(schema, target) == compiled


def test_strict_tools_require_everything_and_allow_null_for_what_is_optional():
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"], "description": "d"}},
        "required": ["city"],
    }
    assert compile_schema(schema, "strict") == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"description": "d", "type": ["string", "null"], "enum": ["C", "F", None]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    }


def test_a_terser_schema_keeps_names_and_types():
    schema = {
        "type": "object",
        "description": "All of it.",
        "properties": {
            "a": {"type": "object", "properties": {"b": {"type": "string", "description": "x" * 500}}},
            "c": {"type": "string", "description": "y" * 500, "default": "z"},
        },
    }
    sizes = [len(orjson.dumps(compile_schema(schema, "llama.cpp", terse=terse))) for terse in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert compile_schema(schema, "llama.cpp", terse=TERSEST)["properties"]["c"] == {"type": "string"}


@pytest.mark.parametrize(
    ("pattern", "portable"),
    [
        (r"^\w+@\w+\.com$", r"^[A-Za-z0-9_]+@[A-Za-z0-9_]+\.com$"),
        (r"^(?:a|b)+$", "^(a|b)+$"),
        (r"^[\w-]+$", "^[A-Za-z0-9_-]+$"),
        ("^[a-f0-9]{8}$", "^[a-f0-9]{8}$"),
        *((pattern, None) for pattern in (
            "", "^$", "a", "^a", r"^\s$", r"^a\b$", "^(?=a)a$", "^a+?$", "^a{1,5000}$", "^a$|^b$", "^(a|)$", "^(a$",
            r"^\p{L}$", "^a)(b$", "^*$", r"^a\$", "^[z-a]$", 3, "^" + "a" * 600 + "$",
        )),
    ],
)  # fmt: skip
def test_patterns_that_every_grammar_reads(pattern: Any, portable: str | None):
    assert portable_pattern(pattern) == portable


@every
@given(schema=whole_schemas())
def test_whatever_comes_in_a_legal_schema_comes_out(target: SchemaTarget, schema: Any):
    try:
        compiled = compile_schema(schema, target)
    except CannotCompile:
        return
    assert_compiled(compiled, target)
    assert len(dumps(compiled)) <= MAX_BYTES


def test_what_is_said_of_too_many_tools_names_the_limit_that_there_is():
    assert why_too_many(128, 1_000, 100_000) is None
    assert "models choose badly" in str(why_too_many(129, 1_000, 100_000))
    assert "takes no more than 64" in str(why_too_many(65, 1_000, 100_000, 64))
    assert "of 4,096 tokens" in str(why_too_many(3, 4_000, 4_096, 64))
