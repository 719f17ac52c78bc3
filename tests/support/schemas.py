"""What every compiled schema keeps to, whatever went in; and a strategy for schemas that nobody would write."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from toolway.schema.targets import RULES, SchemaTarget

JSON = dict[str, Any]


def assert_compiled(schema: JSON, target: SchemaTarget) -> None:
    """The promises of a target, for the root and everything in it."""
    assert schema["type"] == "object"
    assert isinstance(schema["properties"], dict)
    assert "anyOf" not in schema
    _assert_node(schema, target)


def _assert_node(schema: Any, target: SchemaTarget) -> None:
    rules = RULES[target]
    assert isinstance(schema, dict), schema
    unknown = set(schema) - rules.keywords - ({"additionalProperties"} if rules.closed else set())
    assert not unknown, unknown
    types = schema.get("type")
    if not rules.type_lists:
        assert types is None or isinstance(types, str), types
    names = types if isinstance(types, list) else [types]
    if "array" in names and "anyOf" not in schema:
        assert "items" in schema
    if "object" in names and "anyOf" not in schema:
        _assert_object(schema, target)
    for low, high in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum")):
        assert schema.get(low, 0) <= schema.get(high, float("inf")) or low not in schema
    if not rules.null_is_a_type:
        assert "anyOf" not in schema or set(schema) == {"anyOf"}
        assert all(isinstance(value, str) for value in schema.get("enum", ()))
    for child in _children(schema):
        _assert_node(child, target)


def _assert_object(schema: JSON, target: SchemaTarget) -> None:
    assert isinstance(schema["properties"], dict)
    assert set(schema.get("required", ())) <= set(schema["properties"])
    if RULES[target].closed:
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])


def _children(schema: JSON) -> list[Any]:
    found = list(schema.get("properties", {}).values())
    found += schema.get("anyOf", [])
    found += [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)]
    return found


KEYWORDS = [
    "type",
    "properties",
    "required",
    "items",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "$defs",
    "definitions",
    "enum",
    "const",
    "pattern",
    "format",
    "default",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "multipleOf",
    "nullable",
    "description",
    "title",
    "additionalProperties",
    "patternProperties",
    "prefixItems",
    "if",
    "$schema",
    "x-odd",
    "uniqueItems",
    "examples",
]
WORDS = [
    "string",
    "number",
    "integer",
    "boolean",
    "array",
    "object",
    "null",
    "any",
    "date-time",
    "uuid",
    "^a+$",
    "^\\d{3}$",
    "^(?!x)",
    "#/$defs/A",
    "#/properties/a",
    "#",
    "#/$defs/B",
    "http://x/y",
    "a",
    "b",
    "A",
    "B",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYWORDS + WORDS), st.text(max_size=4)), inner, max_size=5),
    ),
    max_leaves=30,
)
schemas = st.dictionaries(st.sampled_from(KEYWORDS), anything, max_size=8)


@st.composite
def likely_schemas(draw: st.DrawFn, depth: int = 3) -> JSON:
    """Schemas as generators write them, with references into themselves."""
    kind = draw(
        st.sampled_from(
            [
                "string",
                "number",
                "integer",
                "boolean",
                "array",
                "object",
                "anyOf",
                "oneOf",
                "allOf",
                "$ref",
                "enum",
            ]
        )
    )
    part = likely_schemas(depth=depth - 1) if depth else st.just({"type": "string"})
    match kind:
        case "object":
            properties = draw(st.dictionaries(st.sampled_from(["a", "b", "c", "$ref"]), part, max_size=3))
            return {
                "type": "object",
                "properties": properties,
                "required": draw(st.sampled_from([[], ["a"]])),
            }
        case "array":
            return {"type": "array", "items": draw(part), "minItems": draw(st.integers(0, 9999))}
        case "anyOf" | "oneOf" | "allOf":
            return {kind: draw(st.lists(part, max_size=3))}
        case "$ref":
            return {"$ref": draw(st.sampled_from(["#/$defs/A", "#/$defs/B", "#", "#/properties/a", "x"]))}
        case "enum":
            return {"enum": draw(st.lists(scalars, max_size=3))}
        case _:
            return {
                "type": draw(st.sampled_from([kind, [kind, "null"]])),
                "pattern": draw(st.text(max_size=9)),
            }


@st.composite
def whole_schemas(draw: st.DrawFn) -> JSON:
    """Likely ones with definitions, or anything at all."""
    if draw(st.booleans()):
        return draw(schemas)
    root = draw(likely_schemas())
    return {**root, "$defs": {"A": draw(likely_schemas()), "B": draw(likely_schemas())}}
