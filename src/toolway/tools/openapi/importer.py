"""A parsed OpenAPI document -> tools, with what was left out and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

from yarl import URL

from toolway.errors import SourceError
from toolway.tools.openapi.document import version_of
from toolway.tools.openapi.operation import Credentials, Operation, Security
from toolway.tools.openapi.parameters import DeclaredOperation, UnusableOperation, read_inputs
from toolway.tools.openapi.schemas import Schemas
from toolway.types import JSON, Tool
from toolway.wire.lenient_json import dumps, harmless

LARGE_SCHEMA = 64 * 2**10
"""Bytes of a tool's schema from which on a model with a small context is in trouble."""

MAX_CHILDREN = 200

EXTENSION = "x-mcp"
"""Member of an operation that holds what MCP tells of the tool besides: title, annotations, outputSchema, _meta."""

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")


LeftOut = tuple[str, str]
"""(method and path, reason)"""


@dataclass(frozen=True, kw_only=True)
class ImportedDocument:
    """The tools of one document, in its order, and what it has besides."""

    protocol: str
    tools: tuple[Tool, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    warnings: tuple[str, ...] = ()
    children: tuple[tuple[str, str], ...] = ()
    """(name, path of its document) of the servers that mcpo's root document lists."""


def import_document(
    document: JSON,
    *,
    server: str,
    url: str | None = None,
    base: str | None = None,
    credentials: Credentials | None = None,
    short_names: bool = False,
) -> ImportedDocument:
    """All operations of a document as tools of `server`.

    `url` is where it was fetched (None: read from disk), `base` where its operations live when it names no server
    (None: the origin of `url`). Raises SourceError when it is no OpenAPI document.
    """
    schemas = Schemas(document)
    left_out: list[LeftOut] = []
    found = list(_operations(document, schemas, left_out))
    tools, warnings = [], []
    if found:
        servers = Servers(document, url=url, base=base)
        security = Security(document, credentials or Credentials())
        context = _Context(server=server, schemas=schemas, servers=servers, security=security)
        warnings = [servers.warning] if servers.warning else []
        for name, operation in zip(_names(found, short=short_names), found, strict=True):
            try:
                tools.append(context.tool(name, operation))
            except (UnusableOperation, OtherHost) as reason:
                left_out.append((operation.title, str(reason)))
    return ImportedDocument(
        protocol=("OpenAPI " if "openapi" in document else "Swagger ") + version_of(document),
        tools=tuple(tools),
        left_out=tuple(left_out),
        warnings=(*warnings, *_summary(left_out), *_large(tools)),
        children=() if found or left_out else _children(document),
    )


def _operations(document: JSON, schemas: Schemas, left_out: list[LeftOut]) -> Iterator[DeclaredOperation]:
    paths = document.get("paths")
    for path, raw_item in paths.items() if isinstance(paths, dict) else ():
        item = schemas.references.resolve(raw_item)
        if not isinstance(item, dict):
            left_out.append((path, "its path item refers to something that is not in the document"))
            continue
        if not path.startswith("/"):
            continue  # an extension (x-...), or nothing that could be called
        pointer = f"#/paths/{path.replace('~', '~0').replace('/', '~1')}"
        for method in _METHODS:
            if method in item:
                raw = item[method]
                if isinstance(raw, dict):
                    yield DeclaredOperation(
                        method=method, path=path, raw=raw, path_item=item, pointer=f"{pointer}/{method}"
                    )
                else:
                    left_out.append((f"{method.upper()} {path}", "it is not an object"))


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What all operations of a document share."""

    server: str
    schemas: Schemas
    servers: Servers
    security: Security

    def tool(self, name: str, declared: DeclaredOperation) -> Tool:
        """One operation under its name. Raises UnusableOperation or OtherHost."""
        inputs = read_inputs(declared, self.schemas, self.security)
        operation = Operation(
            method=declared.method.upper(),
            base=self.servers.base(declared.raw, declared.path_item),
            path=declared.path.partition("?")[0].partition("#")[0],
            parameters=inputs.parameters,
            body=inputs.body,
            secrets=self.security.secrets(declared.raw, inputs.hidden),
            reserved=self.security.reserved | {(s.location, s.name.lower()) for s in inputs.hidden},
        )
        return Tool(
            name=name,
            server=self.server,
            description=_description(declared),
            parameters=harmless(inputs.schema),
            annotations=_annotations(declared),
            extra=_extra(declared),
            handle=operation,
        )


def _annotations(found: DeclaredOperation) -> JSON:
    """What HTTP says of a method (RFC 9110, 9.2), in MCP's words, unless the document itself states it."""
    if (stated := _own_extension(found)) is not None:
        annotations = stated.get("annotations")
        return annotations if isinstance(annotations, dict) else {}
    method = found.method.upper()
    is_safe = method in ("GET", "HEAD", "OPTIONS", "TRACE", "QUERY")
    hints = {"readOnlyHint": is_safe, "idempotentHint": is_safe or method in ("PUT", "DELETE")}
    return {**hints, "destructiveHint": True} if method == "DELETE" else hints


def _extra(found: DeclaredOperation) -> JSON:
    if (stated := _own_extension(found)) is not None:
        return {key: value for key, value in stated.items() if key != "annotations"}
    title = _text(found, "summary")
    return {"title": title} if title and title != _description(found) else {}


def _own_extension(found: DeclaredOperation) -> JSON | None:
    """What a document tells of a tool in MCP's words, as Toolway's own does; None: it speaks OpenAPI alone."""
    stated = found.raw.get(EXTENSION)
    return harmless(stated) if isinstance(stated, dict) else None


def _description(found: DeclaredOperation) -> str:
    return _text(found, "description") or _text(found, "summary") or found.title


def _text(found: DeclaredOperation, keyword: str) -> str:
    text = found.raw.get(keyword)
    return text.strip() if isinstance(text, str) else ""


def _names(found: list[DeclaredOperation], *, short: bool) -> list[str]:
    """The operationIds. Those that occur twice, and those that are missing, are told apart by method and path."""
    names = [_operation_id(operation) for operation in found]
    if short:
        shortened = [_short(name, operation) for name, operation in zip(names, found, strict=True)]
        counted = Counter(shortened)
        names = [s if counted[s] == 1 else name for s, name in zip(shortened, names, strict=True)]
    counted = Counter(names)
    names = [
        name if counted[name] == 1 else f"{name}_{_from_path(operation)}"
        for name, operation in zip(names, found, strict=True)
    ]
    return _numbered(names)


def _numbered(names: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return numbered


def _operation_id(found: DeclaredOperation) -> str:
    name = found.raw.get("operationId")
    return name.strip() if isinstance(name, str) and name.strip() else _from_path(found)


def _from_path(found: DeclaredOperation) -> str:
    """`GET /pets/{petId}` -> `get_pets_by_petId`."""
    words = re.sub(r"\{([^{}]*)\}", r"/by_\1/", found.path)
    return "_".join([found.method, *filter(None, re.split(r"\W+", words))])


def _short(name: str, found: DeclaredOperation) -> str:
    """The name without what FastAPI adds to a function's: its path and method.

    mcpo calls every function `tool`; there the tool's own name is the path. Source: FastAPI's generate_unique_id.
    """
    added = re.sub(r"\W", "_", found.path) + f"_{found.method}"
    own = name.removesuffix(added)
    if own in (name, ""):
        return name
    return found.path.rsplit("/", 1)[-1] or name if own == "tool" else own


_LINK = re.compile(r"^\s*- \[([^\[\]\n]{1,100})\]\((/(?!/)[^()\s]{1,200})/docs\)", re.MULTILINE)


def _children(document: JSON) -> tuple[tuple[str, str], ...]:
    """The servers that mcpo's root document lists: `- [time](/time/docs)` lines of its description."""
    info = document.get("info")
    text = info.get("description") if isinstance(info, dict) else None
    links = _LINK.findall(text) if isinstance(text, str) else []
    return tuple((name, f"{path}/openapi.json") for name, path in dict(links[:MAX_CHILDREN]).items())


def _summary(left_out: list[LeftOut]) -> tuple[str, ...]:
    """One sentence for each reason, with the first operations that it struck."""
    struck: dict[str, list[str]] = {}
    for operation, reason in left_out:
        struck.setdefault(reason, []).append(operation)
    return tuple(
        f"{_count(names, 'operation')} left out ({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): {reason}"
        for reason, names in struck.items()
    )


def _large(tools: list[Tool]) -> tuple[str, ...]:
    names = [tool.name for tool in tools if len(dumps(tool.parameters)) > LARGE_SCHEMA]
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"{_count(names, 'schema')} over {LARGE_SCHEMA // 1024} KiB, a lot for a model to read ({shown})",
    )


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


class OtherHost(Exception):
    """An operation's own server is a host that the operator did not configure."""


class Servers:
    """The servers of one document, read with the place that it came from.

    A document that was fetched is called at the origin that it was fetched from, with the path of its `servers`
    (RFC 3986, against the document's URL); without `servers`, at `base`. A document on disk (`url` None) is the
    operator's own word, so the first absolute server in it is the origin.
    """

    def __init__(self, document: JSON, *, url: str | None, base: str | None) -> None:
        self._url = url
        listed = _swagger_servers(document, url) if "swagger" in document else _server_urls(document)
        self._listed = self._absolute(listed)
        self.warning: str | None = None
        if url is not None:
            self.origin = origin_of(url)
            self._default = self._document_base(base or self.origin)
        elif self._listed:
            self.origin = origin_of(self._listed[0])
            self._default = self._listed[0]
        else:
            raise SourceError("names no server with a full URL, which a document on disk must", stage="parse")

    def base(self, *levels: JSON) -> str:
        """The server for an operation: of the first of `levels` (operation, path item) that names any.

        Raises OtherHost when those are on hosts that the document itself does not name either.
        """
        for level in levels:
            if urls := self._absolute(_server_urls(level)):
                return self._same_origin(urls) or self._at_origin(urls)
        return self._default

    def _document_base(self, base: str) -> str:
        if not self._listed:
            return base.rstrip("/")
        if (same := self._same_origin(self._listed)) is not None:
            return same
        self.warning = (
            f"The document names {origin_of(self._listed[0])} as its server; calls go to {self.origin}, where it "
            "was read, with the same path"
        )
        return self.origin + _path_of(self._listed[0])

    def _same_origin(self, urls: list[str]) -> str | None:
        return next((url for url in urls if origin_of(url) == self.origin), None)

    def _at_origin(self, urls: list[str]) -> str:
        named = {origin_of(url) for url in self._listed}
        for url in urls:
            if origin_of(url) in named:
                return self.origin + _path_of(url)
        raise OtherHost(f"its own server, {origin_of(urls[0])}, is not the configured one")

    def _absolute(self, urls: list[str]) -> list[str]:
        return [place for url in urls if (place := self._place(url)) is not None]

    def _place(self, url: str) -> str | None:
        """Origin and path of a server's URL, against the document's; None when nothing can be called there."""
        try:
            absolute = URL(urljoin(self._url, url) if self._url else url)
            callable_ = absolute.scheme in ("http", "https") and absolute.host and absolute.port
            return origin_of(str(absolute)) + _path_of(str(absolute)) if callable_ else None
        except ValueError:
            return None


def origin_of(url: str) -> str:
    """`scheme://host[:port]`, lower case, without a port that is the scheme's own."""
    return str(URL(url).origin())


def _path_of(url: str) -> str:
    return URL(url).raw_path.rstrip("/")


def _server_urls(level: JSON) -> list[str]:
    servers = level.get("servers")
    urls = (
        [_with_defaults(server) for server in servers if isinstance(server, dict)]
        if isinstance(servers, list)
        else []
    )
    return [url for url in urls if url]


def _with_defaults(server: JSON) -> str | None:
    """A server's URL with each `{variable}` at its default, or its first allowed value."""
    url = server.get("url")
    variables = server.get("variables")
    if not isinstance(url, str):
        return None

    def value(match: re.Match[str]) -> str:
        variable = variables.get(match[1]) if isinstance(variables, dict) else None
        return _default(variable) if isinstance(variable, dict) else match[0]

    url = re.sub(r"\{([^{}]+)\}", value, url)
    return None if "{" in url else url


def _default(variable: JSON) -> str:
    choices = variable.get("enum")
    first = choices[0] if isinstance(choices, list) and choices else ""
    return str(variable.get("default", first))


def _swagger_servers(document: JSON, url: str | None) -> list[str]:
    own: Any = URL(url) if url else None
    host = document.get("host") or (own.authority if own else None)
    if not host or not (document.get("host") or document.get("basePath")):
        return []
    schemes = document.get("schemes")
    schemes = [s for s in schemes if s in ("http", "https")] if isinstance(schemes, list) else []
    if own is not None and (own.scheme in schemes or not schemes):
        schemes = [own.scheme]
    base = str(document.get("basePath") or "/")
    return [f"{scheme}://{host}/{base.lstrip('/')}" for scheme in schemes or ["https"]]
