"""The keywords of JSON Schema: which of them hold schemas, which belong to a type, and how to read the commonest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from toolway.types import JSON

SUBSCHEMAS: dict[str, Literal["one", "list", "map"]] = {
    **dict.fromkeys("items contains additionalProperties propertyNames not if then else".split(), "one"),
    **dict.fromkeys("unevaluatedItems unevaluatedProperties".split(), "one"),
    **dict.fromkeys("allOf anyOf oneOf prefixItems".split(), "list"),
    **dict.fromkeys("properties patternProperties dependentSchemas".split(), "map"),
}
"""The keywords whose value is a schema, a list of schemas, or an object whose members are schemas."""

_NUMBER_KEYWORDS = "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()
KEYWORDS_OF_TYPE: dict[str, list[str]] = {
    "string": "format pattern minLength maxLength".split(),
    "number": _NUMBER_KEYWORDS,
    "integer": _NUMBER_KEYWORDS,
    "array": "minItems maxItems uniqueItems".split(),
    "object": "minProperties maxProperties patternProperties propertyNames".split(),
    "boolean": [],
    "null": [],
}
"""The types there are, and the keywords that limit the values of each."""


def map_subschemas(keyword: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """The value of a keyword of SUBSCHEMAS with each schema directly in it converted; None if it is malformed.

    A list under `items` is the tuple of the drafts before 2020-12.
    """
    shape = "list" if keyword == "items" and isinstance(value, list) else SUBSCHEMAS[keyword]
    if shape == "one" and isinstance(value, dict | bool):
        return convert(value)
    if shape == "list" and isinstance(value, list):
        return [convert(part) for part in value]
    if shape == "map" and isinstance(value, dict):
        return {name: convert(part) for name, part in value.items()}
    return None


def types_of(schema: JSON) -> list[str]:
    """The types that a schema names itself; empty when it names none."""
    declared = schema.get("type")
    return names_in(declared if isinstance(declared, list) else [declared])


def type_of(value: Any) -> str:
    """The type of a JSON value. A float without a fraction is an `integer` too, which is not said here."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")


def members_of(schema: JSON) -> JSON:
    """The properties of an object; empty when there are none."""
    value = schema.get("properties")
    return value if isinstance(value, dict) else {}


def parts_of(schema: JSON, keyword: str) -> list[Any]:
    """The list under a keyword; empty when there is none."""
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def names_in(value: Any) -> list[str]:
    """The texts of a list, each once, in order; empty for anything but a list."""
    return list(dict.fromkeys(v for v in value if isinstance(v, str))) if isinstance(value, list) else []


def distinct(values: Iterable[Any]) -> list[Any]:
    """JSON values, each once, in order; 1 and true are two."""
    kept: list[Any] = []
    for value in values:
        if not any(value == other and type(value) is type(other) for other in kept):
            kept.append(value)
    return kept
