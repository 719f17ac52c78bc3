"""Makes the tool source of each configured server, and those of servers that requests declare."""

from __future__ import annotations

import base64
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from toolway.net.client import ClientCertificate, client_certificate
from toolway.net.ssrf import AllowList, Resolve, Resolver, SsrfGuard
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.mcp_server import (
    ConfiguredServer,
    McpServerConfig,
    OpenApiServerConfig,
    RemoteServerConfig,
    StdioServerConfig,
    UnusableServerConfig,
    with_home,
)
from toolway.settings.settings import ToolSettings
from toolway.tools.autodetect import AutodetectSource, find_mcp, has_document
from toolway.tools.catalog import Catalog
from toolway.tools.client_servers import CONNECT_TIMEOUT, IDLE, ClientServers, DeclaredServer
from toolway.tools.forwarding_loops import ForwardingLoopFilter, name_of
from toolway.tools.mcp import ConnectOptions, MCPSource, ReconnectPolicy
from toolway.tools.mcp.sampling import UpstreamSampler
from toolway.tools.openapi import OpenAPISource
from toolway.tools.pins import PinnedSource, Pins
from toolway.tools.source_wrappers import Mask, MaskedSource, TransformedSource
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource
from toolway.upstream.client import Upstream

if TYPE_CHECKING:  # they load for a tenth of a second
    import httpx2

    from toolway.tools.mcp.logins import LoginStore

SILENT_LOG = logging.getLogger("toolway.silent")
SILENT_LOG.disabled = True
"""What strangers' servers say, in any number of lines, is in no log; nor do they get loggers of their own."""

MAX_LINES = 500
"""The newest lines of each tool server that are kept."""


class UnusableSource:
    """See `types.ToolSource`. An entry of `mcp.json` of which no server can be made; it says why, and has no tools."""

    kind = "mcp.json"

    def __init__(self, config: UnusableServerConfig) -> None:
        self.label = config.label
        self.status = SourceStatus(
            state="failed", error=" ".join(config.mistakes), error_stage="configuration"
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Be of no use; only another file can mend it."""
        changed()
        await anyio.sleep_forever()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Nobody can: there is no tool."""
        return ToolResult(text=str(self.status.error), is_error=True)


class ServerOutput:
    """What one server writes besides its answers: the newest lines, whatever becomes of its process.

    `on_line` is told each new one.
    """

    def __init__(self) -> None:
        self.lines: deque[tuple[float, str]] = deque(maxlen=MAX_LINES)
        """When (Unix time), and what."""
        self.on_line: Callable[[float, str], None] | None = None

    def add(self, text: str) -> None:
        """The server, or Toolway about it, says a line."""
        now = time.time()
        self.lines.append((now, text))
        if self.on_line:
            self.on_line(now, text)


class SourceFactory:
    """Makes sources; one whose configuration has not changed is the same object again.

    Without `upstream` no server gets a model when it asks for one; `api_key` goes along then.
    """

    def __init__(self, upstream: Upstream | None = None, api_key: str | None = None) -> None:
        self._upstream = upstream
        self._api_key = api_key
        self._name = ""
        """That of this Toolway in the paths of tools: what it was at the start."""
        self._made: dict[str, tuple[Endpoint | ConfiguredServer, ToolSource]] = {}
        self.output: dict[str, ServerOutput] = {}
        """What each MCP server of the file writes, by its label."""
        self.pins: Pins | None = None
        """Which tools may be offered, once there are sources."""

    def sources(self, settings: ToolSettings) -> list[ToolSource]:
        """A source for each configured server, in the order of the configuration."""
        configs: list[Endpoint | ConfiguredServer] = [*settings.endpoints, *settings.servers]
        self.pins = self.pins or Pins(settings)
        self.pins.forget(config.label for config in configs)
        made = {config.label: (config, self._source(config, settings, self.pins)) for config in configs}
        self._made = made
        self.output = {label: output for label, output in self.output.items() if label in made}
        return [source for _, source in made.values()]

    def _source(self, config: Endpoint | ConfiguredServer, settings: ToolSettings, pins: Pins) -> ToolSource:
        known = self._made.get(config.label)
        if known is not None and known[0] == config:
            return known[1]
        self._name = self._name or name_of(settings)
        return PinnedSource(ForwardingLoopFilter(self._new(config, settings), self._name), pins)

    def _new(self, config: Endpoint | ConfiguredServer, settings: ToolSettings) -> ToolSource:
        if isinstance(config, Endpoint):
            return _autodetected(config, settings)
        if isinstance(config, UnusableServerConfig):
            return UnusableSource(config)
        inner: ToolSource
        mask = _mask(config)
        if isinstance(config, OpenApiServerConfig):
            inner = OpenAPISource(_endpoint(config), settings)
        else:
            options = ConnectOptions(
                max_result_bytes=settings.max_tool_response_bytes,
                sampler=self._sampler(config),
                auth=partial(_auth, config, settings, mask),
                certificate=_certificate(config),
                on_line=self._listener(config.label, mask),
            )
            inner = MCPSource(config, options)
        masked = MaskedSource(inner, mask)
        return TransformedSource(masked, config) if config.changes_tools else masked

    def _listener(self, label: str, mask: Mask) -> Callable[[str], None]:
        output = self.output.setdefault(label, ServerOutput())
        return lambda line: output.add(mask(line))

    def _sampler(self, config: McpServerConfig) -> UpstreamSampler | None:
        if not config.sampling or self._upstream is None:
            return None
        return UpstreamSampler(self._upstream, self._api_key, max_tokens=config.sampling_max_tokens)


def _mask(config: McpServerConfig | OpenApiServerConfig) -> Mask:
    """Hides what is sent to this server from what it answers."""
    if isinstance(config, StdioServerConfig):
        return Mask.of(env=config.env)
    mask = Mask.of(url=config.url, headers=config.headers)
    clients = (config.auth, config.oauth) if isinstance(config, RemoteServerConfig) else ()
    for secret in [client.client_secret for client in clients if client]:
        mask.add(secret or "")
    return mask


def _autodetected(endpoint: Endpoint, settings: ToolSettings) -> ToolSource:
    config = _mcp(endpoint)
    mask = Mask.of(url=endpoint.url, headers={**endpoint.headers, **config.headers})
    openapi = MaskedSource(OpenAPISource(endpoint, settings), mask)
    if not endpoint.url.startswith(("http://", "https://")):
        return openapi
    options = ConnectOptions(max_result_bytes=settings.max_tool_response_bytes)

    def speaking_mcp(url: str) -> ToolSource:
        return MaskedSource(MCPSource(replace(config, url=url), options), mask)

    async def find_document() -> ToolSource | None:
        return openapi if await has_document(endpoint.url, config.headers) else None

    async def find_other() -> ToolSource | None:
        url = await find_mcp(endpoint.url, config.headers)
        return speaking_mcp(url) if url else None

    if urlsplit(endpoint.url).path.rstrip("/").endswith(("/mcp", "/sse")):
        return AutodetectSource(speaking_mcp(endpoint.url), find_document)
    return AutodetectSource(openapi, find_other)


@asynccontextmanager
async def open_client_servers(
    settings: ToolSettings,
    *,
    resolve: Resolve | None = None,
    idle: float = IDLE,
    connect_timeout: float = CONNECT_TIMEOUT,
) -> AsyncIterator[ClientServers]:
    """The connections to servers that requests declare, while the block lasts. `resolve` looks names up."""

    def make(server: DeclaredServer, egress: SsrfGuard) -> ToolSource:
        # No `auth`, no sampler: neither what the operator was granted nor his model is for strangers' servers.
        config = RemoteServerConfig(label=server.label, url=server.place.url, headers=server.headers)
        options = ConnectOptions(
            max_result_bytes=settings.max_tool_response_bytes, egress=egress, logger=SILENT_LOG
        )
        policy = ReconnectPolicy(connect_timeout=connect_timeout, restart_wait=5.0, debounce=2.0)
        return MaskedSource(MCPSource(config, options, policy), _mask(config))

    servers = ClientServers(
        make,
        AllowList(settings.dynamic_servers),
        resolve or Resolver(),
        limit=settings.max_dynamic_servers,
        idle=idle,
        connect_timeout=connect_timeout,
    )
    async with servers.running():
        yield servers


@asynccontextmanager
async def open_sources(settings: ToolSettings) -> AsyncIterator[Sequence[ToolSource]]:
    """A source for each configured server."""
    yield SourceFactory().sources(settings)


COMMAND_TIMEOUT = 30.0
"""Seconds in which a server must come for a command that asks once."""


@asynccontextmanager
async def open_catalog(settings: ToolSettings) -> AsyncIterator[Catalog]:
    """A catalog for a single look: all configured servers were tried when it is entered, or had COMMAND_TIMEOUT."""
    async with (
        open_sources(settings) as sources,
        Catalog(sources, prefixed=settings.tool_prefix == "always").running() as catalog,
    ):
        await catalog.wait_until_tried(COMMAND_TIMEOUT)
        yield catalog


def _auth(
    config: McpServerConfig, settings: ToolSettings, mask: Mask, transport: httpx2.AsyncBaseTransport
) -> httpx2.Auth | None:
    """What authenticates at a remote server: client credentials, or what `toolway login` was granted."""
    from toolway.tools.mcp.logins import Login  # noqa: PLC0415 - loads httpx2
    from toolway.tools.mcp.oauth import TokenAuth  # noqa: PLC0415 - loads httpx2

    if isinstance(config, StdioServerConfig):
        return None
    if config.auth:
        login = Login(
            token_url=config.auth.token_url,
            client_id=config.auth.client_id,
            client_secret=config.auth.client_secret,
            private_key=config.auth.private_key,
            algorithm=config.auth.algorithm,
            audience=config.auth.audience,
            scope=config.auth.scope,
            by_machine=True,
        )
        return TokenAuth(config.url, transport, login=login, learned=mask.add)
    if "authorization" in {name.lower() for name in config.headers}:
        return None
    return TokenAuth(config.url, transport, store=login_store(settings), learned=mask.add)


def login_store(settings: ToolSettings) -> LoginStore:
    """Where what people granted to Toolway is kept."""
    from toolway.tools.mcp.logins import LoginFile, LoginStore  # noqa: PLC0415 - loads httpx2

    return LoginStore(LoginFile(with_home(settings.token_file)), settings.login_store_url)


def _certificate(config: McpServerConfig) -> ClientCertificate | None:
    if not isinstance(config, RemoteServerConfig):
        return None
    return client_certificate(config.client_cert, config.client_key)


def _endpoint(config: OpenApiServerConfig) -> Endpoint:
    return Endpoint(
        label=config.label,
        url=config.url,
        spec=config.spec,
        headers=config.headers,
        client_cert=config.client_cert,
        client_key=config.client_key,
    )


def _mcp(endpoint: Endpoint) -> RemoteServerConfig:
    """An endpoint of MCP_SERVER_ENDPOINTS as an MCP server; its credentials become a header."""
    headers: dict[str, str] = {}
    if endpoint.token is not None:
        headers["Authorization"] = f"Bearer {endpoint.token}"
    elif endpoint.username is not None:
        pair = f"{endpoint.username}:{endpoint.password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return RemoteServerConfig(label=endpoint.label, url=endpoint.url, headers=headers)
