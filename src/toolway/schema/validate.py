"""Do a call's arguments fit the tool's schema? The answer is for the model: what is wrong, and where."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import jsonschema_rs

from toolway.schema.compile import CannotCompile, compile_schema
from toolway.schema.keywords import members_of, names_in
from toolway.types import JSON, Tool

SHOWN = 5
"""Faults told at once; a model that mends these gets the next ones."""

SHOWN_OF_SCHEMA = 1500
"""Characters of a schema that go into an error."""

_validators: WeakKeyDictionary[Tool, jsonschema_rs.Validator | None] = WeakKeyDictionary()


def without_unset_nulls(tool: Tool, arguments: JSON) -> JSON:
    """The arguments without the nulls that stand for "not given": optional ones where the schema wants no null.

    Models write `{"limit": null}` for a limit that they do not want (those that know strict mode must).
    """
    nulls = [name for name, value in arguments.items() if value is None]
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
        lines = [_line(fault, tool) for fault in islice(validator.iter_errors(arguments), SHOWN)]
    except (ValueError, RecursionError) as error:  # nested too deeply, or text that is no Unicode
        return f"The arguments of {tool.name} cannot be checked: {error}"
    return "\n- ".join([f"The arguments do not fit the tool {tool.name}:", *lines]) if lines else None


def is_valid(value: Any, schema: Any) -> bool:
    """Whether a value fits a schema without references; one that cannot be compiled takes anything."""
    if isinstance(schema, bool):
        return schema
    validator = _compiled(schema) if isinstance(schema, dict) else None
    return validator is None or validator.is_valid(value)


def failing_schema(tool: Tool, arguments: JSON) -> str:
    """The part of the tool's schema that the arguments do not fit, as JSON, for the model; "" if there is none."""
    validator, properties = _validator(tool), members_of(tool.parameters)
    names: dict[str, None] = {}
    for fault in islice(validator.iter_errors(arguments) if validator else (), SHOWN):
        kind = fault.kind
        missing = [kind.property] if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required) else []
        names |= dict.fromkeys(str(name) for name in (*fault.instance_path[:1], *missing))
    part = {name: properties[name] for name in names if name in properties}
    try:
        compiled = compile_schema({**tool.parameters, "properties": part}, "openai", terse=1)
    except CannotCompile:
        return ""
    shown = {name: compiled["properties"][name] for name in part if name in compiled["properties"]}
    return f"Their schema: {_cut(json.dumps(shown, ensure_ascii=False), SHOWN_OF_SCHEMA)}" if shown else ""


def _validator(tool: Tool) -> jsonschema_rs.Validator | None:
    if tool not in _validators:
        fallback = {"type": "object", "required": names_in(tool.parameters.get("required"))}
        _validators[tool] = _compiled(tool.parameters) or _compiled(fallback)
    return _validators[tool]


def _compiled(schema: JSON) -> jsonschema_rs.Validator | None:
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
    if not isinstance(schema, dict):
        return True
    validator = _compiled(
        {**schema, "$defs": root.get("$defs", {}), "definitions": root.get("definitions", {})}
    )
    return validator is None or validator.is_valid(None)


def _line(fault: jsonschema_rs.ValidationError, tool: Tool) -> str:
    fault = _nearest(fault)
    where = _place(fault.instance_path)
    kind = fault.kind
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Required):
        return f"`{_place([*fault.instance_path, kind.property])}` is required and missing"
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.AdditionalProperties):
        return _unexpected(kind.unexpected, where, tool if not fault.instance_path else None)
    got = _cut(json.dumps(fault.instance, ensure_ascii=False), 80)
    return f"`{where}`: {_cut(fault.message, 300)}; it was {got}" if where else _cut(fault.message, 300)


def _nearest(fault: jsonschema_rs.ValidationError) -> jsonschema_rs.ValidationError:
    """The fault in the alternative that the model most likely meant: where the arguments fit the deepest."""
    kind = fault.kind
    if not isinstance(
        kind, jsonschema_rs.ValidationErrorKind.AnyOf | jsonschema_rs.ValidationErrorKind.OneOfNotValid
    ):
        return fault
    level = len(fault.instance_path)
    meant = [faults[0] for faults in kind.context if faults and not _is_wrong_kind(faults[0], level)]
    return _nearest(max(meant, key=lambda f: len(f.instance_path))) if meant else fault


def _is_wrong_kind(fault: jsonschema_rs.ValidationError, level: int) -> bool:
    """Whether an alternative is out of the question: another type, or another constant that tells them apart."""
    other = jsonschema_rs.ValidationErrorKind.Type | jsonschema_rs.ValidationErrorKind.Constant
    return isinstance(fault.kind, other) and len(fault.instance_path) <= level


def _unexpected(names: list[str], where: str, tool: Tool | None) -> str:
    text = f"unknown {', '.join(f'`{name}`' for name in names[:SHOWN])}" + (f" in `{where}`" if where else "")
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
