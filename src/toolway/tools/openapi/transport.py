"""Exchanges with the servers of a source: same origin only, bounded in size, their answers as what the model reads."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import field, replace
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin

import orjson
from yarl import URL

from toolway.errors import SourceError
from toolway.net.client import ClientCertificate, HttpClient, Origin
from toolway.net.connection import Connection
from toolway.net.decompress import BrokenBody, OversizedBody, UnknownEncoding, read_body
from toolway.net.errors import Fault, HttpError
from toolway.net.proxy import proxy_for
from toolway.tools.openapi.build_request import Request
from toolway.tools.openapi.operation import essence, kind_of
from toolway.types import JSON, Header, Image, ToolResult, record
from toolway.wire.lenient_json import dumps_text, loads_exact

CONNECT_SECONDS = 10.0
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""What may be sent again when it met the server closing a connection that had been used before (RFC 9110, 9.2.2)."""


@record
class HttpResponse:
    """A complete answer: `body` is decompressed, `url` where it finally came from."""

    status: int
    headers: Mapping[bytes, bytes] = field(repr=False)
    body: bytes = field(repr=False)
    url: URL

    def header(self, name: bytes) -> str | None:
        """The first header of this name, which is lower-case."""
        value = self.headers.get(name)
        return None if value is None else value.decode(errors="surrogateescape")

    @property
    def content_type(self) -> str:
        return self.header(b"content-type") or ""


class OversizedResponse(SourceError):
    """An answer has more bytes than it may have."""


class Connections:
    """What one source keeps open to its servers: a client for each origin. No cookies."""

    def __init__(self, certificate: ClientCertificate | None = None) -> None:
        self._certificate = certificate
        self._clients: dict[tuple[str, str | None, int | None, str | None], HttpClient] = {}

    async def exchange(self, request: Request, *, max_bytes: int) -> HttpResponse:
        """Send a request and read the whole answer, at most `max_bytes` of it when decompressed.

        A redirect is followed within the same origin: of GET and HEAD any, of other methods those that keep method and
        body (307 and 308), or say where to GET what came of it (303; RFC 9110, 15.4). Raises SourceError (stage
        "connect" or "fetch") with a message that follows the server's name and holds no URL. The caller holds the
        deadline.
        """
        try:
            for _ in range(MAX_REDIRECTS + 1):
                answer = await self._once(request, max_bytes)
                if answer.status not in _REDIRECTS or (target := answer.header(b"location")) is None:
                    return answer
                request = _redirected(request, target, answer.status)
        except HttpError as error:
            raise _source_error(error) from error
        except ValueError as error:
            raise _source_error(HttpError(Fault.UNSENDABLE, str(error))) from error
        raise SourceError(f"redirects more than {MAX_REDIRECTS} times", stage="fetch")

    def close(self) -> None:
        """Close what is idle; exchanges that are under way close their connections themselves."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    async def _once(self, request: Request, max_bytes: int) -> HttpResponse:
        headers = _lines(request)
        async with self._client(request.url, headers).request(
            request.method,
            request.url.raw_path_qs.encode(),
            headers=headers,
            body=request.body,
            repeatable=request.method in _IDEMPOTENT,
        ) as connection:
            return await _answer(connection, request.url, max_bytes)

    def _client(self, url: URL, headers: list[Header]) -> HttpClient:
        """The client of the URL's origin, under the name that a configured Host header gives it."""
        named = dict(headers).get(b"host")
        host = None if named is None else named.decode()
        key = (url.scheme, url.raw_host, url.port, host)
        client = self._clients.get(key)
        if client is None:
            client = self._clients[key] = HttpClient(
                _origin(url, host),
                connect=CONNECT_SECONDS,
                proxy=proxy_for(str(url.origin())),
                certificate=self._certificate,
            )
        return client


def _origin(url: URL, host: str | None) -> Origin:
    if url.scheme not in ("http", "https"):
        raise ValueError("not an HTTP URL")
    origin = Origin.of(str(url.origin()))
    return replace(origin, authority=host.encode()) if host is not None else origin


def _lines(request: Request) -> list[Header]:
    # Also what a server sent and gets back, an ETag, whatever its bytes are.
    lines = [
        (name.lower().encode(), value.encode("utf-8", "surrogateescape"))
        for name, value in request.headers.items()
    ]
    if request.url.user is not None and all(name != b"authorization" for name, _ in lines):
        pair = f"{request.url.user}:{request.url.password or ''}".encode()
        lines.append((b"authorization", b"Basic " + base64.b64encode(pair)))
    return lines


async def _answer(connection: Connection, url: URL, max_bytes: int) -> HttpResponse:
    response = connection.response
    headers = dict(reversed(response.headers))  # of several headers with one name the first
    encoding = headers.get(b"content-encoding", b"").decode("latin-1")
    body = await _read(connection, encoding, max_bytes)
    return HttpResponse(status=response.status, headers=headers, body=body, url=url)


def _redirected(request: Request, target: str, status: int) -> Request:
    if request.method not in ("GET", "HEAD") and status not in (303, 307, 308):
        raise SourceError(f"answered {status}, a redirect, which is followed for GET only", stage="fetch")
    try:
        url = URL(urljoin(str(request.url), target)).with_fragment(None)
        same = url.origin() == request.url.origin()
    except ValueError as error:
        raise SourceError(f"answered {status} with a redirect to nowhere", stage="fetch") from error
    if not same:
        raise SourceError(
            f"answered {status}, a redirect to another host, which is not followed", stage="fetch"
        )
    if status != 303 or request.method == "HEAD":
        return replace(request, url=url)
    headers = {name: value for name, value in request.headers.items() if name.lower() != "content-type"}
    return Request(method="GET", url=url, headers=headers)


async def _read(connection: Connection, encoding: str, max_bytes: int) -> bytes:
    try:
        return await read_body(connection.receive, encoding, max_bytes)
    except OversizedBody as error:
        raise OversizedResponse(f"answered more than {error} bytes", stage="fetch") from error
    except UnknownEncoding as error:
        raise SourceError(
            f"answered in an encoding that was not asked for ({error})", stage="fetch"
        ) from error
    except BrokenBody as error:
        raise SourceError("sent compressed data that is broken", stage="fetch") from error


_NOT_ACCEPTED = f"took no connection within {CONNECT_SECONDS:.0f} s"
_WHILE_READING = frozenset({Fault.CUT_BODY, Fault.NOT_HTTP})


def _source_error(error: HttpError) -> SourceError:
    """What a person or a model can act on. It follows the server's name and holds no URL."""
    if error.fault is Fault.NOT_ACCEPTED:
        return SourceError(_NOT_ACCEPTED, stage="connect")
    return SourceError(error.words, stage="fetch" if error.fault in _WHILE_READING else "connect")


MAX_ERROR_CHARS = 4000

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The kinds that models take."""

_CHARSET = re.compile(r"charset=\"?([\w.:-]+)", re.IGNORECASE)
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^,;]*)*;base64,([A-Za-z0-9+/_=\s-]*)", re.ASCII)


def read_result(answer: HttpResponse) -> ToolResult:
    """The result of a call. Anything but a 2xx is an error with its status and what the server said."""
    if not 200 <= answer.status < 300:
        return ToolResult(text=_error(answer), is_error=True)
    if not answer.body.strip():
        return ToolResult(text=f"Done: the server answered {_status(answer)} without content.")
    media_type = essence(answer.content_type)
    if media_type == "application/json":  # most
        return _text_result(_decoded(answer))
    if media_type in IMAGE_TYPES:
        image = Image(media_type=media_type, data=base64.b64encode(answer.body).decode())
        note = _note(media_type, len(answer.body), "image 1 of this result")
        return ToolResult(text=note, images=(image,), raw=partial(_image_content, image))
    if not _is_text(media_type, answer.body):
        return ToolResult(text=_note(media_type or "data", len(answer.body), "not shown"))
    return _text_result(_decoded(answer))


def _text_result(text: str) -> ToolResult:
    return _without_data_uris(text) if "data:" in text and ";base64," in text else ToolResult(text=text)


def _image_content(image: Image) -> JSON:
    """The image alone, as MCP has it."""
    return {"content": [{"type": "image", "mimeType": image.media_type, "data": image.data}]}


def _is_text(media_type: str, body: bytes) -> bool:
    if media_type == "image/svg+xml" or (media_type and kind_of(media_type) in ("json", "form", "text")):
        return True
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def _decoded(answer: HttpResponse) -> str:
    match = _CHARSET.search(answer.content_type)
    try:
        text = answer.body.decode(match[1] if match else "utf-8", errors="replace")
    except LookupError:
        text = answer.body.decode(errors="replace")
    return text.removeprefix("\ufeff")


def _note(media_type: str, size: int, what: str) -> str:
    return f"[{media_type}, {_size(size)}: {what}]"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _without_data_uris(text: str) -> ToolResult:
    """JSON text whose data: URIs (mcpo's way to hand over images) became notes, with the images apart."""
    images: list[Image] = []
    try:
        value = loads_exact(text)
    except ValueError:
        return ToolResult(
            text=_DATA_URI.sub(lambda match: _take_image(match, images), text), images=tuple(images)
        )
    value = _replace_data_uris(value, images)
    shown = value if isinstance(value, str) else dumps_text(value)
    return ToolResult(text=shown, images=tuple(images))


def _replace_data_uris(value: Any, images: list[Image], depth: int = 0) -> Any:
    if isinstance(value, str) and (match := _DATA_URI.fullmatch(value)) is not None:
        return _take_image(match, images)
    if isinstance(value, list) and depth < 32:
        return [_replace_data_uris(item, images, depth + 1) for item in value]
    if isinstance(value, dict) and depth < 32:
        return {key: _replace_data_uris(item, images, depth + 1) for key, item in value.items()}
    return value


def _take_image(match: re.Match[str], images: list[Image]) -> str:
    media_type, data = match[1].lower(), "".join(match[2].split())
    size = len(data.rstrip("=")) * 3 // 4
    if media_type not in IMAGE_TYPES:
        return _note(media_type, size, "not shown")
    images.append(Image(media_type=media_type, data=data))
    return _note(media_type, size, f"image {len(images)} of this result")


def _error(answer: HttpResponse) -> str:
    detail = ""
    if answer.body and _is_text(essence(answer.content_type), answer.body):
        detail = _error_detail(_decoded(answer))
    if len(detail) > MAX_ERROR_CHARS:
        detail = f"{detail[:MAX_ERROR_CHARS]}… ({len(detail)} characters)"
    return f"The server answered {_status(answer)}" + (f": {detail}" if detail else " without saying why")


def _status(answer: HttpResponse) -> str:
    try:
        return f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        return str(answer.status)


def _error_detail(text: str) -> str:
    """The part of an error that a model can use."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.strip()
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, dict) and isinstance(detail.get("message"), str):
        return _mcpo(detail)
    if (
        isinstance(detail, list)
        and detail
        and all(isinstance(item, dict) and "msg" in item for item in detail)
    ):
        return "; ".join(_validation_line(item) for item in detail)
    is_told = isinstance(detail, str) and (len(body) == 1 or body.keys() >= {"title", "status"})  # RFC 9457
    return str(detail) if is_told else text.strip()


_WRAPPED = re.compile(r"^\d{3}: \{'message': (?P<quote>['\"])(?P<message>.*)(?P=quote)\}$", re.DOTALL)


def _mcpo(detail: dict[str, Any]) -> str:
    """mcpo says `{"message": "Unexpected error", "error": "500: {'message': '...'}"}` when a tool reports an error."""
    error = detail.get("error")
    if not isinstance(error, str):
        return str(detail["message"])
    wrapped = _WRAPPED.match(error)
    return _unescaped(wrapped["message"]) if wrapped else f"{detail['message']}: {error}"


def _unescaped(text: str) -> str:
    """Python's repr of a text, read back as far as it matters."""
    known = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: known.get(match[1], match[1]), text, flags=re.DOTALL)


def _validation_line(item: dict[str, Any]) -> str:
    """One of FastAPI's 422 entries: `body.city: Field required`."""
    place = item.get("loc")
    return (
        f"{'.'.join(map(str, place))}: {item['msg']}"
        if isinstance(place, list) and place
        else str(item["msg"])
    )
