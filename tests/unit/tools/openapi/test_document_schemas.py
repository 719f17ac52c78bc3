"""Tools' schemas as parts of our own OpenAPI document: sound whatever a server wrote, and with references that hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from openapi_spec_validator import validate

from tests.support.fuzz import slow
from tests.support.schemas import whole_schemas
from toolway.api.rest.document import openapi_document
from toolway.tools.openapi.document_schemas import document_schema
from toolway.types import JSON, Tool
from toolway.wire.lenient_json import harmless, loads

AT = "#/components/schemas/t"


def document(schema: JSON) -> JSON:
    tool = Tool(name="t", server="s", description="", parameters=schema, extra={"outputSchema": schema})
    text = openapi_document({"t": tool}, profile="", root="", paths="/tools", has_keys=True, toolway="t")
    read: JSON = loads(text)
    return read


def test_references_lead_to_the_place_where_the_schema_stands():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "x": {"$ref": "#/$defs/x"}}}
    moved = document_schema({**node, "$defs": {"x": {"type": "string"}}}, AT)
    assert moved["properties"] == {"next": {"$ref": AT}, "x": {"$ref": f"{AT}/$defs/x"}}
    validate(document({**node, "$defs": {"x": {"type": "string"}}}))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
            {"type": "object"},
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer", "minimum": 1, "exclusiveMinimum": True}},
            },
            {"type": "object", "properties": {"a": {"type": "integer", "exclusiveMinimum": 1}}},
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}},
            {"type": "object", "properties": {"a": {}}},
        ),
        (
            {"type": "object", "properties": {"a": {"type": "any"}}, "required": None},
            {"type": "object", "properties": {"a": {}}},
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}},
            {"type": "object", "properties": {"a": {}}},
        ),
    ],
)
def test_what_is_broken_or_old_is_repaired(schema: JSON, expected: JSON):
    assert document_schema(schema, AT) == expected
    validate(document(schema))


@slow
@given(whole_schemas())
def test_the_document_is_valid_whatever_a_schema_holds(schema: Any):
    whole = harmless(schema if isinstance(schema, dict) else {"properties": {"a": schema}})
    validate(document({**whole, "type": "object"}))
