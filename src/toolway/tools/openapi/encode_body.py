"""The arguments of a call -> the bytes of its body and their media type."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from toolway.tools.openapi.operation import Body, BodyField, Operation
from toolway.tools.openapi.param_styles import in_query, to_json, to_text
from toolway.types import JSON

Payload = tuple[bytes | None, str | None]


class Refused(Exception):
    """A call that is not made; the message tells the model why."""


def payload(operation: Operation, arguments: JSON) -> Payload:
    """The body and its content type; (None, None) when there is nothing to send. Raises Refused."""
    body = operation.body
    if body is None:
        return None, None
    if body.argument is not None:
        if arguments.get(body.argument) is None and not body.required:
            return None, None
        return _whole(body, arguments.get(body.argument))
    members = _members(operation, body, arguments)
    if not members and not body.required:
        return None, None
    return _object(body, members)


Member = tuple[BodyField, Any]


def _members(operation: Operation, body: Body, arguments: JSON) -> list[Member]:
    """The body's fields that are given, then (in an open body) the arguments that nothing else claims."""
    members = [(field, arguments[field.argument]) for field in body.fields if field.argument in arguments]
    if body.open:
        claimed = {p.argument for p in operation.parameters} | {field.argument for field in body.fields}
        others = [name for name in arguments if name not in claimed]
        members += [(BodyField(argument=name, name=name), arguments[name]) for name in others]
    return members


def _object(body: Body, members: list[Member]) -> Payload:
    if body.kind == "form":
        return _urlencoded(members), body.media_type
    if body.kind == "multipart":
        return _multipart(members)
    return _json({field.name: value for field, value in members}), body.media_type


def _whole(body: Body, value: Any) -> Payload:
    if body.kind == "binary":
        return read_file(body.argument or "body", value).content, body.media_type
    if body.kind == "text":
        return to_text(value).encode(), _with_charset(body.media_type)
    if body.kind == "json":
        return _json(value), body.media_type
    if not isinstance(value, dict):
        raise Refused(f"`{body.argument}` must be an object")
    return _object(body, [(BodyField(argument=name, name=name), item) for name, item in value.items()])


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers over 64 bits
        return to_json(value).encode()


def _with_charset(media_type: str) -> str:
    return media_type if "charset" in media_type.lower() else f"{media_type}; charset=utf-8"


def _urlencoded(members: list[Member]) -> bytes:
    pairs = []
    for field, value in members:
        if field.style is None and isinstance(value, dict):
            value = to_json(value)  # noqa: PLW2901
        if value is not None:
            pairs += in_query(field.name, value, field.style or "form", field.explode)
    return "&".join(f"{name}={value}" for name, value in pairs).encode()


@dataclass(frozen=True, kw_only=True)
class File:
    """A file out of an argument."""

    content: bytes
    media_type: str | None = None
    name: str | None = None


_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),(.*)", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


def read_file(argument: str, value: Any) -> File:
    """A file from base64 or from a data: URI (whose `name=` parameter names it). Raises Refused."""
    if not isinstance(value, str):
        raise Refused(f"`{argument}` must be text: the file as base64, or as a data: URI")
    if (uri := _DATA_URI.fullmatch(value.strip())) is None:
        return File(content=_base64(argument, value))
    media_type, options, data = uri.groups()
    named = re.search(r";(?:file)?name=([^;]+)", options)
    return File(
        content=_base64(argument, data) if options.endswith(";base64") else unquote_to_bytes(data),
        media_type=media_type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type, re.ASCII) else None,
        name=unquote_to_bytes(named[1]).decode(errors="replace") if named else None,
    )


def _base64(argument: str, text: str) -> bytes:
    compact = re.sub(r"\s+", "", unquote_to_bytes(text).decode("latin-1") if "%" in text else text)
    try:
        if _BASE64.fullmatch(compact) is None:
            raise ValueError
        plain = compact.rstrip("=").translate(str.maketrans("-_", "+/"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise Refused(
            f"`{argument}` is neither base64 nor a data: URI (plain text: `data:text/plain,...`)"
        ) from None


def _multipart(members: list[Member]) -> Payload:
    boundary = f"toolway-{secrets.token_hex(16)}"
    parts = [part for field, value in members for part in _parts(field, value)]
    content = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    return content + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _parts(field: BodyField, value: Any) -> list[bytes]:
    if value is None:
        return []
    items = value if isinstance(value, list) and (field.binary or not _any_nested(value)) else [value]
    return [_part(field, item) for item in items]


def _any_nested(value: list[Any]) -> bool:
    return any(isinstance(item, dict | list) for item in value)


def _part(field: BodyField, value: Any) -> bytes:
    disposition = f'form-data; name="{_quoted(field.name)}"'
    if field.binary:
        file = read_file(field.argument, value)
        disposition += f'; filename="{_quoted(file.name or field.name)}"'
        media_type, content = file.media_type or field.media_type or "application/octet-stream", file.content
    else:
        media_type = field.media_type or ("application/json" if isinstance(value, dict | list) else "")
        content = to_text(value).encode()
    head = f"Content-Disposition: {disposition}\r\n"
    if media_type:
        head += f"Content-Type: {media_type}\r\n"
    return f"{head}\r\n".encode() + content


def _quoted(name: str) -> str:
    """A name in a part's header, as browsers write it (WHATWG, multipart/form-data)."""
    return name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
