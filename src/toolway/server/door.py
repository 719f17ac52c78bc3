"""The door: the rules for Host, Origin and keys, which say of the head of a request whether it may come in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from starlette.types import Scope

from toolway.access.keys import KeyRing
from toolway.errors import Forbidden, InvalidRequest, ToolwayError
from toolway.net.hosts import is_loopback, is_same_origin
from toolway.server.caller import CREDENTIALS, PRINCIPAL_KEY, key_in
from toolway.settings.groups import ServerSettings
from toolway.types import Header, Principal, record

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?)(:[0-9]{1,5})?")
_CHECKED = CREDENTIALS | {b"host", b"origin"}


class FoundKeys(NamedTuple):
    """Whose key came with a request, and the headers that hold keys of ours."""

    principal: Principal | None
    headers: list[Header]


@record
class Entry:
    """A head that may come in: its scope as those behind the door see it, and by which keys."""

    scope: Scope
    seen: list[Header]
    keys: FoundKeys | None
    """None where nobody needs one."""


class Door:
    """The rules of one server. Which keys there are may change while it runs; nothing else here does."""

    def __init__(self, settings: ServerSettings, keys: KeyRing) -> None:
        self._keys = keys
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._is_our_host = lru_cache(maxsize=256)(_host_rule(settings, keys))

    @staticmethod
    def seen_in(headers: Iterable[Header]) -> list[Header]:
        """The headers that are looked at here."""
        return [header for header in headers if header[0] in _CHECKED]

    def check_origin(self, seen: Sequence[Header]) -> bytes | None:
        """The origin to name in CORS headers; None when there is none, or it is this server's own.

        Raises InvalidRequest without one valid Host, Forbidden for a Host or an Origin that may not be.
        """
        host = self._check_host(seen)
        origins = [value for name, value in seen if name == b"origin"]
        if not origins:
            return None
        origin = origins[0].lower()
        if len(origins) == 1 and origin != b"null":
            if is_same_origin(origin, host):
                return None
            if origin in self._origins:
                return origins[0]
            if b"*" in self._origins:
                return b"*"
        raise Forbidden(
            "Web pages of this origin may not use this server; if they should, add the origin to "
            "TOOLWAY_CORS_ORIGINS.",
            code="origin_not_allowed",
        )

    def _check_host(self, seen: Iterable[Header]) -> bytes:
        hosts = [value for name, value in seen if name == b"host"]
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            raise InvalidRequest(
                "The request must have one Host header that names a host.", code="invalid_host"
            )
        if not self._is_our_host(hosts[0]):
            raise Forbidden(
                f"This server is not called {hosts[0].decode()}; if it should be, add that name to "
                "TOOLWAY_ALLOWED_HOSTS.",
                code="host_not_allowed",
            )
        return hosts[0]

    def find_keys(self, seen: Iterable[Header]) -> FoundKeys:
        """The keys that came with a request. Raises Unauthorized for an old one."""
        principal: Principal | None = None
        ours: list[Header] = []
        for header in seen:
            if header[0] in CREDENTIALS and (found := self._keys.find(key_in(header))):
                principal = principal or found
                ours.append(header)
        return FoundKeys(principal, ours)

    def admit(self, scope: Scope) -> Entry | None:
        """Let a request in that has nothing of its own done to its answer; None for all others.

        Others are whoever has a token of an identity provider, which may have to be asked, and pages of other origins.
        """
        seen = self.seen_in(scope["headers"])
        try:
            if self.check_origin(seen) is not None:
                return None
            keys = self.find_keys(seen) if self._keys.is_closed else None
        except ToolwayError:
            return None
        if keys is None:
            return Entry(scope=scope, seen=seen, keys=None)
        if keys.principal is None:
            return None
        headers = [header for header in scope["headers"] if header not in keys.headers]
        return Entry(scope={**scope, "headers": headers, PRINCIPAL_KEY: keys.principal}, seen=seen, keys=keys)

    def is_open_for(self, entry: Entry) -> bool:
        """Whether what came in would come in as the same again: its key may have been taken away or changed."""
        try:
            return (self.find_keys(entry.seen) if self._keys.is_closed else None) == entry.keys
        except ToolwayError:
            return False


def _host_rule(settings: ServerSettings, keys: KeyRing) -> Callable[[bytes], bool]:
    """Is this Host header one of this server's names?

    Loopback names and the bound host always are. On an exposed address so is any IP address: rebinding needs
    a name. With keys, and no list of names, any name is: a page that rebinds its name holds no key.
    """
    listed = frozenset(settings.allowed_hosts)
    suffixes = tuple(name[1:] for name in listed if name.startswith("*."))
    any_name = "*" in listed or bool(settings.is_exposed and keys.is_closed and not listed)

    def is_ours(header: bytes) -> bool:
        whole = header.decode().lower()
        name = re.sub(r":\d+$", "", whole).rstrip(".")
        if any_name or is_loopback(name) or name.strip("[]") == settings.host.lower():
            return True
        if settings.is_exposed and _is_address(name):
            return True
        return name in listed or whole in listed or name.endswith(suffixes)

    return is_ours


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
