"""The references of a JSON document, followed; a JSON Schema with each `$ref` put in its place, recursion cut."""

from __future__ import annotations

import re
from functools import partial
from typing import Any
from urllib.parse import unquote

from toolway.schema.keywords import SUBSCHEMAS, map_subschemas, members_of, names_in, parts_of
from toolway.types import JSON

MAX_NODES = 6000
"""Schemas within one dereferenced schema. Shared definitions multiply: a few kilobytes can stand for gigabytes."""

MAX_HOPS = 100
"""References that lead to one another before a schema stands there."""

_DEFINITIONS = frozenset("$defs definitions $schema $id $anchor $comment".split())
_CUT_KEYWORDS = ("type", "title", "description", "enum", "nullable")
_LOCAL = re.compile(r"#(/|$)")
_MISSING = object()


class SchemaTooLarge(ValueError):
    """The schema has more than `MAX_NODES` parts when all of them are written out."""


class References:
    """Finds things inside one document. A reference that leaves the document is never followed."""

    def __init__(self, document: JSON) -> None:
        self._document = document

    def at(self, pointer: str) -> Any:
        """What a JSON pointer (`#/a/b`; RFC 6901, percent-encoded or not) leads to; None when that is nowhere."""
        if not _LOCAL.match(pointer):
            return None
        value: Any = self._document
        for part in pointer.split("/")[1:]:
            found = _step(value, part)
            value = _step(value, unquote(part)) if found is _MISSING else found
            if value is _MISSING:
                return None
        return value

    def resolve(self, value: Any) -> Any:
        """`value`, or what stands at the end of its chain of `$ref`s; None when that is nowhere."""
        seen: set[str] = set()
        while isinstance(value, dict) and isinstance(ref := value.get("$ref"), str):
            if ref in seen or ref == "#":
                return None
            seen.add(ref)
            value = self.at(ref)
        return value

    def pointer(self, ref: str, root: str) -> str | None:
        """The pointer that `ref` means in the schema that starts at `root`; None when that is nowhere.

        `#/$defs/X` in a schema that a generator pasted in whole means that schema's own definitions.
        """
        if not _LOCAL.match(ref):
            return None
        return next((p for p in (ref, root + ref[1:]) if self.at(p) is not None), None)


def _step(value: Any, part: str) -> Any:
    key = part.replace("~1", "/").replace("~0", "~")
    if isinstance(value, dict):
        return value.get(key, _MISSING)
    if isinstance(value, list) and re.fullmatch(r"[0-9]{1,9}", key) and int(key) < len(value):
        return value[int(key)]
    return _MISSING


def dereference(schema: JSON, *, depth: int) -> JSON:
    """`schema` with every local `$ref` replaced by what it leads to, and every `allOf` made one schema.

    What is `depth` levels below the root, or leads back into itself, keeps its type and description alone. A
    reference that leads nowhere accepts anything. Raises SchemaTooLarge.
    """
    dereferenced = _Dereferencer(schema).node(schema, depth, ())
    return dereferenced if isinstance(dereferenced, dict) else {}


class _Dereferencer:
    def __init__(self, root: JSON) -> None:
        self._references = References(root)
        self._nodes = 0

    def node(self, schema: Any, depth: int, trail: tuple[str, ...]) -> Any:
        """One schema, `trail` being the references that led to it."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SchemaTooLarge
        if not isinstance(schema, dict):
            return schema if isinstance(schema, bool) else {}
        schema, trail, again = self._follow(schema, trail)
        if again or depth <= 0:
            return {key: schema[key] for key in _CUT_KEYWORDS if key in schema}
        flat: JSON = {}
        for key, value in schema.items():
            if key in SUBSCHEMAS:
                below = depth if key == "allOf" else depth - 1
                parts = map_subschemas(key, value, partial(self.node, depth=below, trail=trail))
                if parts is not None:
                    flat[key] = parts
            elif key not in _DEFINITIONS:
                flat[key] = value
        return merge_all_of(flat) if "allOf" in flat else flat

    def _follow(self, schema: JSON, trail: tuple[str, ...]) -> tuple[JSON, tuple[str, ...], bool]:
        """What a chain of references leads to, with what stood beside them; whether it was passed before."""
        again = False
        while isinstance(ref := schema.get("$ref"), str):
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            again = again or ref in trail
            target = None if len(trail) > MAX_HOPS else self._references.at(ref)
            schema = {**target, **beside} if isinstance(target, dict) else beside
            trail = (*trail, ref)
            if again:
                schema.pop("$ref", None)
        return schema, trail, again


def merge_all_of(schema: JSON) -> JSON:
    """A schema without its `allOf`: the parts' properties and requirements together, else the first word counts."""
    whole: JSON = {key: value for key, value in schema.items() if key != "allOf"}
    for part in parts_of(schema, "allOf"):
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "properties" and key in whole:
                whole[key] = {**members_of(part), **members_of(whole)}
            elif key == "required" and key in whole:
                whole[key] = names_in([*parts_of(whole, key), *parts_of(part, key)])
            else:
                whole.setdefault(key, value)
    return whole
