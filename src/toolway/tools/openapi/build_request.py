"""An operation and the model's arguments -> the request to send, which cannot leave the operation's server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from yarl import URL

from toolway import __version__
from toolway.tools.openapi.encode_body import Refused, payload
from toolway.tools.openapi.operation import Operation, Parameter
from toolway.tools.openapi.param_styles import Pair, encoded, in_header, in_path, in_query, to_json
from toolway.tools.openapi.security import Credentials
from toolway.types import JSON

FIXED_HEADERS = {
    "Accept": "application/json, */*;q=0.8",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": f"toolway/{__version__}",
}

_PATH_SAFE = "/:@!$&'()*+,;=%"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it goes out: nothing is encoded or resolved after this."""

    method: str
    url: URL
    headers: dict[str, str] = field(repr=False)
    body: bytes | None = field(default=None, repr=False)


def build_request(operation: Operation, arguments: JSON, credentials: Credentials) -> Request:
    """The request of one call. Raises Refused, whose message is for the model.

    Path values are quoted and may not move within the path (CVE-2026-32871: `../` in a path parameter); the URL is
    made by plain concatenation; credentials come last, so that no argument can take their place.
    """
    try:
        return _build(operation, arguments, credentials)
    except UnicodeError as error:
        raise Refused("An argument holds text that is not valid Unicode") from error
    except (ValueError, RecursionError) as error:
        raise Refused(f"The arguments cannot be sent: {error}") from error


def _build(operation: Operation, arguments: JSON, credentials: Credentials) -> Request:
    query, headers, cookies = _placed(operation, arguments)
    body, media_type = payload(operation, arguments)
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
        headers=credentials.laid_over(headers),
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
    return [pair for pair in pairs if (location, unquote(pair[0]).lower()) not in operation.reserved]


def _header_value(name: str, text: str) -> str:
    if not text.isprintable() or not _is_latin(text):
        raise Refused(
            f"`{name}` goes into a header: it may not hold line breaks, control characters or non-Latin text"
        )
    return text.strip()


def _is_latin(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


def _url(operation: Operation, arguments: JSON, query: list[Pair]) -> URL:
    path = _path(operation, arguments)
    search = "&".join(f"{name}={value}" for name, value in query)
    url = URL(f"{operation.base}{path}" + (f"?{search}" if search else ""), encoded=True)
    base = _parsed(operation.base)
    if (url.scheme, url.host, url.port, url.user) != (base.scheme, base.host, base.port, None):
        raise Refused("The arguments would lead the call to another host")
    if not url.raw_path.startswith(base.raw_path.rstrip("/") + "/"):
        raise Refused("The arguments would lead the call out of its path")
    return url


@lru_cache(maxsize=256)
def _parsed(base: str) -> URL:
    return URL(base, encoded=True)


def _path(operation: Operation, arguments: JSON) -> str:
    parameters = {p.name: p for p in operation.parameters if p.location == "path"}
    path = "".join(
        _path_value(parameters[part], arguments) if index % 2 else part
        for index, part in enumerate(_template(operation.path))
    )
    _refuse_dots(path)
    return path


@lru_cache(maxsize=4096)
def _template(path: str) -> tuple[str, ...]:
    """Text that is ready for a URL and, at each odd place, the name of a parameter."""
    parts = re.split(r"\{([^{}]+)\}", path)
    return tuple(part if index % 2 else quote(part, safe=_PATH_SAFE) for index, part in enumerate(parts))


def _path_value(parameter: Parameter, arguments: JSON) -> str:
    value = _value(parameter, arguments)
    text = "" if value is None else in_path(parameter.name, value, parameter.style, parameter.explode)
    if value in (None, "", [], {}) or not text:
        raise Refused(f"`{parameter.argument}` is a part of the path and may not be empty")
    return text


def _refuse_dots(path: str) -> None:
    """No `.` or `..` between slashes, however often it is encoded: a proxy on the way may decode it."""
    while True:
        segments = re.split(r"[/\\]", path)
        if any(segment.partition(";")[0].strip() in (".", "..") for segment in segments):
            raise Refused("A value in the path may not be `.` or `..`, or hold them between slashes")
        decoded = unquote(path)
        if decoded == path:
            return
        path = decoded
