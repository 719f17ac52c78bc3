"""Parameters and body of an operation -> one flat object of arguments, and where each of them goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from toolway.tools.openapi.operation import Body, BodyField, Location, Parameter, Secret
from toolway.tools.openapi.request_body import DeclaredBody, declared_body
from toolway.tools.openapi.schemas import Schemas, types_of
from toolway.tools.openapi.security import HEADER_NAME, RESERVED_HEADERS, Security, is_token_field
from toolway.types import JSON


class Unusable(Exception):
    """An operation cannot be offered; the message is the reason, to follow its name."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """One operation as it stands in the document, at `pointer`."""

    method: str
    path: str
    raw: JSON
    path_item: JSON
    pointer: str

    @property
    def said(self) -> str:
        return f"{self.method.upper()} {self.path}"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What an operation takes. `schema` is its flat object, bundled; `hidden` the parameters that are keys."""

    schema: JSON
    parameters: tuple[Parameter, ...]
    body: Body | None
    hidden: tuple[Secret, ...]


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One member of the flat object before it has its final name."""

    origin: str
    name: str
    schema: JSON
    required: bool
    target: Parameter | BodyField | None = None


def read_inputs(declared: Declared, schemas: Schemas, security: Security) -> Inputs:
    """Everything that an operation takes, but its credentials. Raises Unusable."""
    pointer = declared.pointer
    listed = _with_path(declared.path, list(_listed(declared, schemas)))
    hidden = [secret for raw in listed if (secret := security.hides(_location(raw), raw)) is not None]
    slots = [
        _parameter_slot(raw, pointer, schemas)
        for raw in listed
        if _location(raw) in get_args(Location)
        and _may_be_set(raw)
        and not security.hides(_location(raw), raw)
    ]
    body = declared_body(declared.raw, listed, pointer, schemas)
    body_slots, open_body = _body_slots(body, schemas) if body is not None else ([], False)
    names = argument_names([(slot.origin, slot.name) for slot in (*slots, *body_slots)])
    named = list(zip(names, (*slots, *body_slots), strict=True))
    return Inputs(
        schema=schemas.bundle(_flat(named, more=open_body)),
        parameters=tuple(
            replace(slot.target, argument=name) for name, slot in named if isinstance(slot.target, Parameter)
        ),
        body=_body(body, named[len(slots) :], open_body) if body is not None else None,
        hidden=tuple(hidden),
    )


def argument_names(wanted: Sequence[tuple[str, str]]) -> list[str]:
    """A name of its own for each (place, name): the first keeps it, `id` of the body becomes `body_id`."""
    taken: dict[str, int] = {}
    for index, (_, name) in enumerate(wanted):
        taken.setdefault(name, index)
    names = []
    for index, (place, name) in enumerate(wanted):
        free, count = name, 1
        while taken.setdefault(free, index) != index:
            free = f"{place}_{name}" if count == 1 else f"{place}_{name}_{count}"
            count += 1
        names.append(free)
    return names


def _listed(declared: Declared, schemas: Schemas) -> Iterator[JSON]:
    """The declared parameters, references followed; the operation's win over the path's (by name and place)."""
    merged: dict[tuple[str, str], JSON] = {}
    for level in (declared.path_item, declared.raw):
        listed = level.get("parameters")
        for raw in listed if isinstance(listed, list) else ():
            parameter = schemas.references.resolve(raw)
            if isinstance(parameter, dict) and isinstance(parameter.get("name"), str):
                merged[parameter["name"], _location(parameter)] = parameter
    order = {location: index for index, location in enumerate(get_args(Location))}
    yield from sorted(merged.values(), key=lambda parameter: order.get(_location(parameter), len(order)))


def _with_path(path: str, listed: list[JSON]) -> list[JSON]:
    """The parameters with those that the path names and the author forgot, without those that it does not name."""
    named = dict.fromkeys(re.findall(r"\{([^{}]+)\}", path))
    known = {p["name"] for p in listed if _location(p) == "path"}
    if re.search(r"[{}]", re.sub(r"\{[^{}]+\}", "", path)):
        raise Unusable("its path has a brace that is not closed")
    forgotten = [
        {"name": name, "in": "path", "schema": {"type": "string"}} for name in named if name not in known
    ]
    return [*forgotten, *(p for p in listed if _location(p) != "path" or p["name"] in named)]


def _location(parameter: JSON) -> str:
    return "query" if (place := parameter.get("in")) == "querystring" else str(place)


def _may_be_set(parameter: JSON) -> bool:
    if parameter["in"] != "header":
        return bool(parameter["name"])
    name = parameter["name"]
    return bool(HEADER_NAME.fullmatch(name)) and name.lower() not in RESERVED_HEADERS


def _parameter_slot(raw: JSON, pointer: str, schemas: Schemas) -> _Slot:
    location: Any = _location(raw)
    content = raw.get("content")
    media_type, media = next(iter(content.items()), ("", {})) if isinstance(content, dict) else ("", {})
    source = media.get("schema") if content and isinstance(media, dict) else raw.get("schema", raw)
    schema = schemas.convert(source, pointer)
    if isinstance(raw.get("description"), str) and raw["description"].strip():
        schema = {**schema, "description": raw["description"].strip()}
    style, explode = _style(raw, location)
    target = Parameter(
        argument=raw["name"],
        name=raw["name"],
        location=location,
        required=location == "path" or raw.get("required") is True,
        style=style,
        explode=explode,
        allow_reserved=raw.get("allowReserved") is True,
        as_json="json" in media_type,
    )
    return _Slot(origin=location, name=raw["name"], schema=schema, required=target.required, target=target)


_COLLECTIONS = {
    "multi": ("form", True),
    "ssv": ("spaceDelimited", False),
    "tsv": ("tabDelimited", False),
    "pipes": ("pipeDelimited", False),
}


def _style(raw: JSON, location: str) -> tuple[str, bool]:
    usual = "form" if location in ("query", "cookie") else "simple"
    if "schema" not in raw and "content" not in raw:  # Swagger 2
        return _COLLECTIONS.get(str(raw.get("collectionFormat")), (usual, False))
    style = str(raw.get("style") or usual)
    explode = raw.get("explode")
    return style, explode if isinstance(explode, bool) else style == "form"


def _body_slots(body: DeclaredBody, schemas: Schemas) -> tuple[list[_Slot], bool]:
    """The members that a body adds to the flat object, and whether it takes others besides."""
    members = object_members(body.schema, schemas) if body.kind in ("json", "form", "multipart") else None
    if members is None:
        return [_whole(body, schemas)], False
    slots = []
    for name, schema in members.properties.items():
        if body.kind == "form" and is_token_field(name, schema):
            continue
        target = body.field(name, schema, schemas)
        # `required` of the body left out means false, but authors leave it out who require members of it
        required = name in members.required and body.required is not False
        shown = file_schema(schema, schemas) if target.binary else schema
        slots.append(_Slot(origin="body", name=name, schema=shown, required=required, target=target))
    return slots, members.open


def _whole(body: DeclaredBody, schemas: Schemas) -> _Slot:
    schema = file_schema(body.schema, schemas) if body.kind == "binary" else body.schema
    if body.kind == "text" and "string" not in types_of(schemas.resolved(schema)):
        schema = {"type": "string"}
    if "description" not in schema:
        text = body.description or f"The request body ({body.media_type})"
        schema = {**schema, "description": text}
    return _Slot(origin="body", name="body", schema=schema, required=body.required is True)


def _body(body: DeclaredBody, named: list[tuple[str, _Slot]], more: bool) -> Body:
    fields = tuple(replace(s.target, argument=name) for name, s in named if isinstance(s.target, BodyField))
    whole = next((name for name, slot in named if slot.target is None), None)
    return Body(
        kind=body.kind,
        media_type=body.media_type,
        required=body.required is True,
        argument=whole,
        fields=fields,
        open=more,
    )


def _flat(named: list[tuple[str, _Slot]], *, more: bool) -> JSON:
    schema: JSON = {"type": "object", "properties": {name: slot.schema for name, slot in named}}
    if required := [name for name, slot in named if slot.required]:
        schema["required"] = required
    if named and not more:
        schema["additionalProperties"] = False  # a misspelt optional argument would vanish without a word
    return schema


@dataclass(frozen=True, kw_only=True)
class Members:
    """The properties of an object schema, its `allOf` merged in; `open` when it takes others besides."""

    properties: JSON
    required: frozenset[str]
    open: bool


def object_members(schema: JSON, schemas: Schemas) -> Members | None:
    """What a converted schema says of an object; None when it is another value, a choice of objects, or any object.

    One that lists its members and has none (how many say "no arguments") is not any object.
    """
    properties: JSON = {}
    required: set[str] = set()
    is_open, is_listed = True, False
    waiting, seen = [schema], set[int]()
    while waiting:
        part = schemas.resolved(waiting.pop(0))
        if id(part) in seen:
            continue
        seen.add(id(part))
        if set(types_of(part)) - {"object", "null"} or _is_choice(part, schemas):
            return None
        is_listed |= "properties" in part
        is_open &= part.get("additionalProperties") is not False
        required.update(part.get("required", ()))
        for name, member in part.get("properties", {}).items():
            properties[name] = member if name not in properties else _both(properties[name], member)
        waiting[:0] = part.get("allOf", ())
    if is_open and not is_listed:
        return None
    return Members(properties=properties, required=frozenset(required), open=is_open)


def _both(first: JSON, second: JSON) -> JSON:
    return first if first == second else {"allOf": [first, second]}


def _is_choice(schema: JSON, schemas: Schemas) -> bool:
    """Whether its alternatives bring properties of their own; those that only say `required` change nothing."""
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return any(set(schemas.resolved(item)) - {"required", "description", "title"} for item in alternatives)


def file_schema(schema: JSON, schemas: Schemas) -> JSON:
    """A file as an argument: text that holds it as base64 or as a data: URI."""
    resolved = schemas.resolved(schema)
    said = str(schema.get("description") or resolved.get("description") or "").strip()
    hint = "The file as base64, or as a data: URI"
    one = {"type": "string", "description": f"{said}\n{hint}".strip()}
    return {"type": "array", "items": one} if "array" in types_of(resolved) else one
