"""MCP_SERVER_ENDPOINTS -> endpoints with unique labels, and plain words about every mistake."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from toolway.net.hosts import HOST, is_loopback, masked

_BETWEEN = re.compile(r"[,\r\n]|\s+(?=(?:[\w.-]+=)?\w+://)")
_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)\s*=\s*(.+)", re.DOTALL)
_MANGLED_SCHEME = re.compile(r"(https?)[:/]+", re.IGNORECASE)
_DOCUMENT = re.compile(r"\.(json|ya?ml)$", re.IGNORECASE)
_SAYS_NOTHING = re.compile(
    r"(openapi|swagger|api-docs|docs|api|mcp|sse|v\d[\d.]*)(\.(json|ya?ml))?", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One entry of MCP_SERVER_ENDPOINTS, its credentials taken out of the URL."""

    label: str
    url: str
    """An http(s) base URL, the URL of a document, or a path of a document on disk."""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    spec: str = ""
    """URL or path of the document, when it is not found by `url`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request to this server."""
    client_cert: str | None = None
    client_key: str | None = None
    """Files in PEM with a client certificate and its key."""


@dataclass(frozen=True, kw_only=True)
class ParsedEndpoints:
    """What a list of endpoints came to: `problems` forbid a start, `notes` are for people to read."""

    endpoints: tuple[Endpoint, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    endpoint: Endpoint
    named: bool
    """The label was written by a person and stays as it is."""
    port: int | None


def parse_endpoints(text: str, tokens: Mapping[str, str] | None = None) -> ParsedEndpoints:
    """Read a list of endpoints, separated by commas or line breaks.

    An entry is an http(s) URL or the path of a document, with `name=` in front if its label should not be
    made from it. `tokens` maps a `token_key` to a bearer token. Labels do not depend on the entries' order.
    """
    entries: list[_Entry] = []
    problems: list[str] = []
    notes: list[str] = []
    for piece in filter(None, (p.strip().strip("'\"").strip() for p in _BETWEEN.split(text))):
        try:
            entry = _read_entry(piece)
        except ValueError as error:
            problems.append(str(error))
            continue
        if any(_same(entry, other) for other in entries):
            notes.append(f"{entry.endpoint.url} is listed twice; it is used once")
        else:
            entries.append(entry)
    problems += _names_given_twice(entries)
    endpoints = [_with_token(e, tokens or {}, notes) for e in _with_unique_labels(entries)]
    return ParsedEndpoints(endpoints=tuple(endpoints), problems=tuple(problems), notes=tuple(notes))


def token_key(label: str) -> str:
    """The NAME in TOOLWAY_SERVER_<NAME>_TOKEN for a label: upper case, `_` for all but letters and digits."""
    return re.sub(r"[^A-Z0-9]", "_", label.upper())


def _read_entry(piece: str) -> _Entry:
    match = _NAMED.fullmatch(piece)
    name, place = match.groups() if match else (None, piece)
    if "://" not in place and _is_path(place):
        path = _home_expanded(place)
        return _entry(name, _path_label(PurePath(path).parts), None, url=path)
    return _read_url(name, place)


def _home_expanded(place: str) -> str:
    try:
        return str(Path(place).expanduser())
    except RuntimeError:
        raise ValueError(f"{masked(place)} begins with the home of a user that is not known here") from None


def _read_url(name: str | None, place: str) -> _Entry:
    scheme, separator, rest = place.partition("://")
    if not separator:
        raise ValueError(f"{masked(place)} has no scheme; did you mean {_guess(place)} ?")
    if scheme.lower() not in {"http", "https"}:
        raise ValueError(_about_scheme(scheme, rest))
    url, port = _split(place)
    host = url.hostname or ""
    clean = urlunsplit((url.scheme, _authority(host, port), url.path.rstrip("/"), url.query, ""))
    return _entry(
        name,
        _path_label(url.path.split("/")) or _host_label(host, port),
        port,
        url=clean,
        username=None if url.username is None else unquote(url.username),
        password=None if url.username is None else unquote(url.password or ""),
    )


def _split(place: str) -> tuple[SplitResult, int | None]:
    try:
        url = urlsplit(place)
        port = url.port
    except ValueError as error:
        raise ValueError(f"{masked(place)} is not a URL: {str(error).lower()}") from None
    host = url.hostname or ""
    if not HOST.fullmatch(host) or re.search(r"[\s\x00-\x1f\\]", place):
        raise ValueError(
            f"{masked(place)} is not a URL that names a host; write it like http://localhost:8011"
        )
    return url, port


def _authority(host: str, port: int | None) -> str:
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def _entry(
    name: str | None,
    label: str,
    port: int | None,
    *,
    url: str,
    username: str | None = None,
    password: str | None = None,
) -> _Entry:
    label = name or re.sub(r"[^\w-]+", "-", label, flags=re.ASCII).strip("-") or "server"
    endpoint = Endpoint(label=label, url=url, username=username, password=password)
    return _Entry(endpoint=endpoint, named=name is not None, port=port)


def _is_path(place: str) -> bool:
    if place.startswith(("/", "./", "../", "~", ".\\", "..\\")) or re.match(r"[A-Za-z]:[\\/]", place):
        return True
    head = re.split(r"[/\\]", place, maxsplit=1)[0]
    return bool(_DOCUMENT.search(place)) and ":" not in head and not _MANGLED_SCHEME.match(place)


def _path_label(parts: Iterable[str]) -> str:
    """The last part that tells this server from others: not `openapi.json`, `v3`, `api` and the like."""
    telling = [p for p in parts if p.strip("/\\.") and not _SAYS_NOTHING.fullmatch(p)]
    return _DOCUMENT.sub("", unquote(telling[-1])) if telling else ""


def _host_label(host: str, port: int | None) -> str:
    if is_loopback(host):
        host = "localhost"
    elif not re.fullmatch(r"[\d.]+|.*:.*", host):
        parts = host.rstrip(".").split(".")
        return next((p for p in parts[:-1] if p not in {"www", "api", "mcp"}), parts[0])
    return host if port is None else f"{host}-{port}"


def _about_scheme(scheme: str, rest: str) -> str:
    shown = masked(f"{scheme}://{rest}")
    if scheme.lower() == "file":
        return f"{shown} is a file URL; give the path itself: {unquote(rest)}"
    close = get_close_matches(scheme.lower(), ["http", "https"], 1)
    if close:
        return f"{shown} has an unknown scheme; did you mean {masked(f'{close[0]}://{rest}')} ?"
    return f"{shown} starts with {scheme}:// but only http:// and https:// can be used"


def _guess(place: str) -> str:
    match = _MANGLED_SCHEME.match(place)
    if match:
        return masked(f"{match[1].lower()}://{place[match.end() :]}")
    return masked(f"http://{place}")


def _same(one: _Entry, other: _Entry) -> bool:
    if one.named and other.named and one.endpoint.label != other.endpoint.label:
        return False
    return replace(one.endpoint, label="") == replace(other.endpoint, label="")


def _names_given_twice(entries: Iterable[_Entry]) -> list[str]:
    names = Counter(token_key(e.endpoint.label) for e in entries if e.named)
    return [
        f"the name {e.endpoint.label} is given to more than one endpoint ({e.endpoint.url})"
        for e in entries
        if e.named and names[token_key(e.endpoint.label)] > 1
    ]


def _with_unique_labels(entries: list[_Entry]) -> list[Endpoint]:
    """Clashing labels get their port, and if that is not enough a number in the order of their URLs.

    Two labels clash when their token variables would: a credential must never reach the wrong server.
    """
    labels = _lengthened(entries, [e.endpoint.label for e in entries])
    counts = Counter(map(token_key, labels))
    taken = {key for key, count in counts.items() if count == 1}
    taken |= {token_key(e.endpoint.label) for e in entries if e.named}
    for i in sorted(range(len(entries)), key=lambda i: entries[i].endpoint.url):
        if not entries[i].named and counts[token_key(labels[i])] > 1:
            labels[i] = _numbered(labels[i], taken)
            taken.add(token_key(labels[i]))
    return [replace(e.endpoint, label=label) for e, label in zip(entries, labels, strict=True)]


def _lengthened(entries: list[_Entry], labels: list[str]) -> list[str]:
    counts = Counter(map(token_key, labels))
    return [
        label if e.named or e.port is None or counts[token_key(label)] == 1 else _with_port(label, e.port)
        for e, label in zip(entries, labels, strict=True)
    ]


def _with_port(label: str, port: int) -> str:
    return label if label.endswith(f"-{port}") else f"{label}-{port}"


def _numbered(label: str, taken: set[str]) -> str:
    number = 1
    while token_key(f"{label}-{number}") in taken:
        number += 1
    return f"{label}-{number}"


def _with_token(endpoint: Endpoint, tokens: Mapping[str, str], notes: list[str]) -> Endpoint:
    token = tokens.get(token_key(endpoint.label))
    if token is None:
        return endpoint
    if endpoint.username is not None:
        notes.append(f"{endpoint.label} has a user name in its URL and a token; the token is used")
    return replace(endpoint, username=None, password=None, token=token)
