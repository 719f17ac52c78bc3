"""JSON Schemas of tools as parts of a document that others validate: sound, and with references that hold there."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from toolway.schema.arguments import is_valid
from toolway.schema.dereference import References
from toolway.schema.keywords import SUBSCHEMAS, map_subschemas, parts_of
from toolway.tools.openapi.schemas import Schemas
from toolway.types import JSON

_BASE_KEYWORDS = frozenset({"$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef"})
"""Keywords by which a schema gives itself another place than the one where it stands."""

_MAPS = frozenset({"$defs", "definitions"})


def document_schema(schema: JSON, at: str) -> JSON:
    """`schema` for the place `at` (a JSON pointer) of a document of OpenAPI 3.1.

    One that is broken, or of an older draft, is repaired; one that cannot be accepts any object.
    """
    plain = {key: value for key, value in schema.items() if key != "$schema"}
    if not _is_sound(plain):
        schemas = Schemas({**plain, "openapi": "3.1.0"})
        plain = schemas.bundle(schemas.convert(plain))
    moved: JSON = _moved(plain, at, plain)
    return moved if _is_sound(plain) else {"type": "object"}


def _is_sound(schema: JSON) -> bool:
    """Whether it is a schema of 2020-12 by itself, all of whose references lead to something within it."""
    import jsonschema_rs  # noqa: PLC0415 - 5 MB, when a document is asked for

    if not jsonschema_rs.meta.is_valid({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"}):
        return False
    references = References(schema)
    finite: set[int] = set()
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if not _BASE_KEYWORDS.isdisjoint(value) or not _leads_somewhere(value, references):
                return False
            if _is_endless(value, references, finite, ()):
                return False
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return True


def _leads_somewhere(schema: JSON, references: References) -> bool:
    """Whether a schema stands at the end of its chain of references, if it begins one."""
    seen: set[str] = set()
    value: Any = schema
    while isinstance(value, dict) and isinstance(ref := value.get("$ref"), str):
        keyword = ref.split("/")[1] if "/" in ref else ""
        if ref in seen or (keyword and keyword not in _MAPS and keyword not in SUBSCHEMAS):
            return False
        seen.add(ref)
        value = references.at(ref)
    return isinstance(value, dict | bool)


def _is_endless(schema: JSON, references: References, finite: set[int], above: tuple[int, ...]) -> bool:
    """Whether a value would have to be held against this schema again and again: it applies itself in place."""
    if id(schema) in above:
        return True
    if id(schema) in finite:
        return False
    parts = [references.at(ref)] if isinstance(ref := schema.get("$ref"), str) else []
    parts += [part for keyword in ("allOf", "anyOf", "oneOf") for part in parts_of(schema, keyword)]
    parts += [schema.get(keyword) for keyword in ("not", "if", "then", "else")]
    above = (*above, id(schema))
    if any(isinstance(part, dict) and _is_endless(part, references, finite, above) for part in parts):
        return True
    finite.add(id(schema))
    return False


def _moved(schema: Any, at: str, root: JSON) -> Any:
    if not isinstance(schema, dict):
        return schema
    move = partial(_moved, at=at, root=root)
    moved: JSON = {}
    for keyword, value in schema.items():
        if keyword == "$ref" and isinstance(value, str):
            moved[keyword] = at + value[1:]
        elif keyword == "patternProperties" and isinstance(value, dict):
            moved[keyword] = {pattern: move(part) for pattern, part in value.items() if _is_pattern(pattern)}
        elif keyword in SUBSCHEMAS:
            moved[keyword] = map_subschemas(keyword, value, move)
        elif keyword in _MAPS and isinstance(value, dict):
            moved[keyword] = {name: move(part) for name, part in value.items()}
        elif _is_kept(keyword, value, schema, root):
            moved[keyword] = value
    return moved


def _is_kept(keyword: str, value: Any, schema: JSON, root: JSON) -> bool:
    """Whether those who check documents take it: they compile patterns, and hold defaults against their schemas."""
    if keyword == "default":
        return is_valid(value, schema, root)
    return keyword != "pattern" or _is_pattern(value)


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return True
