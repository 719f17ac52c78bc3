"""Tools -> the `tools` list of a request; a JSON Schema -> what one kind of model server accepts of it.

The original still checks the arguments. Definitions are serialised once for each kind of model server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import orjson

from toolway.schema.dereference import MAX_NODES, SchemaTooLarge, dereference, merge_all_of
from toolway.schema.keywords import (
    KEYWORDS_OF_TYPE,
    distinct,
    members_of,
    names_in,
    parts_of,
    type_of,
    types_of,
)
from toolway.schema.targets import NUMBERS, RULES, SchemaTarget, TargetRules, portable_pattern
from toolway.types import JSON, Tool
from toolway.wire.lenient_json import dumps_exact
from toolway.wire.token_estimate import estimate_tokens

MAX_TOOLS = 128
"""OpenAI refuses a request with more, and models choose badly among so many."""

_SHARE = 0.75
"""Of a context that tools may take: a question and an answer need the rest."""

SEARCH_SHARE = 0.4
"""Of a context that the definitions of tools may take before they are searched in place of being offered."""

USUAL_CONTEXT = 131_072
"""Tokens that a model of which nobody knows can read, as far as tools are concerned."""

ALWAYS_FIT = 1_000
"""Tokens of tools that a search would not make fewer."""

_LARGE = 32_000
"""Tokens that tools may take of a context that nobody knows."""

_Key = tuple[str, SchemaTarget, int]

_serialised: WeakKeyDictionary[Tool, dict[_Key, bytes | str]] = WeakKeyDictionary()
"""What became of a tool under one name: its definition as JSON, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """`fragments` by name and their `sizes` in bytes, `all` of them as one list, and why others are `left_out`."""

    fragments: Mapping[str, orjson.Fragment]
    sizes: Mapping[str, int]
    left_out: Mapping[str, str]

    @cached_property
    def all(self) -> orjson.Fragment:
        """The list of them, already JSON."""
        return orjson.Fragment(orjson.dumps(list(self.fragments.values())))


def definition_tokens(size: int) -> int:
    """About how many tokens of a prompt definitions of so many bytes take, to two digits."""
    tokens = estimate_tokens(size)
    return round(tokens, 1 - int(math.log10(tokens))) if tokens >= 100 else tokens


def need_search(tools: int, tokens: int, context: int | None, most_tools: int | None) -> bool:
    """Whether so many tools of so many tokens are too many to be offered all at once.

    `context` is how many tokens the model can read and `most_tools` how many tools its server takes, where known.
    """
    if tokens <= ALWAYS_FIT:
        return most_tools is not None and tools > most_tools
    return tools > (most_tools or tools) or tokens > (context or USUAL_CONTEXT) * SEARCH_SHARE


def why_too_many(tools: int, tokens: int, context: int | None, most_tools: int | None = None) -> str | None:
    """What is wrong with so many tools of so many tokens, and what to do about it; None: nothing is.

    `context` is how many tokens the model can read and `most_tools` how many tools its server takes, where known.
    """
    if tokens > (_LARGE if context is None else context * _SHARE):
        room = f"{tokens:,} of {context:,}" if context else f"{tokens:,}"
        larger = ", or give the model a larger context" if context else ""
        return (
            f"the definitions of {tools} tools take about {room} tokens; "
            f"leave some out with `include` or a profile{larger}"
        )
    if tools > (most_tools or MAX_TOOLS):
        why = (
            f"its model server takes no more than {most_tools}"
            if most_tools
            else "models choose badly among so many"
        )
        return (
            f"{tools} tools (about {tokens:,} tokens) are in each request, and {why}; "
            "leave some out with `include` or a profile, or have them searched with TOOLWAY_TOOL_SEARCH=on"
        )
    return None


def define(tools: Mapping[str, Tool], target: SchemaTarget) -> Definitions:
    """The definitions of `tools`, in the same order; the same bytes for the same tools.

    Where a kind of model server has a limit for all definitions together, all are shortened alike until they fit;
    if the shortest forms do not fit either, these are it. One that is not known yet takes up to 30 ms.
    """
    serialised: dict[str, bytes | str] = {}
    for terse in range(TERSEST + 1):
        ceiling = RULES[target].ceiling if terse < TERSEST else math.inf
        serialised = _serialised_within(ceiling, tools, target, terse)
        if len(serialised) == len(tools):
            break
    done = {name: text for name, text in serialised.items() if isinstance(text, bytes)}
    return Definitions(
        fragments={name: orjson.Fragment(text) for name, text in done.items()},
        sizes={name: len(text) for name, text in done.items()},
        left_out={name: reason for name, reason in serialised.items() if isinstance(reason, str)},
    )


_alone: WeakKeyDictionary[Tool, dict[SchemaTarget, orjson.Fragment]] = WeakKeyDictionary()


def define_alone(tool: Tool, target: SchemaTarget) -> orjson.Fragment:
    """The definition of a tool that needs room beside no others; the same object for the same tool."""
    known = _alone.setdefault(tool, {})
    if target not in known:
        known[target] = define({tool.name: tool}, target).fragments[tool.name]
    return known[target]


def count_undefined(tools: Mapping[str, Tool], target: SchemaTarget) -> int:
    """How many of these tools were never defined under these names for this kind of model server."""
    return sum(
        (name, target) not in map(itemgetter(0, 1), _serialised.get(tool, ())) for name, tool in tools.items()
    )


def _serialised_within(
    ceiling: float, tools: Mapping[str, Tool], target: SchemaTarget, terse: int
) -> dict[str, bytes | str]:
    """The definitions of as many tools as have room together; reasons stand where there is none."""
    serialised: dict[str, bytes | str] = {}
    size = 2
    for name, tool in tools.items():
        known = _serialised.setdefault(tool, {})
        key = (name, target, terse)
        if key not in known:
            known[key] = _definition(name, tool, target, terse)
        text = known[key]
        size += len(text) + 1 if isinstance(text, bytes) else 0
        if size > ceiling:
            break
        serialised[name] = text
    return serialised


def _definition(name: str, tool: Tool, target: SchemaTarget, terse: int) -> bytes | str:
    try:
        return dumps_exact({"type": "function", "function": _function(name, tool, target, terse)})
    except ValueError as error:
        return str(error)


def _function(name: str, tool: Tool, target: SchemaTarget, terse: int) -> JSON:
    parameters = compile_schema(tool.parameters, target, terse=terse)
    rules = RULES[target]
    function: JSON = {"name": name}
    if tool.description:
        function["description"] = tool.description if terse < TERSEST else tool.description[:200]
    if parameters["properties"] or rules.free_objects or rules.closed:
        function["parameters"] = parameters
    return {**function, "strict": True} if rules.closed else function


MAX_BYTES = 24_000
"""One compiled schema. A larger one is cut at fewer and fewer levels until it fits."""

TERSEST = 3
"""The most that `compile_schema` leaves out; see its `terse`."""

_DEPTHS = (10, 7, 5, 4, 3, 2, 1)
_DEPTH_WHEN_TERSE = (10, 5, 3, 1)
_SHORT = 120
"""Characters that a description keeps at `terse` 1."""

_PAIRS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum"))
_ANNOTATIONS = ("description", "title", "default", "examples")
_ANYTHING = ("string", "number", "boolean")
_AS_JSON_TEXT = "(a JSON object, written as a string)"


class CannotCompile(ValueError):
    """The schema cannot be made acceptable; the message says why."""


def compile_schema(schema: JSON, target: SchemaTarget, *, terse: int = 0) -> JSON:
    """The schema of a tool's arguments for one kind of model server: deterministic, at most `MAX_BYTES` as JSON.

    No `$ref` is left; the root is an object with `properties`; every array has `items`. What a target cannot
    say is left out: the model is told less, and its arguments are checked against the original all the same.
    `terse` is 1 for short descriptions, 2 for none below the root's properties, 3 for names and types alone.
    Raises CannotCompile.
    """
    reason = f"it has more than {MAX_BYTES:,} bytes even in its shortest form"
    for depth in (depth for depth in _DEPTHS if depth <= _DEPTH_WHEN_TERSE[terse]):
        try:
            compiled = _Compiler(RULES[target], terse).root(dereference(schema, depth=depth))
            if len(dumps_exact(compiled)) <= MAX_BYTES:
                return compiled
        except SchemaTooLarge:
            continue
        except (ValueError, RecursionError) as error:  # halves of characters, levels without end
            reason = str(error)
    raise CannotCompile(reason)


class _Compiler:
    def __init__(self, rules: TargetRules, terse: int) -> None:
        self._rules = rules
        self._terse = terse
        self._nodes = 0

    def root(self, schema: JSON) -> JSON:
        """The arguments as a whole: no server takes alternatives here, so they become one object."""
        properties = members_of(schema)
        for part in _alternatives(schema):
            if isinstance(part, dict):
                properties = {**members_of(part), **properties}
        whole = {**schema, "properties": properties}
        return {"type": "object", **self._annotations(schema, 0), **self._object(whole, 0)}

    def node(self, schema: Any, level: int) -> JSON:
        """One schema below the root, `level` levels deep."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SchemaTooLarge
        if not isinstance(schema, dict):
            schema = {}
        types, nullable = _types(schema)
        options = _alternatives(schema)
        if not options and len(types) > 1 and not (self._rules.type_lists and _is_plain(schema, types)):
            options = [{**schema, "type": name} for name in types]
        if not options:
            return {**self._annotations(schema, level), **self._one(schema, types, nullable, level)}
        parts = [self.node(_without_annotations(part), level) for part in options if not _is_null(part)]
        nullable = nullable or any(_is_null(part) for part in options)
        return self._union(distinct(parts), nullable, self._annotations(schema, level))

    def _union(self, parts: list[JSON], nullable: bool, annotations: JSON) -> JSON:
        if not parts:
            parts = [self._one({}, [], False, 1)]
        if not self._rules.null_is_a_type:  # beside an anyOf nothing may stand
            parts = [inner for part in parts for inner in part.get("anyOf", [part])]
            first = {**annotations, **parts[0], **({"nullable": True} if nullable else {})}
            return {"anyOf": [first, *parts[1:]]} if len(parts) > 1 else first
        if len(parts) == 1 and not nullable:
            return {**annotations, **parts[0]}
        typed = {"type": _first_type(parts)} if self._rules.always_typed else {}
        return {**annotations, **typed, "anyOf": [*parts, *([{"type": "null"}] if nullable else [])]}

    def _one(self, schema: JSON, types: list[str], nullable: bool, level: int) -> JSON:
        """A schema without alternatives."""
        if not types:
            return self._anything(schema, nullable, level)
        if types == ["object"] and not self._rules.free_objects and not members_of(schema):
            return self._json_text(schema, nullable, level)
        compiled: JSON = {"type": types[0] if len(types) == 1 else types}
        compiled |= self._object(schema, level) if "object" in types else {}
        if "array" in types:
            compiled["items"] = self.node(_items(schema), level + 1)
        compiled |= self._limits(schema, types) if self._terse < TERSEST else {}
        compiled |= self._values(schema, types)
        return self._or_null(compiled) if nullable else compiled

    def _anything(self, schema: JSON, nullable: bool, level: int) -> JSON:
        if not self._rules.null_is_a_type:
            return {"type": "string"}
        if self._rules.closed:
            return {"type": [*_ANYTHING, "null"]}
        values: JSON = {
            k: v for k, v in schema.items() if k in ("enum", "const") and k in self._rules.keywords
        }
        if values or not self._rules.always_typed or level > 1:
            return {**({"type": "string"} if self._rules.always_typed and level < 2 else {}), **values}
        parts: list[JSON] = [{"type": name} for name in _ANYTHING]
        parts += [{"type": "object", "properties": {}, "additionalProperties": True}]
        parts += [{"type": "array", "items": {}}, {"type": "null"}]
        return {"type": "string", "anyOf": parts}

    def _json_text(self, schema: JSON, nullable: bool, level: int) -> JSON:
        """An object of unknown members, for servers that have no such thing; the text is read as JSON later."""
        description = self._annotations(schema, level).get("description", "")
        compiled = {"type": "string", "description": f"{description} {_AS_JSON_TEXT}".strip()}
        return self._or_null(compiled) if nullable else compiled

    def _object(self, schema: JSON, level: int) -> JSON:
        properties = members_of(schema)
        required = [name for name in names_in(schema.get("required")) if name in properties]
        compiled: JSON = {
            "properties": {
                name: self._property(part, level + 1, optional=name not in required)
                for name, part in properties.items()
                if part is not False
            }
        }
        if self._rules.closed:
            return {**compiled, "required": list(compiled["properties"]), "additionalProperties": False}
        if required:
            compiled["required"] = [name for name in required if name in compiled["properties"]]
        return {**compiled, **self._additional_properties(schema, level)}

    def _property(self, schema: Any, level: int, *, optional: bool) -> JSON:
        compiled = self.node(schema, level)
        return self._or_null(compiled) if optional and self._rules.closed else compiled

    def _additional_properties(self, schema: JSON, level: int) -> JSON:
        """What members an object may have besides those it names. Grammars take silence for none."""
        if "additionalProperties" not in self._rules.keywords:
            return {}
        additional = schema.get("additionalProperties")
        if isinstance(additional, dict) and additional and self._terse < TERSEST:
            return {"additionalProperties": self.node(additional, level + 2)}
        if additional is False:
            return {"additionalProperties": False}
        free = level > 0 and not members_of(schema)
        return {"additionalProperties": True} if additional is not None or free else {}

    def _limits(self, schema: JSON, types: list[str]) -> JSON:
        """Bounds, formats and patterns, as far as they make sense together."""
        allowed = [key for name in types for key in KEYWORDS_OF_TYPE[name] if key in self._rules.keywords]
        found = {key: schema[key] for key in dict.fromkeys(allowed) if self._is_usable(key, schema.get(key))}
        for low, high in _PAIRS:
            if found.get(low, -math.inf) > found.get(high, math.inf):
                del found[low], found[high]
        if not self._rules.any_regex and "pattern" in found:
            found["pattern"] = portable_pattern(found["pattern"])
        return {key: value for key, value in found.items() if value is not None}

    def _is_usable(self, key: str, value: Any) -> bool:
        if key == "format":
            return isinstance(value, str) and (self._rules.formats is None or value in self._rules.formats)
        if key in ("pattern", "uniqueItems"):
            return isinstance(value, str if key == "pattern" else bool)
        if key in ("patternProperties", "propertyNames"):
            return self._terse == 0 and isinstance(value, dict)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if key in NUMBERS or key == "multipleOf":
            return abs(value) <= self._rules.largest_number
        return value == int(value) and 0 <= value <= self._rules.largest

    def _values(self, schema: JSON, types: list[str]) -> JSON:
        """The values that are legal, when they are listed."""
        listed = parts_of(schema, "enum")
        if "const" in schema:
            if "const" in self._rules.keywords:
                return {"const": schema["const"]}
            listed = [schema["const"]]
        if self._rules.null_is_a_type:
            return {"enum": listed} if listed else {}
        listed = [value for value in listed if isinstance(value, str) and value]
        return {"enum": listed} if listed and types == ["string"] else {}

    def _or_null(self, compiled: JSON) -> JSON:
        rules = self._rules
        if not rules.null_is_a_type:
            return {**compiled, "nullable": True}
        annotations = {key: compiled[key] for key in _ANNOTATIONS if key in compiled}
        bare = {key: value for key, value in compiled.items() if key not in _ANNOTATIONS}
        types = bare.get("type")
        if isinstance(types, list) or (types and rules.type_lists and "const" not in bare):
            names = types if isinstance(types, list) else [types]
            listed = {"enum": distinct([*bare["enum"], None])} if "enum" in bare else {}
            return {**annotations, **bare, "type": distinct([*names, "null"]), **listed}
        parts = bare.get("anyOf", [bare])
        return {
            **annotations,
            **({"type": types} if types else {}),
            "anyOf": distinct([*parts, {"type": "null"}]),
        }

    def _annotations(self, schema: JSON, level: int) -> JSON:
        """What only people and models read."""
        annotations: JSON = {}
        limit = (None, _SHORT, _SHORT if level < 2 else 0, _SHORT if level < 1 else 0)[self._terse]
        if isinstance(text := schema.get("description"), str) and text[:limit]:
            annotations["description"] = (
                text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"
            )
        for key in ("title", "default", "examples"):
            if key in schema and key in self._rules.keywords and self._terse == 0:
                annotations[key] = schema[key]
        return annotations


def _types(schema: JSON) -> tuple[list[str], bool]:
    """The types that a schema allows, declared or implied, without null; and whether null is one."""
    names = [name for name in types_of(schema) if name in KEYWORDS_OF_TYPE]
    nullable = "null" in names or schema.get("nullable") is True
    types = [name for name in names if name != "null"]
    if not types and names != ["null"]:
        types = _implied_types(schema)
    if "number" in types and "integer" in types:
        types.remove("integer")
    return types, nullable or None in parts_of(schema, "enum")


def _implied_types(schema: JSON) -> list[str]:
    if "properties" in schema or "additionalProperties" in schema:
        return ["object"]
    if "items" in schema or "prefixItems" in schema:
        return ["array"]
    values = [schema["const"]] if "const" in schema else parts_of(schema, "enum")
    kinds = {type_of(value) for value in values if value is not None}
    return sorted(kinds) if len(kinds) == 1 else []


def _is_plain(schema: JSON, types: list[str]) -> bool:
    """Whether several types can stand side by side, none of them having parts."""
    return not {"array", "object"} & set(types)


def _alternatives(schema: JSON) -> list[Any]:
    """The parts of `anyOf` or `oneOf`, each with what the schema says for all of them."""
    for key in ("anyOf", "oneOf"):
        if parts := parts_of(schema, key):
            return [_with_common(schema, part) for part in parts if part is not False]
    return []


def _with_common(schema: JSON, part: Any) -> Any:
    if not isinstance(part, dict) or "properties" not in schema:
        shared = {"type": schema["type"]} if isinstance(schema.get("type"), str) else {}
        return {**shared, **part} if isinstance(part, dict) else part
    common = {"type": "object", "properties": schema["properties"], "required": schema.get("required")}
    return merge_all_of({**part, "allOf": [common]})


def _without_annotations(schema: Any) -> Any:
    """A part of a union keeps its description alone."""
    if not isinstance(schema, dict):
        return schema
    return {key: value for key, value in schema.items() if key not in ("title", "default", "examples")}


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        schema.get("type") in ("null", ["null"]) or ("const" in schema and schema["const"] is None)
    )


def _items(schema: JSON) -> Any:
    """One schema for all items; a tuple's become alternatives."""
    listed = schema.get("prefixItems") or schema.get("items")
    if isinstance(listed, list) and listed:
        parts = distinct(listed)
        return parts[0] if len(parts) == 1 else {"anyOf": parts}
    return schema.get("items")


def _first_type(parts: Iterable[JSON]) -> str:
    found = [part["type"] for part in parts if isinstance(part.get("type"), str)]
    return found[0] if found else "string"
