"""An operation and the model's arguments -> the request to send, which cannot leave the operation's server."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes

from yarl import URL

from toolway import __version__
from toolway.tools.openapi.operation import Body, BodyField, Credentials, Operation, Parameter
from toolway.types import JSON, record
from toolway.wire.lenient_json import dumps

FIXED_HEADERS = {
    "Accept": "application/json, */*;q=0.8",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"toolway/{__version__}",
}

_PATH_SAFE = "/:@!$&'()*+,;=%"


@record
class Request:
    """A request as it goes out: nothing is encoded or resolved after this."""

    method: str
    url: URL
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


def build_request(operation: Operation, arguments: JSON, credentials: Credentials) -> Request:
    """The request of one call. Raises InvalidArguments, whose message is for the model.

    Path values are quoted and may not move within the path (CVE-2026-32871: `../` in a path parameter); the URL is
    made by plain concatenation; credentials come last, so that no argument can take their place.
    """
    try:
        return _build(operation, arguments, credentials)
    except UnicodeError as error:
        raise InvalidArguments("An argument holds text that is not valid Unicode") from error
    except (ValueError, RecursionError) as error:
        raise InvalidArguments(f"The arguments cannot be sent: {error}") from error


def _build(operation: Operation, arguments: JSON, credentials: Credentials) -> Request:
    query, headers, cookies = _placed(operation, arguments)
    body, media_type = encode_body(operation, arguments)
    if media_type is not None:
        headers["Content-Type"] = media_type
    headers.update(FIXED_HEADERS)
    for secret in operation.secrets:
        if (value := credentials.value(secret)) is None:
            continue
        if secret.location == "header":
            headers[secret.name] = _header_value(secret.name, value)
        else:
            (query if secret.location == "query" else cookies).append((encoded(secret.name), encoded(value)))
    if cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies)
    return Request(
        method=operation.method,
        url=_url(operation, arguments, query),
        headers=credentials.merge_headers(headers),
        body=body,
    )


def _placed(operation: Operation, arguments: JSON) -> tuple[list[Pair], dict[str, str], list[Pair]]:
    """The query, headers and cookies that the arguments make."""
    query: list[Pair] = []
    headers: dict[str, str] = {}
    cookies: list[Pair] = []
    for parameter in operation.parameters:
        value = _value(parameter, arguments)
        if value is None or parameter.location == "path":
            continue
        if parameter.location == "header":
            headers[parameter.name] = _header_value(parameter.argument, in_header(value, parameter.explode))
        else:
            pairs = in_query(
                parameter.name, value, parameter.style, parameter.explode, reserved=parameter.allow_reserved
            )
            (query if parameter.location == "query" else cookies).extend(pairs)
    return _allowed(query, "query", operation), headers, _allowed(cookies, "cookie", operation)


def _value(parameter: Parameter, arguments: JSON) -> Any:
    value = arguments.get(parameter.argument)
    return to_json(value) if parameter.as_json and value is not None else value


def _allowed(pairs: list[Pair], location: str, operation: Operation) -> list[Pair]:
    """Without the pairs that would stand in a credential's place (an exploded object brings names of its own)."""
    return pairs and [
        pair for pair in pairs if (location, unquote(pair[0]).lower()) not in operation.reserved
    ]


def _header_value(name: str, text: str) -> str:
    if not text.isprintable() or not _is_latin(text):
        raise InvalidArguments(
            f"`{name}` goes into a header: it may not hold line breaks, control characters or non-Latin text"
        )
    return text.strip()


def _is_latin(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


def _url(operation: Operation, arguments: JSON, query: list[Pair]) -> URL:
    template = _template(operation.path)
    if len(template) == 1 and not query:
        return _fixed_url(operation.base, template[0])
    search = "&".join(f"{name}={value}" for name, value in query)
    return _checked_url(operation.base, _path(operation, template, arguments), search)


@lru_cache(maxsize=4096)
def _fixed_url(base: str, path: str) -> URL:
    """The URL of an operation whose arguments do not stand in it."""
    return _checked_url(base, path, "")


def _checked_url(operation_base: str, path: str, search: str) -> URL:
    _reject_dots(path)
    url = URL(f"{operation_base}{path}" + (f"?{search}" if search else ""), encoded=True)
    base = _parsed(operation_base)
    if (url.scheme, url.host, url.port, url.user) != (base.scheme, base.host, base.port, None):
        raise InvalidArguments("The arguments would lead the call to another host")
    if not url.raw_path.startswith(base.raw_path.rstrip("/") + "/"):
        raise InvalidArguments("The arguments would lead the call out of its path")
    return url


@lru_cache(maxsize=256)
def _parsed(base: str) -> URL:
    return URL(base, encoded=True)


def _path(operation: Operation, template: Sequence[str], arguments: JSON) -> str:
    parameters = {p.name: p for p in operation.parameters if p.location == "path"}
    return "".join(
        _path_value(parameters[part], arguments) if index % 2 else part for index, part in enumerate(template)
    )


@lru_cache(maxsize=4096)
def _template(path: str) -> tuple[str, ...]:
    """Text that is ready for a URL and, at each odd place, the name of a parameter."""
    parts = re.split(r"\{([^{}]+)\}", path)
    return tuple(part if index % 2 else quote(part, safe=_PATH_SAFE) for index, part in enumerate(parts))


def _path_value(parameter: Parameter, arguments: JSON) -> str:
    value = _value(parameter, arguments)
    text = "" if value is None else in_path(parameter.name, value, parameter.style, parameter.explode)
    if value in (None, "", [], {}) or not text:
        raise InvalidArguments(f"`{parameter.argument}` is a part of the path and may not be empty")
    return text


def _reject_dots(path: str) -> None:
    """No `.` or `..` between slashes, however often it is encoded: a proxy on the way may decode it."""
    while True:
        segments = re.split(r"[/\\]", path)
        if any(segment.partition(";")[0].strip() in (".", "..") for segment in segments):
            raise InvalidArguments("A value in the path may not be `.` or `..`, or hold them between slashes")
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded


Payload = tuple[bytes | None, str | None]


class InvalidArguments(Exception):
    """A call that is not made; the message tells the model why."""


def encode_body(operation: Operation, arguments: JSON) -> Payload:
    """The body and its content type; (None, None) when there is nothing to send. Raises InvalidArguments."""
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
    if body.open and len(members) < len(arguments):
        claimed = {p.argument for p in operation.parameters} | {field.argument for field in body.fields}
        others = [name for name in arguments if name not in claimed]
        members += [(BodyField(argument=name, name=name), arguments[name]) for name in others]
    return members


def _object(body: Body, members: list[Member]) -> Payload:
    if body.kind == "form":
        return _urlencoded(members), body.media_type
    if body.kind == "multipart":
        return _multipart(members)
    return dumps({field.name: value for field, value in members}), body.media_type


def _whole(body: Body, value: Any) -> Payload:
    if body.kind == "binary":
        return read_file(body.argument or "body", value).content, body.media_type
    if body.kind == "text":
        return to_text(value).encode(), _with_charset(body.media_type)
    if body.kind == "json":
        return dumps(value), body.media_type
    if not isinstance(value, dict):
        raise InvalidArguments(f"`{body.argument}` must be an object")
    return _object(body, [(BodyField(argument=name, name=name), item) for name, item in value.items()])


def _with_charset(media_type: str) -> str:
    return media_type if "charset" in media_type.lower() else f"{media_type}; charset=utf-8"


def _urlencoded(members: list[Member]) -> bytes:
    pairs = []
    for member, value in members:
        text = to_json(value) if member.style is None and isinstance(value, dict) else value
        if text is not None:
            pairs += in_query(member.name, text, member.style or "form", member.explode)
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
    """A file from base64 or from a data: URI (whose `name=` parameter names it). Raises InvalidArguments."""
    if not isinstance(value, str):
        raise InvalidArguments(f"`{argument}` must be text: the file as base64, or as a data: URI")
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
        raise InvalidArguments(
            f"`{argument}` is neither base64 nor a data: URI (plain text: `data:text/plain,...`)"
        ) from None


def _multipart(members: list[Member]) -> Payload:
    boundary = f"toolway-{secrets.token_hex(16)}"
    parts = [part for field, value in members for part in _multipart_parts(field, value)]
    content = b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts)
    return content + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _multipart_parts(field: BodyField, value: Any) -> list[bytes]:
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


RESERVED = "/:?@!$'()*,;"
"""What `allowReserved` leaves as it is; never what ends a value or the query."""

_DELIMITERS = {"spaceDelimited": "%20", "pipeDelimited": "%7C", "tabDelimited": "%09"}

Pair = tuple[str, str]


def to_text(value: Any) -> str:
    """A value as plain text: `true`, `12.5`, `Paris`; an object or array as compact JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else to_json(value)


def to_json(value: Any) -> str:
    """A value as compact JSON. Raises ValueError for what JSON cannot say (NaN)."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encoded(text: str, safe: str = "") -> str:
    """Percent-encoded but for letters, digits, `-._~` and what is in `safe`."""
    return quote(text, safe=safe)


def in_query(name: str, value: Any, style: str, explode: bool, *, reserved: bool = False) -> list[Pair]:
    """Encoded (name, value) pairs for a query string or an urlencoded body."""
    safe = RESERVED if reserved else ""
    if style == "deepObject" and isinstance(value, dict | list):
        return [(encoded(key), encoded(text, safe)) for key, text in _deep(name, value)]
    if isinstance(value, dict) and explode:
        return [(encoded(key), encoded(to_text(item), safe)) for key, item in value.items()]
    if isinstance(value, list) and explode:
        return [(encoded(name), encoded(to_text(item), safe)) for item in value]
    if isinstance(value, dict | list):
        joined = _DELIMITERS.get(style, ",").join(_parts(value, lambda text: encoded(text, safe)))
        return [(encoded(name), joined)] if value else []
    return [(encoded(name), encoded(to_text(value), safe))]


def in_path(name: str, value: Any, style: str, explode: bool) -> str:
    """The encoded text that takes the place of `{name}` in a path."""
    parts = _parts(value, encoded, joined=explode)
    if style == "label":
        return "." + ("." if explode else ",").join(parts)
    if style == "matrix":
        return _matrix(encoded(name), value, parts, explode)
    return ",".join(parts)


def in_header(value: Any, explode: bool) -> str:
    """Style `simple`: the parts of an array or object with commas between."""
    return ",".join(_parts(value, str, joined=explode))


def _matrix(name: str, value: Any, parts: list[str], explode: bool) -> str:
    if isinstance(value, dict) and explode:
        return "".join(f";{part}" for part in parts)
    if isinstance(value, list) and explode:
        return "".join(f";{name}={part}" for part in parts)
    return f";{name}={','.join(parts)}"


def _parts(value: Any, encode: Callable[[str], str], *, joined: bool = False) -> list[str]:
    """The encoded parts of a value: an object's are `k, v, k, v`, or `k=v, k=v` when `joined`."""
    if isinstance(value, list):
        return [encode(to_text(item)) for item in value]
    if not isinstance(value, dict):
        return [encode(to_text(value))]
    pairs = [(encode(str(key)), encode(to_text(item))) for key, item in value.items()]
    return [f"{key}={text}" for key, text in pairs] if joined else [part for pair in pairs for part in pair]


def _deep(name: str, value: Any) -> Iterator[Pair]:
    """`name[key][key]=text`; plain items of an array as `name[]`, others by their index."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _deep(f"{name}[{key}]", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _deep(f"{name}[{index}]" if isinstance(item, dict | list) else f"{name}[]", item)
    else:
        yield name, to_text(value)
