"""A call's arguments against the tool's schema: what is wrong, in words for the model; what is certain, repaired."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from toolway.schema.compile import CannotCompile, compile_schema
from toolway.schema.dereference import SchemaTooLarge, dereference
from toolway.schema.keywords import members_of, names_in, parts_of, type_of, types_of
from toolway.types import JSON, Tool

if TYPE_CHECKING:
    import jsonschema_rs

MAX_SHOWN = 5
"""Faults told at once; a model that mends these gets the next ones."""

MAX_SCHEMA_SHOWN = 1500
"""Characters of a schema that go into an error."""

_validators: WeakKeyDictionary[Tool, jsonschema_rs.Validator | None] = WeakKeyDictionary()


def without_unset_nulls(tool: Tool, arguments: JSON) -> JSON:
    """The arguments without the nulls that stand for "not given": optional ones where the schema wants no null.

    Models write `{"limit": null}` for a limit that they do not want (those that know strict mode must).
    """
    nulls = [name for name, value in arguments.items() if value is None]
    if not nulls:
        return arguments
    properties, required = members_of(tool.parameters), names_in(tool.parameters.get("required"))
    needless = {
        name
        for name in nulls
        if name not in required and not accepts_null(properties.get(name, True), tool.parameters)
    }
    return {k: v for k, v in arguments.items() if k not in needless} if needless else arguments


def validation_error(tool: Tool, arguments: JSON) -> str | None:
    """None when the arguments fit `tool.parameters`, else what the model should change, one fault a line.

    Formats are not asserted and nothing is ever fetched for a `$ref`. A schema that cannot be compiled is not a
    reason to refuse a call: then only the required names are checked.
    """
    validator = _validator(tool)
    if validator is None:
        return None
    try:
        lines = [_line(fault, tool) for fault in islice(validator.iter_errors(arguments), MAX_SHOWN)]
    except (ValueError, RecursionError) as error:  # nested too deeply, or text that is no Unicode
        return f"The arguments of {tool.name} cannot be checked: {error}"
    return "\n- ".join([f"The arguments do not fit the tool {tool.name}:", *lines]) if lines else None


def faults(tool: Tool, arguments: JSON) -> list[tuple[list[str | int], str]]:
    """What does not fit `tool.parameters`: the path to each member that is wrong or missing, and why."""
    found = []
    validator = _validator(tool)
    for fault in islice(validator.iter_errors(arguments) if validator else (), MAX_SHOWN):
        nearest = _nearest(fault)
        path, kind = list(nearest.instance_path), _kind(nearest)
        if kind.name == "required":
            path.append(kind.property)
        elif kind.name == "additionalProperties":
            path += kind.unexpected[:1]
        found.append((path, _line(fault, tool)))
    return found


def is_valid(value: Any, schema: Any, root: JSON | None = None) -> bool:
    """Whether a value fits a schema with the definitions of `root`; one that cannot be compiled takes anything."""
    if isinstance(schema, bool):
        return schema
    if root is not None and isinstance(schema, dict):
        schema = {**schema, "$defs": root.get("$defs", {}), "definitions": root.get("definitions", {})}
    validator = _compiled(schema) if isinstance(schema, dict) else None
    return validator is None or validator.is_valid(value)


def failing_schema(tool: Tool, arguments: JSON) -> str:
    """The part of the tool's schema that the arguments do not fit, as JSON, for the model; "" if there is none."""
    validator, properties = _validator(tool), members_of(tool.parameters)
    names: dict[str, None] = {}
    for fault in islice(validator.iter_errors(arguments) if validator else (), MAX_SHOWN):
        kind = _kind(fault)
        missing = [kind.property] if kind.name == "required" else []
        names |= dict.fromkeys(str(name) for name in (*fault.instance_path[:1], *missing))
    part = {name: properties[name] for name in names if name in properties}
    try:
        compiled = compile_schema({**tool.parameters, "properties": part}, "openai", terse=1)
    except CannotCompile:
        return ""
    shown = {name: compiled["properties"][name] for name in part if name in compiled["properties"]}
    return f"Their schema: {_cut(json.dumps(shown, ensure_ascii=False), MAX_SCHEMA_SHOWN)}" if shown else ""


def _validator(tool: Tool) -> jsonschema_rs.Validator | None:
    known = _validators.get(tool)
    if known is None and tool not in _validators:
        fallback = {"type": "object", "required": names_in(tool.parameters.get("required"))}
        known = _validators[tool] = _compiled(tool.parameters) or _compiled(fallback)
    return known


def _compiled(schema: JSON) -> jsonschema_rs.Validator | None:
    import jsonschema_rs  # noqa: PLC0415 - 5 MB, from the first call of a tool on

    try:
        return jsonschema_rs.validator_for(
            schema,
            offline=True,
            validate_formats=False,
            mask="the value",
            pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=100_000),
        )
    except (ValueError, TypeError, jsonschema_rs.ReferencingError):
        return None


def accepts_null(schema: Any, root: JSON) -> bool:
    """Whether null fits a property's schema, seen with the definitions of the whole one."""
    return not isinstance(schema, dict) or is_valid(None, schema, root)


def _line(fault: jsonschema_rs.ValidationError, tool: Tool) -> str:
    fault = _nearest(fault)
    where = _place(fault.instance_path)
    kind = _kind(fault)
    if kind.name == "required":
        return f"`{_place([*fault.instance_path, kind.property])}` is required and missing"
    if kind.name == "additionalProperties":
        return _unexpected(kind.unexpected, where, tool if not fault.instance_path else None)
    got = _cut(json.dumps(fault.instance, ensure_ascii=False), 80)
    return f"`{where}`: {_cut(fault.message, 300)}; it was {got}" if where else _cut(fault.message, 300)


def _nearest(fault: jsonschema_rs.ValidationError) -> jsonschema_rs.ValidationError:
    """The fault in the alternative that the model most likely meant: where the arguments fit the deepest."""
    kind = _kind(fault)
    if kind.name not in {"anyOf", "oneOf"} or not all(kind.context):  # more than one fits
        return fault
    level = len(fault.instance_path)
    meant = [faults[0] for faults in kind.context if not _is_wrong_kind(faults[0], level)]
    return _nearest(max(meant, key=lambda f: len(f.instance_path))) if meant else fault


def _is_wrong_kind(fault: jsonschema_rs.ValidationError, level: int) -> bool:
    """Whether an alternative is out of the question: another type, or another constant that tells them apart."""
    return _kind(fault).name in {"type", "const"} and len(fault.instance_path) <= level


def _kind(fault: jsonschema_rs.ValidationError) -> Any:
    """The keyword that is not fulfilled, as `name`, and what it says of the fault."""
    return fault.kind


def _unexpected(names: list[str], where: str, tool: Tool | None) -> str:
    text = f"unknown {', '.join(f'`{name}`' for name in names[:MAX_SHOWN])}" + (
        f" in `{where}`" if where else ""
    )
    known = list(members_of(tool.parameters) if tool else ())
    return (
        f"{text}; the arguments are {_cut(', '.join(f'`{name}`' for name in known), 300)}" if known else text
    )


def _place(path: list[str | int]) -> str:
    place = ""
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


_MAX_DEPTH = 12
_DISTINGUISHING = frozenset({"type", "enum", "const", "anyOf", "oneOf"})
"""Keywords that tell values apart; without any of them a schema takes everything."""
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,99})")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,3})?")


def repair_arguments(tool: Tool, arguments: JSON) -> JSON:
    """`arguments` with what is certain put right, by the schema of the tool; the same object if nothing was.

    A text that is a number, a boolean or JSON where only that is legal; a value where a list of such is wanted; an
    enumerated text in another case, when one such is left; null for an optional member that cannot be null. Whether
    the result fits is not checked.
    """
    try:
        schema = dereference(tool.parameters, depth=_MAX_DEPTH)
    except (SchemaTooLarge, RecursionError):
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
