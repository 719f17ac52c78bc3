"""Schemas of OpenAPI documents become JSON Schema 2020-12 that compiles, whatever is in them."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolway.tools.openapi.schemas import Schemas


def convert(schema: Any, version: str = "3.1.0", **components: Any) -> dict[str, Any]:
    schemas = Schemas({"openapi": version, "components": {"schemas": components}})
    return schemas.bundle(schemas.convert(schema))


REF = {"$ref": "#/components/schemas/Pet"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": True, "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"type": "string", "x-nullable": True}, {"type": ["string", "null"]}),
        ({"nullable": True, "allOf": [{"minLength": 1}]}, {"anyOf": [{"allOf": [{"minLength": 1}]}, {"type": "null"}]}),
        ({"minimum": 3, "exclusiveMinimum": True}, {"exclusiveMinimum": 3}),
        ({"maximum": 3, "exclusiveMaximum": False}, {"maximum": 3}),
        ({"exclusiveMaximum": 3}, {"exclusiveMaximum": 3}),
        ({"type": "file"}, {"type": "string", "format": "binary"}),
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"type": "array", "items": [{"minimum": 1}]}, {"type": "array", "prefixItems": [{"minimum": 1}], "items": {}}),
        ({"type": ["string", "null"]}, {"type": ["string", "null"]}),
        ({"type": "String"}, {"type": "string"}),
        ({"type": "any"}, {}),
        ({"description": "", "title": " "}, {}),
        ({"type": ["string", 7]}, {}),
        ({"type": "int", "minimum": "3"}, {"type": "integer", "minimum": 3}),
        ({"minLength": 1.0, "maxLength": -1, "multipleOf": 0}, {"minLength": 1}),
        ({"maximum": float("inf"), "minimum": True}, {}),
        ({"enum": [], "required": True, "pattern": "("}, {}),
        ({"pattern": "^(?!x)"}, {"pattern": "^(?!x)"}),
        ({"patternProperties": {"(": {}, "^a": True}}, {"patternProperties": {"^a": {}}}),
        ({"discriminator": {}, "xml": {}, "example": 1, "externalDocs": {}, "x-y": 1, "writeOnly": True}, {}),
        ({"properties": {"a": False, "b": True, "c": 3}}, {"properties": {"a": {"not": {}}, "b": {}, "c": {}}}),
        ({"additionalProperties": False}, {"additionalProperties": False}),
        ({"additionalProperties": {"type": "string"}}, {"additionalProperties": {"type": "string"}}),
        ({"anyOf": [{"type": "string"}], "oneOf": [], "not": 3}, {"anyOf": [{"type": "string"}]}),
        ({"default": 3, "const": "x", "title": "T"}, {"default": 3, "const": "x", "title": "T"}),
        ({"properties": {"time_zone": {"title": "Time Zone"}}}, {"properties": {"time_zone": {}}}),
        ({"properties": {"$ref": {"type": "string"}}}, {"properties": {"$ref": {"type": "string"}}}),
        ("nonsense", {}),
    ],
)  # fmt: skip
def test_a_keyword_is_kept_translated_repaired_or_dropped(schema: Any, expected: dict[str, Any]) -> None:
    converted = convert(schema)
    assert converted == expected
    assert jsonschema_rs.meta.is_valid(converted)


def test_a_reference_is_bundled_and_never_inlined() -> None:
    assert convert({"items": REF}, Pet={"type": "object"}) == {
        "items": {"$ref": "#/$defs/Pet"},
        "$defs": {"Pet": {"type": "object"}},
    }


def test_only_what_a_schema_leads_to_is_bundled() -> None:
    bundled = convert(
        REF, Pet={"properties": {"owner": {"$ref": "#/components/schemas/Owner"}}}, Owner={}, Other={}
    )
    assert sorted(bundled["$defs"]) == ["Owner", "Pet"]


def test_a_recursive_schema_refers_to_itself() -> None:
    bundled = convert(REF, Pet={"properties": {"child": REF}})
    assert bundled["$defs"]["Pet"]["properties"]["child"] == {"$ref": "#/$defs/Pet"}


@pytest.mark.parametrize("name", ["$recursiveRef", "$dynamicRef"])
def test_a_reference_to_the_schema_itself_by_draft_2019_means_the_component(name: str) -> None:
    bundled = convert(REF, Pet={"$recursiveAnchor": True, "properties": {"child": {name: "#"}}})
    assert bundled["$defs"]["Pet"]["properties"]["child"] == {"$ref": "#/$defs/Pet"}


@pytest.mark.parametrize(
    "ref",
    ["#/paths/~1pets~1{id}/get/x/0", "#/paths/~1pets~1%7Bid%7D/get/x/0", "#/paths/%7E1pets%7E1{id}/get/x/0"],
)
def test_a_reference_may_lead_anywhere_in_the_document(ref: str) -> None:
    schemas = Schemas({"openapi": "3.0.0", "paths": {"/pets/{id}": {"get": {"x": [{"type": "string"}]}}}})
    assert schemas.bundle(schemas.convert({"$ref": ref}))["$defs"] == {"0": {"type": "string"}}


def test_definitions_pasted_into_a_component_are_found_there() -> None:
    pet = {"properties": {"tag": {"$ref": "#/$defs/Tag"}}, "$defs": {"Tag": {"type": "string"}}}
    assert convert(REF, Pet=pet)["$defs"]["Tag"] == {"type": "string"}


@pytest.mark.parametrize(
    "ref", ["other.yaml#/Pet", "http://127.0.0.1:1/x", "file:///etc/passwd", "#/nowhere", "#anchor", 7]
)
def test_a_reference_out_of_the_document_or_to_nowhere_accepts_anything(ref: Any) -> None:
    assert convert({"properties": {"a": {"$ref": ref}}}) == {"properties": {"a": {}}}


def test_what_two_places_call_alike_keeps_two_definitions() -> None:
    document = {"openapi": "3.1.0", "a": {"Pet": {"type": "string"}}, "b": {"Pet": {"type": "integer"}}}
    schemas = Schemas(document)
    bundled = schemas.bundle(schemas.convert({"anyOf": [{"$ref": "#/a/Pet"}, {"$ref": "#/b/Pet"}]}))
    assert bundled["$defs"] == {"Pet": {"type": "string"}, "Pet_2": {"type": "integer"}}


def test_words_beside_a_reference_are_kept_and_in_3_0_rules_are_not() -> None:
    beside = {**REF, "description": "d", "minLength": 3}
    assert convert(beside, Pet={})["minLength"] == 3
    assert convert(beside, "3.0.3", Pet={}) == {
        "$ref": "#/$defs/Pet",
        "description": "d",
        "$defs": {"Pet": {}},
    }


def test_what_only_the_server_sets_is_no_input() -> None:
    pet = {
        "required": ["id", "name", "kind"],
        "properties": {"id": {"readOnly": True}, "name": {}, "kind": {"$ref": "#/components/schemas/Kind"}},
    }
    bundled = convert(REF, Pet=pet, Kind={"type": "string", "readOnly": True})
    assert bundled["$defs"]["Pet"] == {"required": ["name"], "properties": {"name": {}}}


def test_what_only_the_server_sets_is_not_required_in_another_part_of_an_all_of() -> None:
    base = {"properties": {"id": {"readOnly": True}}}
    schema = {"allOf": [{"$ref": "#/components/schemas/Base"}, {"required": ["id", "a"]}], "required": ["id"]}
    assert convert(schema, Base=base)["allOf"][1] == {"required": ["a"]}
    assert "required" not in convert(schema, Base=base)


@pytest.mark.parametrize(
    "pet", [REF, {"allOf": [REF, REF, REF]}, {"anyOf": [REF, {"type": "null"}]}, {"not": REF}]
)
def test_a_schema_that_is_nothing_but_itself_ends(pet: Any) -> None:
    bundled = convert({"properties": {"a": REF}}, Pet=pet)
    jsonschema_rs.Draft202012Validator(bundled, offline=True).is_valid({"a": 1})


def test_a_schema_nested_too_deep_is_cut() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {"items": schema}
    jsonschema_rs.Draft202012Validator(convert(schema), offline=True)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = st.sampled_from([
    "type", "$ref", "properties", "required", "items", "enum", "allOf", "anyOf", "nullable", "pattern", "default",
    "minimum", "exclusiveMinimum", "maxLength", "additionalProperties", "readOnly", "const", "patternProperties",
    "$dynamicRef", "prefixItems", "dependentRequired", "if", "not", "format", "multipleOf", "x-nullable",
])  # fmt: skip
PLACES = st.sampled_from(
    ["string", "array", "#/components/schemas/Pet", "#", "#/components/schemas/Pet/items"]
)
ODD = st.recursive(
    JSON_VALUES | PLACES,
    lambda inner: st.dictionaries(KEYWORDS, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(schema=ODD, pet=ODD, version=st.sampled_from(["3.0.1", "3.1.0"]))
def test_whatever_stands_in_a_schema_it_compiles_afterwards(schema: Any, pet: Any, version: str) -> None:
    converted = convert({"properties": {"a": schema}}, version, Pet=pet)
    jsonschema_rs.Draft202012Validator(converted, offline=True)
