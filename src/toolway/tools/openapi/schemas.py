"""Schemas of an OpenAPI document (2.0 to 3.2) -> JSON Schema 2020-12, each with just the `$defs` that it needs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from toolway.types import JSON

MAX_DEPTH = 48
"""Levels of a schema that are read; what lies deeper accepts anything."""

DEFS = "#/$defs/"

_MISSING = object()
_NOTHING_HIDDEN: frozenset[str] = frozenset()


class References:
    """Finds things inside one document. A reference that leaves the document is never followed."""

    def __init__(self, document: JSON) -> None:
        self._document = document

    def at(self, pointer: str) -> Any:
        """What a JSON pointer (RFC 6901, percent-encoded or not) leads to; None when that is nowhere."""
        value: Any = self._document
        for part in pointer.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = _step(value, key)
            value = (
                _step(value, unquote(part).replace("~1", "/").replace("~0", "~"))
                if found is _MISSING
                else found
            )
            if value is _MISSING:
                return None
        return value

    def resolve(self, value: Any) -> Any:
        """`value`, or what stands at the end of its chain of `$ref`s; None when that is nowhere."""
        seen: set[str] = set()
        while isinstance(value, dict) and isinstance(ref := value.get("$ref"), str):
            if ref in seen or not ref.startswith("#/"):
                return None
            seen.add(ref)
            value = self.at(ref)
        return value

    def pointer(self, ref: str, root: str) -> str | None:
        """The pointer that `ref` means in the schema that starts at `root`; None when that is nowhere.

        `#/$defs/X` in a schema that a generator pasted in whole means that schema's own definitions.
        """
        if not re.match(r"#(/|$)", ref):
            return None
        return next((p for p in (ref, root + ref[1:]) if self.at(p) is not None), None)


def _step(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key, _MISSING)
    if isinstance(value, list) and re.fullmatch(r"[0-9]{1,9}", key) and int(key) < len(value):
        return value[int(key)]
    return _MISSING


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
        if keyword in _SCHEMAS and isinstance(value, bool):
            return value
        if keyword in _SCHEMAS and isinstance(value, dict):
            return self._schema(value, root, depth + 1, _NOTHING_HIDDEN)
        if keyword in _SCHEMA_LISTS and isinstance(value, list):
            inherited = hidden if keyword == "allOf" else _NOTHING_HIDDEN
            return [self._schema(item, root, depth + 1, inherited) for item in value] or None
        if keyword in _SCHEMA_MAPS and isinstance(value, dict):
            return {
                key: self._schema(item, root, depth + 1, _NOTHING_HIDDEN)
                for key, item in value.items()
                if keyword != "patternProperties" or _is_pattern(key)
            }
        return None

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
                names.update(
                    name for name, value in _mapping(part, "properties") if self._is_read_only(value)
                )
                waiting.extend(part["allOf"] if isinstance(part.get("allOf"), list) else ())
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


def types_of(schema: JSON) -> list[str]:
    """The types that a converted schema names itself; empty when it names none."""
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


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


def _mapping(schema: JSON, keyword: str) -> Iterable[tuple[str, Any]]:
    value = schema.get(keyword)
    return value.items() if isinstance(value, dict) else ()


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
    if not isinstance(value, list):
        return None
    return list(dict.fromkeys(name for name in value if isinstance(name, str)))


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
    try:
        jsonschema_rs.Draft202012Validator({"pattern": text})
    except ValueError:
        return False
    return True


_TYPES = {name: name for name in ("string", "number", "integer", "boolean", "array", "object", "null")} | {
    "file": "string",
    "str": "string",
    "text": "string",
    "date": "string",
    "datetime": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "map": "object",
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
    **dict.fromkeys(("title", "description", "format", "contentEncoding", "contentMediaType"), _text),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _count),
    **dict.fromkeys(("minProperties", "maxProperties", "minContains", "maxContains"), _count),
    **dict.fromkeys(("uniqueItems", "deprecated"), _flag),
}

_REFS = frozenset({"$ref", "$recursiveRef", "$dynamicRef"})
_SCHEMAS = frozenset(
    {
        "items",
        "additionalProperties",
        "unevaluatedItems",
        "unevaluatedProperties",
        "not",
        "if",
        "then",
        "else",
    }
    | {"contains", "propertyNames"}
)
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAPS = frozenset({"patternProperties", "dependentSchemas"})
_SIBLINGS_OF_REF = _REFS | {"description", "title", "default", "nullable", "x-nullable", "deprecated"}
