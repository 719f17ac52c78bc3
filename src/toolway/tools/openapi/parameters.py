"""Parameters and body of an operation -> one flat object of arguments, and where each of them goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from toolway.schema.keywords import types_of
from toolway.tools.openapi.operation import (
    HEADER_NAME,
    RESERVED_HEADERS,
    Body,
    BodyField,
    BodyKind,
    Location,
    Parameter,
    Secret,
    Security,
    essence,
    is_token_field,
    kind_of,
)
from toolway.tools.openapi.schemas import Schemas
from toolway.types import JSON


class UnusableOperation(Exception):
    """An operation cannot be offered; the message is the reason, to follow its name."""


@dataclass(frozen=True, kw_only=True)
class DeclaredOperation:
    """One operation as it stands in the document, at `pointer`."""

    method: str
    path: str
    raw: JSON
    path_item: JSON
    pointer: str

    @property
    def title(self) -> str:
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


def read_inputs(declared: DeclaredOperation, schemas: Schemas, security: Security) -> Inputs:
    """Everything that an operation takes, but its credentials. Raises UnusableOperation."""
    pointer = declared.pointer
    listed = _with_path(declared.path, list(_listed(declared, schemas)))
    hidden = [secret for raw in listed if (secret := security.hides(_location(raw), raw)) is not None]
    slots = [
        _parameter_slot(raw, pointer, schemas)
        for raw in listed
        if _location(raw) in get_args(Location)
        and _is_settable(raw)
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


def argument_names(declared: Sequence[tuple[str, str]]) -> list[str]:
    """A name of its own for each (place, name): the first keeps it, `id` of the body becomes `body_id`."""
    taken: dict[str, int] = {}
    for index, (_, name) in enumerate(declared):
        taken.setdefault(name, index)
    names = []
    for index, (place, name) in enumerate(declared):
        free, count = name, 1
        while taken.setdefault(free, index) != index:
            free = f"{place}_{name}" if count == 1 else f"{place}_{name}_{count}"
            count += 1
        names.append(free)
    return names


def _listed(declared: DeclaredOperation, schemas: Schemas) -> Iterator[JSON]:
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
        raise UnusableOperation("its path has a brace that is not closed")
    forgotten = [
        {"name": name, "in": "path", "schema": {"type": "string"}} for name in named if name not in known
    ]
    return [*forgotten, *(p for p in listed if _location(p) != "path" or p["name"] in named)]


def _location(parameter: JSON) -> str:
    return "query" if (place := parameter.get("in")) == "querystring" else str(place)


def _is_settable(parameter: JSON) -> bool:
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
            properties[name] = member if name not in properties else _all_of(properties[name], member)
        waiting[:0] = part.get("allOf", ())
    if is_open and not is_listed:
        return None
    return Members(properties=properties, required=frozenset(required), open=is_open)


def _all_of(first: JSON, second: JSON) -> JSON:
    return first if first == second else {"allOf": [first, second]}


def _is_choice(schema: JSON, schemas: Schemas) -> bool:
    """Whether its alternatives bring properties of their own; those that only say `required` change nothing."""
    alternatives = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return any(set(schemas.resolved(item)) - {"required", "description", "title"} for item in alternatives)


def file_schema(schema: JSON, schemas: Schemas) -> JSON:
    """A file as an argument: text that holds it as base64 or as a data: URI."""
    resolved = schemas.resolved(schema)
    description = str(schema.get("description") or resolved.get("description") or "").strip()
    hint = "The file as base64, or as a data: URI"
    one = {"type": "string", "description": f"{description}\n{hint}".strip()}
    return {"type": "array", "items": one} if "array" in types_of(resolved) else one


@dataclass(frozen=True, kw_only=True)
class DeclaredBody:
    """A body in the media type that will be sent; `schema` is converted, `required` None when nothing is said."""

    kind: BodyKind
    media_type: str
    schema: JSON
    required: bool | None
    description: str = ""
    encoding: JSON = field(default_factory=dict)

    def field(self, name: str, schema: JSON, schemas: Schemas) -> BodyField:
        """How one property is sent."""
        encoding = self.encoding.get(name)
        encoding = encoding if isinstance(encoding, dict) else {}
        media_type = encoding.get("contentType")
        media_type = media_type.split(",")[0].strip() if isinstance(media_type, str) else None
        style, explode = encoding.get("style"), encoding.get("explode")
        return BodyField(
            argument=name,
            name=name,
            binary=self.kind == "multipart" and is_file(schema, schemas),
            media_type=media_type if media_type and "*" not in media_type else None,
            style=style if isinstance(style, str) else None,
            explode=explode if isinstance(explode, bool) else style in (None, "form"),
        )


def declared_body(
    operation: JSON, parameters: list[JSON], pointer: str, schemas: Schemas
) -> DeclaredBody | None:
    """The body that the operation at `pointer` takes, in any version of OpenAPI; None: it takes none."""
    if "requestBody" in operation:
        return _request_body(operation["requestBody"], pointer, schemas)
    if form := [p for p in parameters if p.get("in") == "formData"]:
        return _form_data(form, operation, pointer, schemas)
    body = next((p for p in parameters if p.get("in") == "body"), None)
    if body is None:
        return None
    media_type = _choose(_media_types(operation, schemas))
    return DeclaredBody(
        kind=kind_of(media_type),
        media_type=_concrete(media_type),
        schema=schemas.convert(body.get("schema"), pointer),
        required=_flag(body.get("required")),
        description=str(body.get("description") or ""),
    )


def _request_body(raw: Any, pointer: str, schemas: Schemas) -> DeclaredBody | None:
    body = schemas.references.resolve(raw)
    content = body.get("content") if isinstance(body, dict) else None
    if not isinstance(content, dict) or not content:
        return None
    chosen = _choose([str(key) for key in content])
    media = schemas.references.resolve(content.get(chosen))
    media = media if isinstance(media, dict) else {}
    encoding = media.get("encoding")
    at = f"{pointer}/requestBody/content/{chosen.replace('~', '~0').replace('/', '~1')}/schema"
    return DeclaredBody(
        kind=kind_of(chosen),
        media_type=_concrete(chosen),
        schema=schemas.convert(media.get("schema"), at),
        required=_flag(body.get("required")),
        description=str(body.get("description") or ""),
        encoding=encoding if isinstance(encoding, dict) else {},
    )


def _form_data(form: list[JSON], operation: JSON, pointer: str, schemas: Schemas) -> DeclaredBody:
    """Swagger 2's `in: formData` parameters as one object."""
    consumed = _media_types(operation, schemas)
    files = any(p.get("type") == "file" for p in form)
    multipart = files or (
        "application/x-www-form-urlencoded" not in consumed and "multipart/form-data" in consumed
    )
    properties = {p["name"]: _described(schemas.convert(p, pointer), p) for p in form}
    schema: JSON = {"type": "object", "properties": properties, "additionalProperties": False}
    schema["required"] = [p["name"] for p in form if p.get("required") is True]
    return DeclaredBody(
        kind="multipart" if multipart else "form",
        media_type="multipart/form-data" if multipart else "application/x-www-form-urlencoded",
        schema=schema,
        required=bool(schema["required"]),
        encoding={
            p["name"]: {"style": "form", "explode": p.get("collectionFormat") == "multi"} for p in form
        },
    )


def _described(schema: JSON, parameter: JSON) -> JSON:
    text = parameter.get("description")
    return {**schema, "description": text.strip()} if isinstance(text, str) and text.strip() else schema


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _media_types(operation: JSON, schemas: Schemas) -> list[str]:
    listed = operation.get("consumes") or schemas.references.at("#/consumes")
    return [str(item) for item in listed] if isinstance(listed, list) and listed else ["application/json"]


def _choose(media_types: list[str]) -> str:
    """The one to send: JSON, else a form, else text, else bytes; the first of those that are alike."""
    return min(media_types, key=lambda media_type: (_KINDS.index(kind_of(media_type)), _oddness(media_type)))


def _oddness(media_type: str) -> int:
    """A patch is JSON too, but a list of steps is harder to write than the changed members."""
    plain = essence(media_type)
    return 0 if plain in ("application/json", "*/*") else 2 if plain == "application/json-patch+json" else 1


_KINDS: tuple[BodyKind, ...] = ("json", "form", "multipart", "text", "binary")


def _concrete(media_type: str) -> str:
    plain, kind = essence(media_type), kind_of(media_type)
    if "*" not in plain and "/" in plain and media_type.isascii() and media_type.isprintable():
        return media_type
    return {"json": "application/json", "text": "text/plain"}.get(kind, "application/octet-stream")


def is_file(schema: JSON, schemas: Schemas) -> bool:
    """Whether a property of a multipart body is a file, or a list of files."""
    schema = schemas.resolved(schema)
    if "array" in types_of(schema) and isinstance(schema.get("items"), dict):
        schema = schemas.resolved(schema["items"])
    media_type = schema.get("contentMediaType")
    return schema.get("format") == "binary" or (
        isinstance(media_type, str) and kind_of(media_type) == "binary"
    )
