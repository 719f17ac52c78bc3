"""Servers that requests declare (OpenAI's remote MCP tools): read, connected when named, kept for the next, bounded."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import anyio
from anyio.abc import TaskGroup

from toolway.errors import Busy, ConnectorError, InvalidRequest, sentence
from toolway.net.ssrf import AllowList, Destination, Resolve, SsrfGuard, read_destination
from toolway.tools.source_wrappers import SourceWrapper
from toolway.types import JSON, OnProgress, Tool, ToolResult, ToolSource
from toolway.wire.lenient_json import dumps

PREFIX = "toolway:"
"""What begins a `server_url` that stands for a configured server."""

MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 2**10

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?")
_CONNECTION_HEADERS = frozenset({
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
        identity = [owner, self.label, self.place.url, sorted(self.headers.items())]
        return sha256(dumps(identity)).digest()


def read_declared(entry: JSON, configured: Collection[str]) -> DeclaredServer | None:
    """The server that a `{"type": "mcp"}` entry of `tools` declares; None when it names one of `configured`.

    For clients that must send a `server_url` (AI SDK), one that begins with "toolway:" names one, too. Raises
    InvalidRequest, with param "tools".
    """
    url, label = entry.get("server_url"), entry.get("server_label")
    if url is None or (isinstance(url, str) and url.startswith(PREFIX)):
        return None
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise _invalid(
            "server_label must be a letter, and then up to 63 letters, digits, '-' and '_', "
            f"not {str(label)[:70]!r}."
        )
    if label in configured:
        raise _invalid(
            f"{label!r} is a tool server of this Toolway. Leave out server_url to use it (or send {PREFIX!r} there), "
            "or choose another server_label."
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
    if lower in _CONNECTION_HEADERS or lower.startswith("mcp-"):
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


IDLE = 60.0
"""Seconds that a connection is kept for the next request."""

CONNECT_TIMEOUT = 20.0
"""Seconds from the look-up of its name to the list of its tools."""

LEEWAY = 5.0
"""Seconds more that a request waits, for a connection that must be closed before."""

MAX_AGE = 600.0
"""Seconds after which a connection is not used again: addresses, rights and tools may have changed."""

MAX_SHOWN = 500
"""Characters of what a server says about its trouble."""

MAX_TOOLS = 1000
MAX_DEFINITIONS = 2 * 2**20
"""Bytes of all tools of one server."""

Make = Callable[[DeclaredServer, SsrfGuard], ToolSource]

log = logging.getLogger("toolway.dynamic")

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>)\]}]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ConnectedServers:
    """What became of the declared servers: the tools of those that answer, and by label why others do not."""

    sources: tuple[ToolSource, ...] = ()
    failures: Mapping[str, ConnectorError]


class ClientServers:
    """All connections to declared servers. One is shared by the requests of one owner that declare the same.

    `make` makes the source of a server, which is ready or has failed within `connect_timeout` seconds; `limit` is
    how many there may be at once, and `idle` the seconds that an unused one is kept.
    """

    def __init__(
        self,
        make: Make,
        allowed: AllowList,
        resolve: Resolve,
        *,
        limit: int,
        idle: float = IDLE,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._make = make
        self._allowed = allowed
        self._resolve = resolve
        self._limit = limit
        self._idle = idle
        self._connect_timeout = connect_timeout
        self._group: TaskGroup | None = None
        self._by_key: dict[bytes, _LiveSource] = {}
        self._alive: set[_LiveSource] = set()

    @property
    def count(self) -> int:
        """How many connections there are, those that are being closed among them."""
        return len(self._alive)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ClientServers]:
        """Keep connections while the block lasts; with it they all end."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield self
            finally:
                self._group = None
                group.cancel_scope.cancel()

    @asynccontextmanager
    async def use(self, servers: Sequence[DeclaredServer], *, owner: str) -> AsyncIterator[ConnectedServers]:
        """The tools of `servers`, for as long as the block lasts; waits until each has answered or failed.

        `owner` is a digest of the client's credentials: what one client declares, no other gets.

        Raises:
            InvalidRequest: A server is not allowed (code "server_not_allowed"), or two have one label.
            Busy: The limit of connections is reached, and all are in use.
        """
        self._check(servers)
        with ExitStack() as stack:
            lives = [stack.enter_context(self._in_use(server, owner)) for server in servers]
            failures: dict[str, ConnectorError] = {}
            for live in lives:
                await live.wait_until_tried(self._connect_timeout + LEEWAY)
                if live.egress.blocked and not live.is_ready:
                    raise _not_allowed(live.server, "it has no address that may be used")
                if error := live.failure():
                    failures[live.server.label] = error
            ready = tuple(live for live in lives if live.server.label not in failures)
            yield ConnectedServers(sources=ready, failures=failures)

    def _check(self, servers: Sequence[DeclaredServer]) -> None:
        labels = [server.label for server in servers]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise InvalidRequest(
                f"Two servers have the server_label {twice!r}; give each its own.",
                param="tools",
                code="invalid_server",
            )
        for server in servers:
            if reason := self._allowed.denial_of(server.place):
                raise _not_allowed(server, reason)
        if len(servers) > self._limit:
            raise InvalidRequest(
                f"The request declares {len(servers)} servers; {self._limit} may be connected at once.",
                param="tools",
                code="too_many_servers",
            )

    @contextmanager
    def _in_use(self, server: DeclaredServer, owner: str) -> Iterator[_LiveSource]:
        live = self._live(server, server.key(owner))
        live.users += 1
        live.wake()
        try:
            yield live
        finally:
            live.users -= 1
            live.used_at = anyio.current_time()
            if not live.is_ready and not (live.users and live.status.state == "starting"):
                self._retire(live)
            live.wake()

    def _live(self, server: DeclaredServer, key: bytes) -> _LiveSource:
        """The connection for this key, a new one if there is none that can be used."""
        known = self._by_key.get(key)
        if known is not None and known.is_usable:
            return known
        if self._group is None:
            raise RuntimeError("the servers are not running")
        before = self._room()
        if known is not None:
            self._retire(known)
        egress = SsrfGuard(server.place, self._allowed, self._resolve)
        live = self._by_key[key] = _LiveSource(server, egress, self._make(server, egress))
        self._alive.add(live)
        self._group.start_soon(self._keep, live, before)
        return live

    def _room(self) -> _LiveSource | None:
        """None if one more connection may be made; else the one that must have ended before, told to end."""
        if len(self._alive) - sum(live.gives_way for live in self._alive) < self._limit:
            return None
        idle = [live for live in self._alive if not live.users and not live.gives_way]
        if not idle:
            raise Busy(
                f"All {self._limit} connections to servers that requests declare are in use. Try again later; the "
                "operator may allow more with TOOLWAY_MAX_DYNAMIC_SERVERS.",
                code="too_many_servers",
            )
        oldest = min(idle, key=lambda live: live.used_at)
        oldest.gives_way = True
        self._retire(oldest)
        return oldest

    def _retire(self, live: _LiveSource) -> None:
        """Give it to no other request; it ends when those that have it are done."""
        live.retired = True
        for key in [key for key, known in self._by_key.items() if known is live]:
            del self._by_key[key]
        live.wake()

    async def _keep(self, live: _LiveSource, before: _LiveSource | None) -> None:
        """Own one connection from its first to its last moment."""
        try:
            if before is not None:
                await before.ended.wait()
            log.info("connecting to %s, declared by a request", live.server.place.host)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live.inner.run, live.wake)
                await live.needless(self._idle)
                self._retire(live)
                tasks.cancel_scope.cancel()
        finally:
            self._retire(live)
            self._alive.discard(live)
            live.ended.set()
            log.info("the connection to %s is closed", live.server.place.host)


class _LiveSource(SourceWrapper):
    """One connection as a ToolSource, and who needs it. What goes out in words holds no secret of the server."""

    def __init__(self, server: DeclaredServer, egress: SsrfGuard, source: ToolSource) -> None:
        super().__init__(source)
        self.server = server
        self.egress = egress
        self.users = 0
        self.born = self.used_at = anyio.current_time()
        self.retired = self.gives_way = False
        self.ended = anyio.Event()
        self._news = anyio.Event()
        self._measured: tuple[tuple[Tool, ...], str | None] = ((), None)

    @property
    def is_ready(self) -> bool:
        return self.status.state == "ready" and self._excess() is None

    @property
    def is_usable(self) -> bool:
        """Whether one more request may have it: it works, or nobody knows yet."""
        young = anyio.current_time() - self.born < MAX_AGE
        return young and not self.retired and (self.is_ready or self.status.state == "starting")

    async def run(self, changed: Callable[[], None]) -> None:
        """Nothing: whoever keeps the connection runs it."""

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one tool; see `ToolSource.call`."""
        result = await super().call(tool, arguments, on_progress)
        return replace(result, text=self._cleaned(result.text)) if result.is_error else result

    def wake(self) -> None:
        """Have everybody who waits for something here look again."""
        self._news.set()
        self._news = anyio.Event()

    async def wait_until_tried(self, within: float) -> None:
        """Wait until it is ready or has failed."""
        with anyio.move_on_after(within):
            while self.status.state == "starting" and not self.ended.is_set():
                await self._news.wait()

    async def needless(self, after: float) -> None:
        """Wait until nobody has used it for so long, or nobody uses it and nobody will."""
        while self.users or not self.retired:
            if self.users:
                await self._news.wait()
                continue
            left = self.used_at + after - anyio.current_time()
            if left <= 0:
                return
            with anyio.move_on_after(left):
                await self._news.wait()

    def failure(self) -> ConnectorError | None:
        """Why its tools cannot be used; None when they can."""
        status = self.status
        reason = (
            self._excess() if status.state == "ready" else self._cleaned(status.error or "no answer in time")
        )
        if reason is None:
            return None
        log.info("%s, declared by a request, cannot be used: %s", self.server.place.host, status.state)
        code = "http_error" if status.state == "needs auth" else "connection_error"
        message = sentence(
            f"The tools of the MCP server {self.label!r} cannot be listed: {reason[:MAX_SHOWN]}"
        )
        return ConnectorError(message, param="tools", code=code)

    def _excess(self) -> str | None:
        tools = self.status.tools
        if self._measured[0] is not tools:
            self._measured = (tools, _excess(tools))
        return self._measured[1]

    def _cleaned(self, text: str) -> str:
        """Words of the server, or about it, without its secrets and without addresses behind it."""
        for secret in self.server.secrets:
            text = text.replace(secret, "***")
        return _URL.sub(self._known_url, text)

    def _known_url(self, match: re.Match[str]) -> str:
        place = self.server.place
        try:
            same = read_destination(match[0]).netloc == place.netloc
        except ValueError:
            same = False
        return f"{place.scheme}://{place.netloc}" if same else "(another address)"


def _excess(tools: Sequence[Tool]) -> str | None:
    """What there is too much of in a list of tools."""
    if len(tools) > MAX_TOOLS:
        return f"it offers {len(tools)} tools, and {MAX_TOOLS} are the most"
    if sum(map(_size, tools)) > MAX_DEFINITIONS:
        return f"its tools are larger than {MAX_DEFINITIONS / 2**20:.0f} MiB"
    return None


def _size(tool: Tool) -> int:
    return len(tool.name) + len(tool.description) + len(dumps(tool.parameters))


def _not_allowed(server: DeclaredServer, reason: str) -> InvalidRequest:
    return InvalidRequest(
        sentence(f"The server {server.label!r} may not be used here: {reason}"),
        param="tools",
        code="server_not_allowed",
    )
