"""One OpenAPI document: where it is, read again only when it changed, parsed within bounds, and the tools in it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import yaml
from yarl import URL

from toolway.errors import SourceError
from toolway.settings.groups import ToolSettings
from toolway.tools.openapi.build_request import FIXED_HEADERS, Request
from toolway.tools.openapi.importer import Imported, import_document
from toolway.tools.openapi.operation import BEARER, Credentials, Secret
from toolway.tools.openapi.transport import Answer, Connections
from toolway.types import JSON, Tool
from toolway.wire.lenient_json import loads_harmless

FETCH_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a document may be. `base` is where its operations live when it names no server."""

    url: str
    base: str | None = None


def candidate_places(url: str) -> tuple[Place, ...]:
    """Where to look for the document of an endpoint: a file, that very URL, or `/openapi.json` below it."""
    if "://" not in url:
        return (Place(url=url),)
    try:
        parsed = URL(url).with_fragment(None)
    except ValueError:
        return (Place(url=url),)  # refused when it is asked for
    if parsed.path.endswith((".json", ".yaml", ".yml")):
        return (Place(url=str(parsed)),)
    base = parsed.with_query(None)
    below = base.joinpath("openapi.json") if base.path != "/" else base.with_path("/openapi.json")
    itself = Place(url=str(parsed))
    listed = Place(url=str(below.with_query(parsed.query)), base=str(base).rstrip("/"))
    return (itself, listed) if parsed.query else (listed, itself)


@dataclass(frozen=True, kw_only=True)
class _Version:
    """What is known of a document as it was read last."""

    place: Place
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
        places: Sequence[Place],
        *,
        server: str,
        credentials: Credentials,
        settings: ToolSettings,
        connections: Connections,
    ) -> None:
        self.places = tuple(places)
        self.imported: Imported | None = None
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

    async def _read_first(self) -> Imported:
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

    async def _read(self, place: Place) -> Imported:
        if "://" not in place.url:
            return await self._read_file(place)
        try:
            answer = await self._fetch(place)
            if answer.status == 304 and self.imported is not None:
                return self.imported
            _check(answer)
            headers = answer.headers
            version = _Version(
                place=place,
                etag=headers.get("etag"),
                modified=headers.get("last-modified"),
                digest=_digest(answer.body),
                url=answer.url,
            )
            return await self._import(answer.body, version)
        except SourceError as error:
            raise type(error)(f"{place.url} {error.message}", stage=error.stage) from error

    async def _read_file(self, place: Place) -> Imported:
        path = await anyio.Path(place.url).expanduser()
        try:
            size = (await path.stat()).st_size
            if size > self._settings.max_document_bytes:
                raise SourceError(
                    f"{path} is larger than {self._settings.max_document_bytes:,} bytes", stage="fetch"
                )
            content = await path.read_bytes()
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}", stage="fetch") from error
        version = _Version(place=place, etag=None, modified=None, digest=_digest(content), url=place.url)
        try:
            return await self._import(content, version)
        except SourceError as error:
            raise SourceError(f"{path} {error.message}", stage=error.stage) from error

    async def _import(self, content: bytes, version: _Version) -> Imported:
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
        imported = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        self._version = version
        return imported

    async def _fetch(self, place: Place) -> Answer:
        answer = await self._get(place, self._credentials.default_secrets())
        other = (
            self._credentials.default_secrets() != (BEARER,) and self._credentials.value(BEARER) is not None
        )
        return await self._get(place, (BEARER,)) if other and answer.status in (401, 403) else answer

    async def _get(self, place: Place, secrets: tuple[Secret, ...]) -> Answer:
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
        return await self._connections.exchange(request, max_bytes=self._settings.max_document_bytes)


def _imported(content: bytes, **options: object) -> Imported:
    return import_document(parse_document(content), **options)  # type: ignore[arg-type]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _check(answer: Answer) -> None:
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


def _most_specific(failures: list[SourceError], places: Sequence[Place]) -> SourceError:
    """Of several failures the one that says most: a bad document, or else the first."""
    error = next((failure for failure in failures if failure.stage == "parse"), failures[0])
    if len(failures) == 1:
        return error
    tried = ", ".join(URL(place.url).path for place in places)
    return SourceError(f"{error.message} (tried {tried})", stage=error.stage)


MAX_DEPTH = 200
MAX_NODES = 2_000_000
"""Values in a YAML document when every alias is written out: a billion laughs end here."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_document(content: bytes) -> JSON:
    """The document as a JSON object: JSON, or YAML by the rules of YAML 1.2 (`no` and `2024-01-01` are strings).

    Raises SourceError (stage "parse") for anything else: HTML, another format, another kind of JSON.
    """
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if content[:1] in (b"{", b"["):
        document = _parse_json(content)
    elif content[:1] == b"<":
        raise SourceError("is HTML or XML, not an OpenAPI document", stage="parse")
    else:
        document = _parse_yaml(content)
    version_of(document)
    assert isinstance(document, dict)  # noqa: S101
    return document


def version_of(document: Any) -> str:
    """`3.1.0`, `2.0`, ... Raises SourceError when this is no OpenAPI document, or one of a version unknown here."""
    if not isinstance(document, dict):
        raise SourceError("is not an OpenAPI document: no object at its top", stage="parse")
    version = str(document.get("openapi") or document.get("swagger") or "")
    if not version:
        raise SourceError('is not an OpenAPI document: neither "openapi" nor "swagger" in it', stage="parse")
    if not version.startswith(("2.", "3.")):
        raise SourceError(f"is OpenAPI {version[:20]}; 2.0 and 3.x can be read", stage="parse")
    return version


def _parse_json(content: bytes) -> Any:
    try:
        return loads_harmless(content, max_parts=MAX_NODES)
    except ValueError as error:
        try:
            return _parse_yaml(content)  # flow-style YAML starts like JSON
        except SourceError:
            raise SourceError(f"is broken JSON: {error}", stage="parse") from error


def _parse_yaml(content: bytes) -> Any:
    try:
        return _Builder().build(yaml.parse(content, Loader=Loader))
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"is neither JSON nor YAML: {reason[:200]}", stage="parse") from error


class _Open:
    """A mapping or sequence whose end has not been read."""

    __slots__ = ("anchor", "before", "key", "value")

    def __init__(self, value: JSON | list[Any], anchor: str | None, before: int) -> None:
        self.value = value
        self.anchor = anchor
        self.before = before
        self.key: Any = None


class _Builder:
    """Builds plain values from YAML events: no tags, no objects, no recursion, and half the time of a loader."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0
        self._root: Any = None

    def build(self, events: Iterator[Any]) -> Any:
        for event in events:
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._scalar(event)
            elif kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
                self._start({} if kind is yaml.MappingStartEvent else [], event.anchor)
            elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
                self._end()
            elif kind is yaml.AliasEvent:
                self._alias(event.anchor)
            elif kind is yaml.DocumentEndEvent:
                break
        return self._root

    def _start(self, value: JSON | list[Any], anchor: str | None) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise SourceError(f"is nested deeper than {MAX_DEPTH} levels", stage="parse")
        self._open.append(_Open(value, anchor, self._nodes))

    def _end(self) -> None:
        done = self._open.pop()
        self._anchor(done.anchor, done.value, self._nodes - done.before)
        self._add(done.value)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        top = self._open[-1] if self._open else None
        if top is not None and top.key is None and isinstance(top.value, dict):
            self._anchor(event.anchor, event.value, 1)
            top.key = _MERGE if event.value == "<<" and event.implicit[0] else event.value
            return
        value = _plain(event.value) if event.implicit[0] else event.value
        self._anchor(event.anchor, value, 1)
        self._add(value)

    def _alias(self, anchor: str) -> None:
        if anchor not in self._anchors:
            raise SourceError(
                f"has a YAML alias *{anchor[:40]} of something unknown or unfinished", stage="parse"
            )
        value, nodes = self._anchors[anchor]
        self._nodes += nodes
        top = self._open[-1] if self._open else None
        if top is not None and top.key is None and isinstance(top.value, dict) and not isinstance(value, str):
            raise SourceError("has a YAML mapping with a key that is no text", stage="parse")
        if top is not None and top.key is None and isinstance(top.value, dict):
            top.key = value
        else:
            self._add(value)

    def _anchor(self, anchor: str | None, value: Any, nodes: int) -> None:
        if anchor is not None:
            self._anchors[anchor] = (value, nodes + 1)

    def _add(self, value: Any) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SourceError(f"holds more than {MAX_NODES} values, counting YAML aliases", stage="parse")
        if not self._open:
            self._root = value
            return
        top = self._open[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            raise SourceError("has a YAML mapping with a key that is no text", stage="parse")
        else:
            _put(top.value, top.key, value)
            top.key = None


_MERGE = object()
"""The key `<<` of a mapping that merges others in (YAML 1.1, still written by hand)."""


def _put(mapping: JSON, key: Any, value: Any) -> None:
    """Set one member, or with the merge key those that the mapping does not have."""
    parts = value if isinstance(value, list) else [value]
    if key is not _MERGE or not all(isinstance(part, dict) for part in parts):
        mapping["<<" if key is _MERGE else key] = value
        return
    for part in parts:
        for name, member in part.items():
            mapping.setdefault(name, member)


_CONSTANTS = {"": None, "~": None} | {
    variant: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for variant in (word, word.capitalize(), word.upper())
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")


def _plain(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2, as far as JSON has it."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "0123456789-+.":
        if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**64:  # what JSON writers here can hold
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
    return text
