"""The request body that an operation declares: which of its media types to send, and its schema."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from toolway.tools.openapi.operation import BodyField, BodyKind
from toolway.tools.openapi.schemas import Schemas, types_of
from toolway.types import JSON


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
    media_type = _choose(_consumed(operation, schemas))
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
    consumed = _consumed(operation, schemas)
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


def _consumed(operation: JSON, schemas: Schemas) -> list[str]:
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
_TEXT = re.compile(r"text/.*|.*[/+](xml|yaml|x-yaml|x-ndjson|ndjson|jsonl|graphql|javascript|csv)", re.DOTALL)


def kind_of(media_type: str) -> BodyKind:
    """How a media type is written. One that is none (`new` in a real document) is taken for JSON."""
    plain = essence(media_type)
    if plain == "application/x-www-form-urlencoded":
        return "form"
    if plain.startswith("multipart/"):
        return "multipart"
    if _TEXT.fullmatch(plain):
        return "text"
    return "json" if "json" in plain or plain in ("*/*", "application/*") or "/" not in plain else "binary"


def essence(media_type: str) -> str:
    """A media type without its parameters, lower case."""
    return media_type.partition(";")[0].strip().lower()


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
