"""A JSON Schema with references -> the same without any: each put in its place, recursion and depth cut."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from toolway.types import JSON

MAX_NODES = 6000
"""Schemas within one dereferenced schema. Shared definitions multiply: a few kilobytes can stand for gigabytes."""

MAPS = ("properties", "patternProperties", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")

_DEFINITIONS = ("$defs", "definitions", "$schema", "$id", "$anchor", "$comment")
_KEPT_OF_CUT = ("type", "title", "description", "enum", "nullable")


class TooLarge(ValueError):
    """The schema has more than `MAX_NODES` parts when all of them are written out."""


def dereference(schema: JSON, *, depth: int) -> JSON:
    """`schema` with every local `$ref` replaced by what it leads to, and every `allOf` made one schema.

    What is `depth` levels below the root, or leads back into itself, keeps its type and description alone. A
    reference that leads nowhere accepts anything. Raises TooLarge.
    """
    dereferenced = _Inliner(schema).node(schema, depth, ())
    return dereferenced if isinstance(dereferenced, dict) else {}


class _Inliner:
    def __init__(self, root: JSON) -> None:
        self._root = root
        self._nodes = 0

    def node(self, schema: Any, depth: int, trail: tuple[str, ...]) -> Any:
        """One schema, `trail` being the references that led to it."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise TooLarge
        if not isinstance(schema, dict):
            return schema if isinstance(schema, bool) else {}
        schema, trail, again = self._follow(schema, trail)
        if again or depth <= 0:
            return _cut(schema)
        flat: JSON = {}
        for key, value in schema.items():
            if key not in _DEFINITIONS:
                flat[key] = self._member(key, value, depth, trail)
        return merge_all_of(flat) if "allOf" in flat else flat

    def _member(self, key: str, value: Any, depth: int, trail: tuple[str, ...]) -> Any:
        if key in MAPS and isinstance(value, dict):
            return {name: self.node(part, depth - 1, trail) for name, part in value.items()}
        if key in LISTS and isinstance(value, list):
            below = depth if key == "allOf" else depth - 1
            return [self.node(part, below, trail) for part in value]
        if key == "items" and isinstance(value, list):
            return [self.node(part, depth - 1, trail) for part in value]
        if key in SINGLES and isinstance(value, dict):
            return self.node(value, depth - 1, trail)
        return value

    def _follow(self, schema: JSON, trail: tuple[str, ...]) -> tuple[JSON, tuple[str, ...], bool]:
        """What a chain of references leads to, with what stood beside them; whether it was passed before."""
        again = False
        while isinstance(ref := schema.get("$ref"), str):
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            again = again or ref in trail
            target = None if len(trail) > 100 else self._at(ref)
            schema = {**target, **beside} if isinstance(target, dict) else beside
            trail = (*trail, ref)
            if again:
                schema.pop("$ref", None)
        return schema, trail, again

    def _at(self, ref: str) -> Any:
        if not ref.startswith("#"):
            return None
        value: Any = self._root
        for part in ref[1:].split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(value):
                value = value[int(key[:9])]
            elif isinstance(value, dict):
                value = value.get(key)
            else:
                return None
        return value


def merge_all_of(schema: JSON) -> JSON:
    """A schema without its `allOf`: the parts' properties and requirements together, else the first word counts."""
    whole: JSON = {key: value for key, value in schema.items() if key != "allOf"}
    parts = schema["allOf"] if isinstance(schema["allOf"], list) else []
    for part in parts:
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            mine = whole.get(key)
            if key == "properties" and isinstance(value, dict) and isinstance(mine, dict):
                whole[key] = {**value, **mine}
            elif key == "required" and isinstance(value, list) and isinstance(mine, list):
                whole[key] = [*mine, *(name for name in value if name not in mine)]
            elif key not in whole:
                whole[key] = value
    return whole


def _cut(schema: JSON) -> JSON:
    return {key: schema[key] for key in _KEPT_OF_CUT if key in schema}
