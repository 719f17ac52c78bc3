"""The SSRF guard: which servers may be reached that nobody configured, by name and by each address before use."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import anyio
import idna
from anyio import to_thread

from toolway.net.hosts import masked

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SETTING = "TOOLWAY_DYNAMIC_SERVERS"
MAX_URL = 2000
"""Characters of a URL."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^\]]*\]|[^/?#:@\[\]]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*|[^\[\]]*:[^\[\]]*:[^\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_UNCLEAR = re.compile(r"[\s\x00-\x20\x7f\\<>\"`{}|^]")
"""What parsers of URLs read differently: white space, control characters, the backslash."""
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_PORTS = {"http": 80, "https": 443}

_NAT64 = IPv6Network("64:ff9b::/96")
_UNICAST = IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),  # the last one is inside of every Azure host
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo, documentation, 6to4
    )
)
"""Networks that `ipaddress` takes for global, or took in some version of Python, and that lead elsewhere."""

_METADATA = frozenset(map(ip_address, ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254")))
"""Where clouds hand out a machine's credentials, besides 169.254.169.254, which is link-local."""
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


UNKNOWN_NAME = "its name is not known"


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a URL leads. `host` is a name in lower case and ASCII, or an address in its one usual form."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query; it may hold a key."""

    @property
    def url(self) -> str:
        """The URL, written so that every parser reads the same host."""
        return f"{self.scheme}://{self.netloc}{self.path}"

    @property
    def netloc(self) -> str:
        """The host, and the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host, when it is an address."""
        return _address(self.host)


def read_destination(url: str) -> Destination:
    """Where an http(s) URL leads. Raises ValueError: a sentence without its subject, "it is no http(s) URL"."""
    if len(url) > MAX_URL:
        raise ValueError(f"it is longer than {MAX_URL} characters")
    match = _URL.fullmatch(url)
    if "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise ValueError("it holds a user name or password; send those in headers or authorization")
    if match is None or _UNCLEAR.search(url):
        raise ValueError("it must be an http(s) URL like https://mcp.example.com/mcp, without #fragment")
    scheme = match["scheme"].lower()
    port = int(match["port"]) if match["port"] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise ValueError("its port must be from 1 to 65535")
    path = (match["path"] or "/") + (match["query"] or "")
    return Destination(scheme=scheme, host=_host(match["host"]), port=port, path=path)


def _host(text: str) -> str:
    """A host in its one usual form. Raises ValueError."""
    if text.startswith("["):
        address = _address(text[1:-1])
        if not isinstance(address, IPv6Address) or address.scope_id:
            raise ValueError(f"{text[:60]} is no IPv6 address")
        return str(unmapped(address))
    try:
        name = idna.encode(text, uts46=True).decode() if not text.isascii() else text.lower()
    except (idna.IDNAError, UnicodeError):
        raise ValueError(f"{text[:60]!r} is no host name") from None
    name = name.removesuffix(".")
    if address := _address(name):
        return str(address)
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise ValueError(f"{name[:60]} is an unusual form of an address; write it like 192.0.2.7")
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise ValueError(f"{name[:60]!r} is no host name")
    return name


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class AllowedServer:
    """One entry of the setting: a `name` ("*" and "*.example.com" are patterns), or a `network`."""

    name: str = ""
    network: Network | None = None
    port: int | None = None
    """None: any."""


def parse_allowed(value: Any) -> tuple[AllowedServer, ...]:
    """Entries from a text with commas, or from a list. Raises ValueError with a sentence about the first bad one."""
    pieces = re.split(r"[,\s]+", value) if isinstance(value, str) else value
    return tuple(p if isinstance(p, AllowedServer) else _entry(p) for p in pieces if p)


def _entry(text: str) -> AllowedServer:
    try:
        return _read_entry(text.lower())
    except ValueError as error:
        raise ValueError(f"{masked(text)!r} is no host or network: {error}") from None


def _read_entry(text: str) -> AllowedServer:
    if "://" in text or "@" in text:
        raise ValueError("write the host alone, like mcp.example.com or 127.0.0.1:9000")
    if "/" in text:
        return AllowedServer(network=_network(text))
    match = _ENTRY.fullmatch(text)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise ValueError("write a name, host:port, address, network, *.example.com or *")
    port = int(match["port"]) if match["port"] else None
    wildcard, host = ("*.", match["host"][2:]) if match["host"].startswith("*.") else ("", match["host"])
    if host == "*" and not wildcard:
        return AllowedServer(name="*", port=port)
    if "*" in host:
        raise ValueError("a * stands alone or in front, as in *.example.com")
    host = _host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
    if (address := _address(host)) is None:
        return AllowedServer(name=wildcard + host, port=port)
    if wildcard:
        raise ValueError("a * cannot stand before an address; write a network like 10.1.0.0/16")
    return AllowedServer(network=ip_network(unmapped(address)), port=port)


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError:
        try:
            whole = ip_network(text, strict=False)
        except ValueError:
            raise ValueError("write the host alone, or a network like 10.1.0.0/16") from None
        raise ValueError(f"did you mean {whole}?") from None
    if network.prefixlen == 0:
        raise ValueError("that would allow every internal address; write * for any public host")
    return network


@dataclass(frozen=True)
class AllowList:
    """The setting as a rule. Nothing in it allows nothing.

    What stands there by name may have a private address, but none that is link-local or hands out a cloud's
    credentials. A pattern allows https and public addresses only. A network allows what is in it, whatever its name.
    """

    entries: tuple[AllowedServer, ...] = ()

    def denial_of(self, place: Destination) -> str | None:
        """Why a place is out of the question, as the end of a sentence; None: its addresses decide."""
        if not self.entries:
            return f"the operator allows no servers but the configured ones ({SETTING} is empty)"
        if place.address is None and (self.lists(place) or self._networks(place)):
            return None
        matched = self._is_matched(place)
        if place.address is not None and self.allows(place, place.address):
            return None
        if matched and place.scheme == "http":
            return f"http:// is for hosts that {SETTING} lists by name or address; use https://"
        if matched and place.address is None:
            return None
        return f"{SETTING} does not list {place.netloc}"

    def allows(self, place: Destination, address: Address) -> bool:
        """Whether a place may be reached at this address of it."""
        address = unmapped(address)
        if any(address in network for network in self._networks(place)):
            return True
        if self.lists(place):
            return not is_forbidden(address)
        return self._is_matched(place) and place.scheme == "https" and is_public(address)

    def lists(self, place: Destination) -> bool:
        """Whether the name of the host stands in the setting as it is."""
        return any(entry.name == place.host for entry in self._for(place))

    def _is_matched(self, place: Destination) -> bool:
        names = {entry.name for entry in self._for(place) if entry.name.startswith("*")}
        return "*" in names or (
            place.address is None and any(place.host.endswith(name[1:]) for name in names)
        )

    def _networks(self, place: Destination) -> list[Network]:
        return [entry.network for entry in self._for(place) if entry.network is not None]

    def _for(self, place: Destination) -> Iterable[AllowedServer]:
        return (entry for entry in self.entries if entry.port in (None, place.port))


def unmapped(address: Address) -> Address:
    """The IPv4 address that stands in `::ffff:a.b.c.d`; any other as it is."""
    return getattr(address, "ipv4_mapped", None) or address


def is_public(address: Address) -> bool:
    """Whether packets for this address leave for the internet, and reach there what it says."""
    address = unmapped(address)
    if any(address in network for network in _NOT_PUBLIC) or address.is_multicast or address in _METADATA:
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_reserved
    if address in _NAT64:
        return is_public(_inner(address))
    return address in _UNICAST and address.is_global and not address.scope_id


def is_forbidden(address: Address) -> bool:
    """Whether no name may lead to this address: link-local, multicast, unspecified, a cloud's credentials."""
    address = unmapped(address)
    if isinstance(address, IPv6Address) and address in _NAT64:
        return is_forbidden(_inner(address))
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
        or address in _THIS_NETWORK
        or (isinstance(address, IPv4Address) and address.is_reserved)
    )


def _inner(address: IPv6Address) -> IPv4Address:
    """The IPv4 address in the last 32 bits."""
    return IPv4Address(int(address) & 0xFFFFFFFF)


Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> addresses; raises OSError when there is none."""

LOOKUPS = 4
"""Names that are looked up at once. A slow name server must not use up the threads that all others need."""


class Resolver:
    """Looks names up as the system does, a few at once."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host, in the system's order. Raises OSError."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._limiter)
        return [str(info[4][0]) for info in found]


class SsrfGuard:
    """Gives out the addresses at which `place` may be reached, each time a connection is made to it.

    Whoever connects must use these addresses and look nothing up himself: between two looks a name may have come to
    lead elsewhere (DNS rebinding).
    """

    def __init__(self, place: Destination, allowed: AllowList, resolve: Resolve) -> None:
        self.place = place
        self.blocked = False
        """Whether the newest question was answered with no."""
        self._allowed = allowed
        self._resolve = resolve

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Where to connect to for `host`, best first. One address that is not allowed forbids all.

        Raises:
            PermissionError: This is not the place, or it may not be reached.
            OSError: The name is listed by the operator, and unknown.
        """
        self.blocked = False
        if (host, port) != (self.place.host, self.place.port):
            raise self._no("it leads to another host")
        found = [host] if self.place.address else await self._looked_up()
        if not found or not all(self._allowed.allows(self.place, ip_address(text)) for text in found):
            raise self._no("it has no address that may be used")
        return found

    def _no(self, reason: str) -> PermissionError:
        self.blocked = True
        return PermissionError(reason)

    async def _looked_up(self) -> Sequence[str]:
        try:
            return list(dict.fromkeys(await self._resolve(self.place.host, self.place.port)))
        except (OSError, UnicodeError):
            if not self._allowed.lists(self.place):
                return []  # whether a name is known inside is nothing that a client should find out
            raise OSError(UNKNOWN_NAME) from None
