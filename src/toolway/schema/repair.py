"""Arguments that are slightly off -> what they can only have meant; never a guess."""

from __future__ import annotations

import json
import re
from typing import Any

from toolway.schema.dereference import TooLarge, dereference
from toolway.schema.keywords import members_of, parts_of, type_of, types_of
from toolway.schema.validate import accepts_null, is_valid
from toolway.types import JSON, Tool

_MAX_DEPTH = 12
_DISTINGUISHING = frozenset({"type", "enum", "const", "anyOf", "oneOf"})
"""Keywords that tell values apart; without any of them a schema takes everything."""
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,3})?")


def repair_arguments(tool: Tool, arguments: JSON) -> JSON:
    """`arguments` with what is certain put right, by the schema of the tool; the same object if nothing was.

    A text that is a number, a boolean or JSON where only that is legal; a value where a list of such is wanted; an
    enumerated text in another case, when one such is left; null for an optional member that cannot be null. Whether
    the result fits is not checked.
    """
    try:
        schema = dereference(tool.parameters, depth=_MAX_DEPTH)
    except (TooLarge, RecursionError):
        return arguments
    repaired = _repair(arguments, {**schema, "type": "object"})
    return repaired if isinstance(repaired, dict) else arguments


def _repair(value: Any, schema: Any) -> Any:
    if not isinstance(schema, dict):
        return value
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list):
            return _repair_one_of(value, options)
    types = _types(schema)
    if types and not _is_of(value, types):
        value = _converted(value, types, schema)
    value = _in_another_case(value, schema)
    if isinstance(value, dict) and (not types or "object" in types):
        return _repair_members(value, schema)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        repaired = [_repair(item, schema["items"]) for item in value]
        return repaired if any(new is not old for new, old in zip(repaired, value, strict=True)) else value
    return value


def _repair_members(value: JSON, schema: JSON) -> JSON:
    properties, required = members_of(schema), parts_of(schema, "required")
    repaired: JSON = {}
    for name, member in value.items():
        part = properties.get(name)
        needless = member is None and name not in required and isinstance(part, dict)
        if needless and not accepts_null(part, {}):
            continue
        repaired[name] = member if part is None else _repair(member, part)
    same = len(repaired) == len(value) and all(repaired[name] is value[name] for name in value)
    return value if same else repaired


def _repair_one_of(value: Any, options: list[Any]) -> Any:
    """The only way in which `value` fits an alternative after it was repaired, else `value` itself."""
    if any(is_valid(value, option) for option in options):
        return value
    candidates: list[Any] = []
    for option in options:
        repaired = _repair(value, option)
        if repaired not in candidates and is_valid(repaired, option):
            candidates.append(repaired)
    return candidates[0] if len(candidates) == 1 else value


def _converted(value: Any, types: set[str], schema: JSON) -> Any:
    if isinstance(value, str):
        read = _read(value.strip(), types)
        if read is not None or ("null" in types and value.strip() == "null"):
            return read
    if "array" in types and value is not None and not isinstance(value, list):
        items = schema.get("items")
        repaired = _repair(value, items)
        if isinstance(items, dict) and _DISTINGUISHING & items.keys() and is_valid(repaired, items):
            return [repaired]
    return value


def _read(text: str, types: set[str]) -> Any:
    """What a text says in one of `types`; None when it says nothing of the kind, or null."""
    if "integer" in types and _INTEGER.fullmatch(text):
        return int(text)
    if "number" in types and _NUMBER.fullmatch(text):
        return float(text) if set(text) & set(".eE") else int(text)
    if "boolean" in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[:1] in ("{", "[") and types & {"object", "array"}:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return value if _is_of(value, types) else None
    return None


def _in_another_case(value: Any, schema: JSON) -> Any:
    listed = parts_of(schema, "enum") or [schema.get("const")]
    if not isinstance(value, str) or value in listed:
        return value
    same = [v for v in listed if isinstance(v, str) and v.casefold() == value.strip().casefold()]
    return same[0] if len(same) == 1 else value


def _types(schema: JSON) -> set[str]:
    types = set(types_of(schema))
    return types | {"null"} if types and schema.get("nullable") is True else types


def _is_of(value: Any, types: set[str]) -> bool:
    of = {type_of(value)} | ({"integer"} if isinstance(value, float) and value.is_integer() else set())
    return bool((of | {"number"} if "integer" in of else of) & types)
