"""Schemas of an OpenAPI document (2.0 to 3.2) -> JSON Schema 2020-12, each with just the `$defs` that it needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any
from urllib.parse import unquote

from toolway.schema.dereference import References
from toolway.schema.keywords import (
    KEYWORDS_OF_TYPE,
    SUBSCHEMAS,
    map_subschemas,
    members_of,
    names_in,
    parts_of,
    types_of,
)
from toolway.types import JSON

MAX_DEPTH = 48
"""Levels of a schema that are read; what lies deeper accepts anything."""

DEFS = "#/$defs/"

_NOTHING_HIDDEN: frozenset[str] = frozenset()


class Schemas:
    """Converts the schemas of one document; a schema that many tools share is converted once.

    A converted schema refers to others as `#/$defs/<name>`, and `bundle` adds those. What is broken is repaired
    or dropped: one odd schema never costs a tool, one odd tool never a server.
    """

    def __init__(self, document: JSON) -> None:
        self.references = References(document)
        self._siblings_count = str(document.get("openapi", "")).startswith(("3.1", "3.2"))
        self._names: dict[str, str] = {}
        self._pointers: dict[str, str] = {}
        self._definitions: dict[str, JSON] = {}
        self._uses: dict[str, tuple[str, ...]] = {}

    def convert(self, schema: Any, at: str = "#") -> JSON:
        """One schema as 2020-12. `at` is the pointer of the place where it stands."""
        return self._schema(schema, at, 0, _NOTHING_HIDDEN)

    def resolved(self, schema: JSON) -> JSON:
        """A converted schema, or the definition at the end of its chain of `$ref`s."""
        seen: set[str] = set()
        while isinstance(ref := schema.get("$ref"), str) and ref not in seen:
            seen.add(ref)
            schema = self._definition(ref.removeprefix(DEFS))
        return schema

    def bundle(self, schema: JSON) -> JSON:
        """`schema` with `$defs`: every definition that it leads to, sorted by name."""
        needed: set[str] = set()
        waiting = list(references_in(schema))
        while waiting:
            name = waiting.pop()
            if name not in needed and name in self._pointers:
                needed.add(name)
                self._definition(name)
                waiting.extend(self._uses[name])
        if not needed:
            return schema
        return {**schema, "$defs": {name: self._definitions[name] for name in sorted(needed)}}

    def _definition(self, name: str) -> JSON:
        if name not in self._definitions:
            pointer = self._pointers[name]
            converted = self._schema(self.references.at(pointer), pointer, 0, _NOTHING_HIDDEN)
            self._definitions[name] = converted
            self._uses[name] = tuple(dict.fromkeys(references_in(converted)))
        return self._definitions[name]

    def _schema(self, schema: Any, root: str, depth: int, hidden: frozenset[str]) -> JSON:
        if schema is False:
            return {"not": {}}
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return {}
        if isinstance(schema.get("$ref"), str) and not self._siblings_count:
            schema = {k: v for k, v in schema.items() if k in _SIBLINGS_OF_REF}
        schema = _upgraded(schema)
        hidden |= self._read_only(schema)
        converted: JSON = {}
        for keyword, value in schema.items():
            kept = self._keyword(keyword, value, root, depth, hidden)
            if kept is not None:
                converted["$ref" if keyword in _REFS else keyword] = kept
        if "array" in types_of(converted):
            converted.setdefault("items", {})
        return _or_null(converted) if schema.get("nullable", schema.get("x-nullable")) is True else converted

    def _keyword(self, keyword: str, value: Any, root: str, depth: int, hidden: frozenset[str]) -> Any:
        """The value that `keyword` gets in the converted schema; None: it is left out."""
        if (simple := _SIMPLE.get(keyword)) is not None:
            return simple(value)
        if keyword in _REFS:
            return self._ref(root if value == "#" else value, root)
        if keyword == "required":
            return [name for name in _names(value) or () if name not in hidden] or None
        if keyword == "properties" and isinstance(value, dict):
            return {k: self._property(k, v, root, depth) for k, v in value.items() if k not in hidden}
        return self._subschemas(keyword, value, root, depth, hidden)

    def _subschemas(self, keyword: str, value: Any, root: str, depth: int, hidden: frozenset[str]) -> Any:
        if keyword not in SUBSCHEMAS:
            return None
        if isinstance(value, bool):
            return value if SUBSCHEMAS[keyword] == "one" else None
        if keyword == "patternProperties" and isinstance(value, dict):
            value = {pattern: part for pattern, part in value.items() if _is_pattern(pattern)}
        inherited = hidden if keyword == "allOf" else _NOTHING_HIDDEN
        convert = partial(self._schema, root=root, depth=depth + 1, hidden=inherited)
        parts = map_subschemas(keyword, value, convert)
        return None if parts == [] else parts

    def _property(self, name: str, schema: Any, root: str, depth: int) -> JSON:
        converted = self._schema(schema, root, depth + 1, _NOTHING_HIDDEN)
        if _same_words(converted.get("title"), name):
            del converted["title"]
        return converted

    def _ref(self, ref: Any, root: str) -> str | None:
        pointer = self.references.pointer(ref, root) if isinstance(ref, str) else None
        if pointer is None:
            return None
        if pointer not in self._names:
            self._names[pointer] = self._free_name(pointer)
            self._pointers[self._names[pointer]] = pointer
        return DEFS + self._names[pointer]

    def _free_name(self, pointer: str) -> str:
        last = unquote(pointer.rsplit("/", 1)[-1]).replace("~1", "/").replace("~0", "~")
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", last).strip("_") or "schema"
        name, count = base, 1
        while name in self._pointers:
            count += 1
            name = f"{base}_{count}"
        return name

    def _read_only(self, schema: JSON) -> frozenset[str]:
        """Names of the properties that only the server sets, in `schema` and in all parts of its `allOf`."""
        names: set[str] = set()
        seen: set[int] = set()
        waiting: list[Any] = [schema]
        while waiting:
            part = self.references.resolve(waiting.pop())
            if isinstance(part, dict) and id(part) not in seen:
                seen.add(id(part))
                names.update(name for name, value in members_of(part).items() if self._is_read_only(value))
                waiting.extend(parts_of(part, "allOf"))
        return frozenset(names)

    def _is_read_only(self, schema: Any) -> bool:
        return any(
            isinstance(s, dict) and s.get("readOnly") is True
            for s in (schema, self.references.resolve(schema))
        )


def references_in(schema: Any) -> Iterator[str]:
    """The names in `$defs` that a converted schema refers to itself."""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            ref = value.get("$ref")
            if isinstance(ref, str) and ref.startswith(DEFS):
                yield ref.removeprefix(DEFS)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _upgraded(schema: JSON) -> JSON:
    """The idioms of draft 4 in today's words: tuples, flags beside bounds, files."""
    upgraded: JSON = {}
    if isinstance(schema.get("items"), list):
        upgraded |= {"prefixItems": schema["items"], "items": None}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if schema.get(exclusive) is True:
            upgraded |= {exclusive: schema.get(bound), bound: None}
    if schema.get("type") == "file":
        upgraded |= {"type": "string", "format": "binary"}
    return {**schema, **upgraded} if upgraded else schema


def _or_null(schema: JSON) -> JSON:
    if any(keyword in schema for keyword in ("$ref", "allOf", "anyOf", "oneOf", "const")):
        annotations: JSON = {k: schema[k] for k in ("title", "description", "default") if k in schema}
        rest = {k: v for k, v in schema.items() if k not in annotations}
        return {**annotations, "anyOf": [rest, {"type": "null"}]}
    nullable = dict(schema)
    if "type" in schema:
        nullable["type"] = list(dict.fromkeys([*types_of(schema), "null"]))
    if "enum" in schema and None not in schema["enum"]:
        nullable["enum"] = [*schema["enum"], None]
    return nullable


def _same_words(title: Any, name: str) -> bool:
    """Whether a title only says the property's name again, as generators write it."""
    return isinstance(title, str) and _letters(title) == _letters(name)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _flag(value: Any) -> bool | None:
    return True if value is True else None


def _names(value: Any) -> list[str] | None:
    return names_in(value) if isinstance(value, list) else None


def _name_lists(value: Any) -> JSON | None:
    if not isinstance(value, dict):
        return None
    return {key: names for key, item in value.items() if (names := _names(item)) is not None}


def _number(value: Any) -> int | float | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _positive(value: Any) -> int | float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def _values(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _pattern(value: Any) -> str | None:
    return value if isinstance(value, str) and _is_pattern(value) else None


@lru_cache(maxsize=4096)
def _is_pattern(text: str) -> bool:
    """Whether the engine that checks arguments can read it."""
    import jsonschema_rs  # noqa: PLC0415 - 5 MB, where a schema has a pattern

    try:
        jsonschema_rs.Draft202012Validator({"pattern": text})
    except ValueError:
        return False
    return True


_TYPES = {name: name for name in KEYWORDS_OF_TYPE} | {
    **dict.fromkeys("file str text date datetime".split(), "string"),
    **dict.fromkeys("int long".split(), "integer"),
    **dict.fromkeys("float double decimal".split(), "number"),
    **dict.fromkeys("dict map".split(), "object"),
    "bool": "boolean",
    "list": "array",
}


def _type(value: Any) -> str | list[str] | None:
    names = value if isinstance(value, list) else [value]
    known = [_TYPES[n.lower()] for n in names if isinstance(n, str) and n.lower() in _TYPES]
    if len(known) < len(names):
        return None  # `any`, or a type of the author's own: no check is better than a wrong one
    known = list(dict.fromkeys(known))
    return known[0] if len(known) == 1 else known or None


_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "type": _type,
    "pattern": _pattern,
    "dependentRequired": _name_lists,
    "enum": _values,
    "examples": _values,
    "default": lambda value: value,
    "const": lambda value: value,
    "multipleOf": _positive,
    **dict.fromkeys("title description format contentEncoding contentMediaType".split(), _text),
    **dict.fromkeys("minimum maximum exclusiveMinimum exclusiveMaximum".split(), _number),
    **dict.fromkeys("minLength maxLength minItems maxItems".split(), _count),
    **dict.fromkeys("minProperties maxProperties minContains maxContains".split(), _count),
    **dict.fromkeys("uniqueItems deprecated".split(), _flag),
}

_REFS = frozenset("$ref $recursiveRef $dynamicRef".split())
_SIBLINGS_OF_REF = _REFS | set("description title default nullable x-nullable deprecated".split())
