"""A service with an OpenAPI document as a tool source: it stays listed, fresh and callable, or says why not.

Its document is read again only when it has changed.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urljoin

import anyio
import anyio.to_thread
from yarl import URL

from toolway.errors import SourceError
from toolway.net.client import client_certificate
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.settings import ToolSettings
from toolway.tools.cpu_bound import no_garbage_collection, run_one_at_a_time
from toolway.tools.openapi.build_request import FIXED_HEADERS, InvalidArguments, Request, build_request
from toolway.tools.openapi.document import parse_document
from toolway.tools.openapi.importer import ImportedDocument, import_document
from toolway.tools.openapi.operation import BEARER, Credentials, Secret
from toolway.tools.openapi.transport import Connections, HttpResponse, OversizedResponse, read_result
from toolway.types import JSON, STOPPED, OnProgress, SourceStatus, Tool, ToolResult

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds between two tries of a source that failed; they double from the first to the last."""

LARGE = 2**20
"""Bytes from which on a document is a large one."""

log = logging.getLogger(__name__)


class OpenAPISource:
    """One endpoint. Its document may be mcpo's list of servers, each with a document of its own."""

    kind = "openapi"

    def __init__(self, endpoint: Endpoint, settings: ToolSettings) -> None:
        self.label = endpoint.label
        self._settings = settings
        self._connections = Connections(client_certificate(endpoint.client_cert, endpoint.client_key))
        self._credentials = Credentials.of(endpoint)
        places = (
            (DocumentPlace(url=endpoint.spec, base=endpoint.url or None),)
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

        At the end idle connections are closed, and nothing is called any more; a call that is under way goes on.
        """
        if self._status.state == "stopped":  # it was run before
            self._status = replace(self._status, state="starting")
            changed()
        failures = 0
        try:
            with closing(self._connections):
                while True:
                    self._wake = anyio.Event()
                    await self._refresh(changed)
                    failures = failures + 1 if self._is_broken() else 0
                    with anyio.move_on_after(self._pause(failures)):
                        await self._wake.wait()
        finally:
            away = tuple(replace(tool, available=False) for tool in self._status.tools)
            self._status = replace(self._status, state="stopped", tools=away)
            changed()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Send the tool's request; whatever the server does is a result. HTTP services report no progress."""
        if self._status.state == "stopped":
            return ToolResult(text=f"The server {self.label!r} is not available: {STOPPED}", is_error=True)
        try:
            request = build_request(tool.handle, arguments, self._credentials)
            answer = await self._connections.exchange(
                request, max_bytes=self._settings.max_tool_response_bytes
            )
        except InvalidArguments as error:
            return ToolResult(text=str(error), is_error=True, failure="arguments")
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
        return self._reader(
            [DocumentPlace(url=url, base=url.removesuffix("/openapi.json")) for url in urls], name
        )

    def _reader(self, places: list[DocumentPlace] | tuple[DocumentPlace, ...], server: str) -> DocumentReader:
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


FETCH_SECONDS = 30.0

MAX_DOCUMENT_BYTES = "TOOLWAY_MAX_DOCUMENT_BYTES"
"""The setting that says how large a document may be."""


@dataclass(frozen=True, kw_only=True)
class DocumentPlace:
    """Where a document may be. `base` is where its operations live when it names no server."""

    url: str
    base: str | None = None


def candidate_places(url: str) -> tuple[DocumentPlace, ...]:
    """Where to look for the document of an endpoint: a file, that very URL, or `/openapi.json` below it."""
    if "://" not in url:
        return (DocumentPlace(url=url),)
    try:
        parsed = URL(url).with_fragment(None)
    except ValueError:
        return (DocumentPlace(url=url),)  # rejected when it is asked for
    if parsed.path.endswith((".json", ".yaml", ".yml")):
        return (DocumentPlace(url=str(parsed)),)
    base = parsed.with_query(None)
    below = base.joinpath("openapi.json") if base.path != "/" else base.with_path("/openapi.json")
    itself = DocumentPlace(url=str(parsed))
    listed = DocumentPlace(url=str(below.with_query(parsed.query)), base=str(base).rstrip("/"))
    return (itself, listed) if parsed.query else (listed, itself)


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What is known of a document as it was read last."""

    place: DocumentPlace
    etag: str | None
    modified: str | None
    digest: bytes
    url: str


class _NotHere(SourceError):
    """Somebody answers there, but has nothing there; the document may be elsewhere."""


class DocumentReader:
    """Reads one document; the tools stay the same objects for as long as its bytes stay the same."""

    def __init__(
        self,
        places: Sequence[DocumentPlace],
        *,
        server: str,
        credentials: Credentials,
        settings: ToolSettings,
        connections: Connections,
    ) -> None:
        self.places = tuple(places)
        self.imported: ImportedDocument | None = None
        self.error: SourceError | None = None
        self.tools: tuple[Tool, ...] = ()
        self._server = server
        self._credentials = credentials
        self._settings = settings
        self._connections = connections
        self._version: _Version | None = None

    @property
    def url(self) -> str | None:
        """Where the document was read; None before that."""
        return self._version.url if self._version else None

    async def read(self) -> None:
        """Look again. Afterwards `error` is None and `tools` are new or the same, or they are unavailable."""
        try:
            with anyio.fail_after(FETCH_SECONDS):
                self.imported = await self._read_first()
        except TimeoutError:
            silent = f"{self.places[0].url} did not answer within {FETCH_SECONDS:.0f} s"
            self.mark_unavailable(SourceError(silent, stage="fetch"))
        except SourceError as error:
            self.mark_unavailable(error)
        else:
            self.error = None
            self.tools = self.imported.tools

    def mark_unavailable(self, error: SourceError) -> None:
        """Keep the last good tools, as unavailable."""
        if self.error is None:
            self.tools = tuple(replace(tool, available=False) for tool in self.tools)
        self.error = error

    async def _read_first(self) -> ImportedDocument:
        known = [self._version.place] if self._version else []
        failures: list[SourceError] = []
        for place in dict.fromkeys([*known, *self.places]):
            try:
                return await self._read(place)
            except SourceError as error:
                failures.append(error)
                if not isinstance(error, _NotHere) and error.stage != "parse":
                    break
        raise _most_specific(failures, self.places)

    async def _read(self, place: DocumentPlace) -> ImportedDocument:
        if "://" not in place.url:
            return await self._read_file(place)
        try:
            answer = await self._fetch(place)
            if answer.status == 304 and self.imported is not None:
                return self.imported
            _check(answer)
            version = _Version(
                place=place,
                etag=answer.header(b"etag"),
                modified=answer.header(b"last-modified"),
                digest=await _digest(answer.body),
                url=str(answer.url),
            )
            return await self._import(answer.body, version)
        except SourceError as error:
            raise type(error)(f"{place.url} {error.message}", stage=error.stage) from error

    async def _read_file(self, place: DocumentPlace) -> ImportedDocument:
        path = await anyio.Path(place.url).expanduser()
        try:
            size = (await path.stat()).st_size
            if size > self._settings.max_document_bytes:
                raise SourceError(
                    f"{path} is larger than {self._settings.max_document_bytes:,} bytes ({MAX_DOCUMENT_BYTES})",
                    stage="fetch",
                )
            content = await path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", stage="fetch") from error
        version = _Version(
            place=place, etag=None, modified=None, digest=await _digest(content), url=place.url
        )
        try:
            return await self._import(content, version)
        except SourceError as error:
            raise SourceError(f"{path} {error.message}", stage=error.stage) from error

    async def _import(self, content: bytes, version: _Version) -> ImportedDocument:
        if self._version and self.imported and self._version.digest == version.digest:
            self._version = version
            return self.imported
        work = partial(
            _imported,
            content,
            server=self._server,
            url=version.url if "://" in version.url else None,
            base=version.place.base,
            credentials=self._credentials,
            short_names=self._settings.tool_names == "short",
        )
        run = (
            run_one_at_a_time
            if len(content) > LARGE
            else partial(anyio.to_thread.run_sync, abandon_on_cancel=True)
        )
        imported = await run(work)
        self._version = version
        return imported

    async def _fetch(self, place: DocumentPlace) -> HttpResponse:
        answer = await self._get(place, self._credentials.default_secrets())
        other = (
            self._credentials.default_secrets() != (BEARER,) and self._credentials.value(BEARER) is not None
        )
        return await self._get(place, (BEARER,)) if other and answer.status in (401, 403) else answer

    async def _get(self, place: DocumentPlace, secrets: tuple[Secret, ...]) -> HttpResponse:
        headers = {**FIXED_HEADERS, "Accept": "application/json, application/yaml;q=0.9, */*;q=0.8"}
        if (known := self._version) and known.place == place and self.imported is not None:
            headers |= {"If-None-Match": known.etag} if known.etag else {}
            headers |= {"If-Modified-Since": known.modified} if known.modified else {}
        for secret in secrets:
            headers[secret.name] = self._credentials.value(secret) or ""
        try:
            request = Request(
                method="GET", url=URL(place.url), headers=self._credentials.merge_headers(headers)
            )
        except ValueError as error:
            raise SourceError(f"is not a URL that can be asked: {error}", stage="connect") from error
        try:
            return await self._connections.exchange(request, max_bytes=self._settings.max_document_bytes)
        except OversizedResponse as error:
            raise SourceError(f"{error.message} ({MAX_DOCUMENT_BYTES})", stage=error.stage) from error


def _imported(content: bytes, **options: object) -> ImportedDocument:
    with no_garbage_collection() if len(content) > LARGE else nullcontext():
        return import_document(parse_document(content), **options)  # type: ignore[arg-type]


async def _digest(content: bytes) -> bytes:
    def digest() -> bytes:
        return hashlib.blake2b(content, digest_size=16).digest()

    return await anyio.to_thread.run_sync(digest) if len(content) > LARGE else digest()


def _check(answer: HttpResponse) -> None:
    """Raises SourceError unless the answer can hold a document."""
    if answer.status in (404, 405, 410):
        raise _NotHere(f"answered {answer.status}, not an OpenAPI document", stage="fetch")
    if answer.status in (401, 403):
        how = "user:key@ in its URL, or a token"
        raise SourceError(f"answered {answer.status}: it wants a key, or another one ({how})", stage="fetch")
    if not 200 <= answer.status < 300:
        raise SourceError(f"answered {answer.status}, not an OpenAPI document", stage="fetch")
    if "html" in answer.content_type.lower():
        raise SourceError("answered HTML, not an OpenAPI document; is this the right port?", stage="parse")


def _most_specific(failures: list[SourceError], places: Sequence[DocumentPlace]) -> SourceError:
    """Of several failures the one that says most: a bad document, or else the first."""
    error = next((failure for failure in failures if failure.stage == "parse"), failures[0])
    if len(failures) == 1:
        return error
    tried = ", ".join(URL(place.url).path for place in places)
    return SourceError(f"{error.message} (tried {tried})", stage=error.stage)
