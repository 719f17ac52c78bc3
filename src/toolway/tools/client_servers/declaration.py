"""A tool server that a request itself declares: `{"type": "mcp", "server_label", "server_url", ...}`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import orjson

from toolway.errors import InvalidRequest
from toolway.net.allowlist import Destination, read_destination
from toolway.types import JSON

HERE = "toolway:"
"""What begins a `server_url` that stands for a configured server."""

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 2**10

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?")
_OURS = frozenset({
    "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "content-length", "content-type", "content-encoding", "accept", "accept-encoding", "expect",
    "proxy-authorization", "last-event-id", "via",
})  # fmt: skip
"""Headers that belong to the connection or to the protocol."""


@dataclass(frozen=True, kw_only=True)
class DeclaredServer:
    """What a request says about a server of its own. `headers` hold its credentials; nothing shows them."""

    label: str
    place: Destination = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no text may hold, the longest first; of "Bearer x" also the x."""
        values = {part for value in self.headers.values() for part in (value, value.rpartition(" ")[2])}
        _, _, query = self.place.path.partition("?")
        values |= {pair.rpartition("=")[2] for pair in query.split("&")}
        return tuple(sorted((value for value in values if len(value) >= 4), key=len, reverse=True))

    def key(self, owner: str) -> bytes:
        """The same bytes for the same server with the same credentials, declared by the same owner."""
        said = [owner, self.label, self.place.url, sorted(self.headers.items())]
        return sha256(orjson.dumps(said)).digest()


def read_declared(entry: JSON, configured: Collection[str]) -> DeclaredServer | None:
    """The server that a `{"type": "mcp"}` entry of `tools` declares; None when it names one of `configured`.

    For clients that must send a `server_url` (AI SDK), one that begins with "toolway:" names one, too. Raises
    InvalidRequest, with param "tools".
    """
    url, label = entry.get("server_url"), entry.get("server_label")
    if url is None or (isinstance(url, str) and url.startswith(HERE)):
        return None
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise _invalid(
            "server_label must be a letter, and then up to 63 letters, digits, '-' and '_', "
            f"not {str(label)[:70]!r}."
        )
    if label in configured:
        raise _invalid(
            f"{label!r} is a tool server of this Toolway. Leave out server_url to use it (or send {HERE!r} there), or "
            "choose another server_label."
        )
    try:
        place = read_destination(url if isinstance(url, str) else "")
    except ValueError as error:
        raise _invalid(f"The server_url of {label!r} cannot be used: {error}.") from None
    return DeclaredServer(label=label, place=place, headers=_headers(entry, label))


def _headers(entry: JSON, label: str) -> dict[str, str]:
    given = entry.get("headers") or {}
    if not isinstance(given, dict) or len(given) > MAX_HEADERS:
        raise _invalid(
            f"The headers of {label!r} must be an object of at most {MAX_HEADERS} names and texts."
        )
    headers: dict[str, str] = {}
    for name, value in given.items():
        headers[_name(name, headers, label)] = _value(value, f"header {name!r}", label)
    if (token := entry.get("authorization")) is not None:
        if "authorization" in headers:
            raise _invalid(
                f"{label!r} has both an authorization and a header of this name; send one of them."
            )
        token = _value(token, "authorization", label)
        headers["authorization"] = token if token[:7].lower() == "bearer " else f"Bearer {token}"
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_BYTES:
        raise _invalid(f"The headers of {label!r} are larger than {MAX_HEADER_BYTES:,} bytes.")
    return headers


def _name(name: str, before: Collection[str], label: str) -> str:
    lower = name.lower()
    if not _HEADER.fullmatch(name) or len(name) > 100:
        raise _invalid(f"The headers of {label!r} hold a name that no HTTP header may have.")
    if lower in _OURS or lower.startswith("mcp-"):
        raise _invalid(f"The header {name!r} of {label!r} is not for clients to set; leave it out.")
    if lower in before:
        raise _invalid(f"The header {name!r} of {label!r} is there twice.")
    return lower


def _value(value: Any, what: str, label: str) -> str:
    """A text that may stand in a header. The message never holds it."""
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise _invalid(f"The {what} of {label!r} must be a text of printable ASCII characters.")
    return value


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="tools", code="invalid_server")
