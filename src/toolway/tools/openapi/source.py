"""A service with an OpenAPI document as a tool source: it stays listed, fresh and callable, or says why not."""

from __future__ import annotations

import base64
import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin

import anyio
import orjson

from toolway.errors import SourceError
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.groups import ToolSettings
from toolway.tools.openapi.build_request import RequestRefused, build_request
from toolway.tools.openapi.document import DocumentReader, Place, candidate_places
from toolway.tools.openapi.operation import Credentials, essence, kind_of
from toolway.tools.openapi.transport import Answer, Connections
from toolway.types import JSON, Image, OnProgress, SourceStatus, Tool, ToolResult
from toolway.wire.lenient_json import dumps_text, loads_exact

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds between two tries of a source that failed; they double from the first to the last."""

log = logging.getLogger(__name__)


class OpenAPISource:
    """One endpoint. Its document may be mcpo's list of servers, each with a document of its own."""

    kind = "openapi"

    def __init__(self, endpoint: Endpoint, settings: ToolSettings) -> None:
        self.label = endpoint.label
        self._settings = settings
        self._connections = Connections()
        self._credentials = Credentials.of(endpoint)
        places = (
            (Place(url=endpoint.spec, base=endpoint.url or None),)
            if endpoint.spec
            else candidate_places(endpoint.url)
        )
        self._document = self._reader(places, endpoint.label)
        self._children: dict[str, DocumentReader] = {}
        self._status = SourceStatus()
        self._wake = anyio.Event()

    @property
    def status(self) -> SourceStatus:
        """The newest status; reading it costs nothing."""
        return self._status

    async def run(self, changed: Callable[[], None]) -> None:
        """Read the document now, again each `refresh_interval`, and with backoff while it cannot be read.

        At the end idle connections are closed; a call that is under way closes its own.
        """
        failures = 0
        with closing(self._connections):
            while True:
                self._wake = anyio.Event()
                await self._refresh(changed)
                failures = failures + 1 if self._is_broken() else 0
                with anyio.move_on_after(self._pause(failures)):
                    await self._wake.wait()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Send the tool's request; whatever the server does is a result. HTTP services report no progress."""
        try:
            request = build_request(tool.handle, arguments, self._credentials)
            answer = await self._connections.exchange(
                request, max_bytes=self._settings.max_tool_response_bytes
            )
        except RequestRefused as refusal:
            return ToolResult(text=str(refusal), is_error=True)
        except SourceError as error:
            if error.stage == "connect" and self._status.state == "ready":
                self._wake.set()
            return ToolResult(text=f"The server {tool.server} {error.message}", is_error=True)
        return read_result(answer)

    def _is_broken(self) -> bool:
        return self._status.state != "ready" or any(child.error for child in self._children.values())

    def _pause(self, failures: int) -> float:
        if failures == 0:
            return self._settings.refresh_interval
        return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures - 1, 16)) * random.uniform(0.75, 1.25)

    async def _refresh(self, changed: Callable[[], None]) -> None:
        try:
            await self._document.read()
            await self._read_children()
            status = self._new_status()
        except Exception as error:  # the border of a background task: a fault here must not end the source
            log.exception("%s: its document could not be read", self.label)
            status = self._failed(SourceError(f"could not be read: {type(error).__name__}", stage="parse"))
        if status != self._status:
            self._status = status
            changed()

    async def _read_children(self) -> None:
        """Read the servers that the document lists, side by side; when it is lost, so are they."""
        if self._document.error is not None:
            for child in self._children.values():
                child.mark_unavailable(self._document.error)
            return
        root, imported, known = self._document.url or "", self._document.imported, self._children
        listed = imported.children if imported and "://" in root else ()
        self._children = {name: known.get(name) or self._child(name, path, root) for name, path in listed}
        async with anyio.create_task_group() as tasks:
            for child in self._children.values():
                tasks.start_soon(child.read)

    def _child(self, name: str, path: str, root: str) -> DocumentReader:
        """A listed server: where the link leads, or (behind a proxy that hides a prefix) below the list itself."""
        urls = dict.fromkeys((urljoin(root, path), urljoin(root, f".{path}")))
        return self._reader([Place(url=url, base=url.removesuffix("/openapi.json")) for url in urls], name)

    def _reader(self, places: list[Place] | tuple[Place, ...], server: str) -> DocumentReader:
        return DocumentReader(
            places,
            server=server,
            credentials=self._credentials,
            settings=self._settings,
            connections=self._connections,
        )

    def _new_status(self) -> SourceStatus:
        if self._document.error is not None:
            return self._failed(self._document.error)
        readers = [self._document, *self._children.values()]
        imports = [reader.imported for reader in readers if reader.imported is not None]
        tools = self._tools()
        warnings = [warning for imported in imports for warning in imported.warnings]
        warnings += [str(child.error) for child in self._children.values() if child.error is not None]
        if not tools and not warnings:
            warnings.append("The document lists no operations")
        return SourceStatus(
            state="ready",
            tools=tools,
            protocol=imports[-1].protocol if imports else None,
            warnings=tuple(warnings),
        )

    def _failed(self, error: SourceError) -> SourceStatus:
        known = self._status
        same = (known.error, known.error_stage) == (error.message, error.stage)
        return SourceStatus(
            state="failed",
            tools=self._tools(),
            protocol=known.protocol,
            error=error.message,
            error_at=known.error_at if same else time.time(),
            error_stage=error.stage,
            warnings=known.warnings,
        )

    def _tools(self) -> tuple[Tool, ...]:
        readers = [self._document, *self._children.values()]
        return tuple(tool for reader in readers for tool in reader.tools)


MAX_ERROR_CHARS = 4000

PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The kinds that models take."""

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^,;]*)*;base64,([A-Za-z0-9+/_=\s-]*)", re.ASCII)


def read_result(answer: Answer) -> ToolResult:
    """The result of a call. Anything but a 2xx is an error with its status and what the server said."""
    if not 200 <= answer.status < 300:
        return ToolResult(text=_error(answer), is_error=True)
    if not answer.body.strip():
        return ToolResult(text=f"Done: the server answered {_status(answer)} without content.")
    media_type = essence(answer.content_type)
    if media_type in PICTURES:
        image = Image(media_type=media_type, data=base64.b64encode(answer.body).decode())
        return ToolResult(text=_note(media_type, len(answer.body), "attached"), images=(image,))
    if not _is_text(media_type, answer.body):
        return ToolResult(text=_note(media_type or "data", len(answer.body), "not shown"))
    text = _decoded(answer)
    return _without_data_uris(text) if "data:" in text and ";base64," in text else ToolResult(text=text)


def _is_text(media_type: str, body: bytes) -> bool:
    if media_type == "image/svg+xml" or (media_type and kind_of(media_type) in ("json", "form", "text")):
        return True
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def _decoded(answer: Answer) -> str:
    match = re.search(r"charset=\"?([\w.:-]+)", answer.content_type, re.IGNORECASE)
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
    """JSON text whose data: URIs (mcpo's way to hand over pictures) became notes, with the pictures apart."""
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
    if media_type not in PICTURES:
        return _note(media_type, size, "not shown")
    images.append(Image(media_type=media_type, data=data))
    return _note(media_type, size, f"attached as image {len(images)}")


def _error(answer: Answer) -> str:
    detail = ""
    if answer.body and _is_text(essence(answer.content_type), answer.body):
        detail = _error_detail(_decoded(answer))
    if len(detail) > MAX_ERROR_CHARS:
        detail = f"{detail[:MAX_ERROR_CHARS]}… ({len(detail)} characters)"
    return f"The server answered {_status(answer)}" + (f": {detail}" if detail else " without saying why")


def _status(answer: Answer) -> str:
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
    return detail if isinstance(detail, str) and len(body) == 1 else text.strip()


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
