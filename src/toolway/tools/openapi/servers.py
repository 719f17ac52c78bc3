"""Which server an operation is called at. Only ever one origin: the endpoint's that the operator configured."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

from yarl import URL

from toolway.errors import SourceError
from toolway.types import JSON


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
                return self._same_origin(urls) or self._moved(urls)
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

    def _moved(self, urls: list[str]) -> str:
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
