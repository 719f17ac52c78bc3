"""The settings, frozen and in groups: each part of the program gets the group it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from toolway.net.allowlist import AllowedServer, parse_allowed
from toolway.net.hosts import HOST, is_loopback
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.mcp_server import ServerConfig
from toolway.settings.profiles import Profile, parse_profiles
from toolway.settings.store_url import store_secrets, store_url

_ALLOWED_HOST = re.compile(
    r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?"
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")


def _base_url(text: str) -> str:
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() not in {"http", "https"}:
        raise ValueError("it must start with http:// or https://")
    url = urlsplit(text)
    if not url.hostname or (url.port is not None and url.port == 0):
        raise ValueError("it names no host")
    try:
        url.hostname.encode("idna")
    except UnicodeError:
        raise ValueError("its host is no name") from None
    if url.username is not None:
        raise ValueError("it holds a user name; put the key into OPENAI_API_KEY")
    if url.query or url.fragment:
        raise ValueError("it must end with a path, usually /v1, without ? or #")
    return text.rstrip("/")


def legal_credential(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("it holds a space or a character that no HTTP header may carry")
    return text


def _host(text: str) -> str:
    host = text.removeprefix("[").removesuffix("]")
    if "://" in text:
        raise ValueError("it is a URL; give the name or address alone")
    if re.fullmatch(r"[^:]+:\d+", host):
        raise ValueError("it holds a port; give that in TOOLWAY_PORT")
    if not HOST.fullmatch(host):
        raise ValueError("it is no host name or address")
    return host


def _allowed_host(text: str) -> str:
    if not _ALLOWED_HOST.fullmatch(text.lower()):
        raise ValueError("write a name like toolway.example.com or *.example.com, without http://")
    return text.lower()


def _origin(text: str) -> str:
    origin = text.lower().rstrip("/")
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError("write an origin like http://localhost:3000, without a path, or *")
    return origin


Flag = Annotated[bool, Field(description="true or false (or 1/0, yes/no, on/off)")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number of seconds above 0")]
Size = Annotated[int, Field(ge=1, description="a whole number above 0")]
Port = Annotated[int, Field(ge=0, le=65535, description="a port from 0 to 65535 (0: any free one)")]
BaseUrl = Annotated[str, AfterValidator(_base_url), Field(description="a URL like http://localhost:1234/v1")]
Credential = Annotated[str, AfterValidator(legal_credential)]
HostName = Annotated[str, AfterValidator(_host)]
AllowedHost = Annotated[str, AfterValidator(_allowed_host)]
Origin = Annotated[str, AfterValidator(_origin)]
SchemaProfile = Annotated[
    Literal["auto", "openai", "llama.cpp", "gemini", "strict"],
    Field(description="auto, openai, llama.cpp, gemini or strict"),
]
AllowedServers = Annotated[tuple[AllowedServer, ...], BeforeValidator(parse_allowed)]
StoreUrl = Annotated[str, AfterValidator(store_url)]
Profiles = Annotated[tuple[Profile, ...], BeforeValidator(parse_profiles)]
Vision = Annotated[Literal["auto", "on", "off"], Field(description="auto, on or off")]
ProgressForm = Annotated[
    Literal["off", "openwebui", "reasoning"], Field(description="off, openwebui or reasoning")
]
ResponsesApi = Annotated[Literal["translate", "passthrough"], Field(description="translate or passthrough")]
ToolNames = Annotated[Literal["operation", "short"], Field(description="operation or short")]


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """The model server: where it is, and how it is spoken to."""

    base_url: BaseUrl = "http://127.0.0.1:1234/v1"
    api_key: Credential | None = field(default=None, repr=False)
    connect_timeout: Seconds = 10.0
    silence_timeout: Seconds = 600.0
    max_answer_bytes: Size = 16 * 2**20
    """Of one that is read whole, decompressed."""
    schema_profile: SchemaProfile = "auto"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The socket: where Toolway listens, who may use it, and how long a client may take."""

    host: HostName = "127.0.0.1"
    port: Port = 8484
    workers: Size = 1
    insecure: Flag = False
    api_keys: tuple[Credential, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[AllowedHost, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
    max_body_bytes: Size = 64 * 2**20
    receive_timeout: Seconds = 30.0
    send_timeout: Seconds = 300.0
    idle_timeout: Seconds = 60.0
    websocket_idle_timeout: Seconds = 3600.0
    shutdown_grace: Seconds = 10.0
    keepalive_interval: Seconds = 10.0

    @property
    def is_exposed(self) -> bool:
        """Can other machines reach the address that this process listens on?"""
        return not is_loopback(self.host)


@dataclass(frozen=True, kw_only=True)
class ToolSettings:
    """The tool servers, those of the operator and those that requests may bring along."""

    endpoints: tuple[Endpoint, ...] = ()
    config: str | None = None
    """Path of the file that describes tool servers (`mcp.json`)."""
    strict: Flag = False
    token_file: str = "~/.config/toolway/tokens.json"  # noqa: S105 - a path
    tool_names: ToolNames = "operation"
    max_tool_response_bytes: Size = 10 * 2**20
    max_document_bytes: Size = 32 * 2**20
    refresh_interval: Seconds = 60.0
    dynamic_servers: AllowedServers = ()
    max_dynamic_servers: Size = 32
    profiles: Profiles = ()

    servers: tuple[ServerConfig, ...] = ()
    """The tool servers of the file `config`. Not a setting."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The tool loop: how calls are run, what the client sees of them, and when a conversation must end."""

    text_tool_calls: Flag = False
    tool_timeout: Seconds = 60.0
    progress: ProgressForm = "off"
    replay: Flag = False
    max_rounds: Size = 20
    max_calls: Size = 100
    max_repeats: Size = 3
    max_similar: Size = 8
    max_seconds: Seconds = 600.0


@dataclass(frozen=True, kw_only=True)
class ResultSettings:
    """What the model is shown of a tool's result."""

    max_result_chars: Size = 60_000
    max_round_chars: Size = 120_000
    read_more: Flag = True
    vision: Vision = "auto"
    max_image_bytes: Size = 5 * 2**20


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What is remembered between two requests: where, for how long, how much."""

    url: StoreUrl = field(default="memory:", repr=False)
    ttl: Seconds = 86_400.0
    max_bytes: Size = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class ResponsesSettings:
    """The Responses API."""

    mode: ResponsesApi = "translate"
    ttl: Seconds = 2_592_000.0
    max_background: Size = 100


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is said on the terminal."""

    debug_output: Flag = True


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. Times are seconds, sizes are bytes unless the name says otherwise.

    `config.example` explains each one; a test keeps it complete.
    """

    upstream: UpstreamSettings = UpstreamSettings()
    server: ServerSettings = ServerSettings()
    tools: ToolSettings = ToolSettings()
    loop: LoopSettings = LoopSettings()
    results: ResultSettings = ResultSettings()
    store: StoreSettings = StoreSettings()
    responses: ResponsesSettings = ResponsesSettings()
    log: LogSettings = LogSettings()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What looks like a mistake but forbids nothing, one sentence each. Not a setting."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every configured value that must never be shown."""
        found = [self.upstream.api_key, *self.server.api_keys, *store_secrets(self.store.url)]
        for endpoint in self.tools.endpoints:
            found += [endpoint.password, endpoint.token, *endpoint.headers.values()]
        for server in self.tools.servers:
            found += server.secrets
        return tuple(s for s in found if s)
