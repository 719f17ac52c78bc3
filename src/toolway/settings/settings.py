"""The settings, frozen and in groups, and what each value may be; a part of the program gets the group it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from toolway.net.hosts import HOST, is_loopback
from toolway.net.ssrf import AllowedServer, parse_allowed
from toolway.settings.access import UNDECLARED, AccessConfig
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.files import FileStamp
from toolway.settings.mcp_server import ConfiguredServer, existing_file, looks_secret
from toolway.settings.profiles import ModelAlias, Profile, SearchMode, parse_aliases, parse_profiles
from toolway.settings.store_url import store_secrets, store_url

DEFAULT_CONFIG = "mcp.json"
"""The file of the tool servers that is read when it is there and no other is named."""

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
        raise ValueError("it must end with a path, usually /v1, without #")
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


def _metrics_address(value: Any) -> str:
    text = str(value).strip().lower()
    if text in {"", "off", "false", "no", "0"}:
        return ""
    if text in {"on", "true", "yes", "1"}:
        return "on"
    host, _, port = text.rpartition(":")
    if not (port.isdecimal() and 0 < int(port) < 65536 and _host(host)):
        raise ValueError("write on, off, or an address of their own like 127.0.0.1:9464")
    return text


Flag = Annotated[bool, Field(description="true or false (or 1/0, yes/no, on/off)")]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number of seconds above 0")]
Pause = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="a number of seconds, or 0 for not at all")
]
Size = Annotated[int, Field(ge=1, description="a whole number above 0")]
Port = Annotated[int, Field(ge=0, le=65535, description="a port from 0 to 65535 (0: any free one)")]
BaseUrl = Annotated[str, AfterValidator(_base_url), Field(description="a URL like http://localhost:1234/v1")]
Credential = Annotated[str, AfterValidator(legal_credential)]
File = Annotated[str, AfterValidator(existing_file)]
HostName = Annotated[str, AfterValidator(_host)]
AllowedHost = Annotated[str, AfterValidator(_allowed_host)]
Origin = Annotated[str, AfterValidator(_origin)]
SchemaProfile = Annotated[
    Literal["auto", "openai", "llama.cpp", "gemini", "strict"],
    Field(description="auto, openai, llama.cpp, gemini or strict"),
]
AllowedServers = Annotated[tuple[AllowedServer, ...], BeforeValidator(parse_allowed)]
StoreUrl = Annotated[str, AfterValidator(store_url)]
MetricsAddress = Annotated[str, BeforeValidator(_metrics_address)]
Profiles = Annotated[tuple[Profile, ...], BeforeValidator(parse_profiles)]
Aliases = Annotated[tuple[ModelAlias, ...], BeforeValidator(parse_aliases)]
Vision = Annotated[Literal["auto", "on", "off"], Field(description="auto, on or off")]
ProgressForm = Annotated[
    Literal["off", "openwebui", "reasoning"], Field(description="off, openwebui or reasoning")
]
QuotasFail = Annotated[Literal["open", "closed"], Field(description="open or closed")]
UsageForm = Annotated[Literal["last", "sum"], Field(description="last or sum")]
ResponsesApi = Annotated[Literal["translate", "passthrough"], Field(description="translate or passthrough")]
Contents = Annotated[Literal["auto", "on", "off"], Field(description="auto, on or off")]
LogFormat = Annotated[Literal["text", "json"], Field(description="text or json")]
ToolSearchMode = Annotated[SearchMode, Field(description="auto, on or off")]
ToolSearchWay = Annotated[Literal["auto", "append", "call"], Field(description="auto, append or call")]
AuditArguments = Annotated[Literal["digest", "text"], Field(description="digest or text")]
Number = Annotated[int, Field(ge=0, description="a whole number")]
ToolNames = Annotated[Literal["operation", "short"], Field(description="operation or short")]
ToolPrefix = Annotated[Literal["clash", "always"], Field(description="clash or always")]


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """The model server: where it is, and how it is spoken to."""

    base_url: BaseUrl = "http://127.0.0.1:1234/v1"
    api_key: Credential | None = field(default=None, repr=False)
    connect_timeout: Seconds = 10.0
    silence_timeout: Seconds = 600.0
    max_answer_bytes: Size = 16 * 2**20
    """Of one that is read whole, decompressed."""
    client_cert: File | None = None
    client_key: File | None = None
    schema_profile: SchemaProfile = "auto"
    model_aliases: Aliases = ()

    query: bytes = field(default=b"", repr=False)
    """What stands behind the ? of the base URL, for each request (Azure's api-version). Not a setting of its own."""


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

    def local_url(self, port: int | None = None) -> str:
        """What a client on this machine puts in front of /v1; `port`: the one that is listened on, if it is known."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{port or self.port}"


@dataclass(frozen=True, kw_only=True)
class ToolSettings:
    """The tool servers, those of the operator and those that requests may bring along."""

    endpoints: tuple[Endpoint, ...] = ()
    config: str | None = None
    """Path of the file that describes tool servers (`mcp.json`)."""
    strict: Flag = False
    pins: Flag = False
    """Whether only tools are offered that the lock file has as they are."""
    token_file: str = "~/.config/toolway/tokens.json"  # noqa: S105 - a path
    tool_names: ToolNames = "operation"
    tool_prefix: ToolPrefix = "clash"
    max_tool_response_bytes: Size = 10 * 2**20
    max_document_bytes: Size = 32 * 2**20
    refresh_interval: Seconds = 60.0
    dynamic_servers: AllowedServers = ()
    max_dynamic_servers: Size = 32
    profiles: Profiles = ()
    tool_search: ToolSearchMode = "auto"
    tool_search_way: ToolSearchWay = "auto"
    tool_search_always: tuple[str, ...] = ()
    """Tools that are offered beside the search: patterns as in a profile."""
    tool_search_embeddings: str = "auto"
    """auto, off, local, or the name of an embedding model of the model server."""

    servers: tuple[ConfiguredServer, ...] = ()
    """The tool servers of the file `config`. Not a setting."""
    disabled: tuple[str, ...] = ()
    """The names of those that the file says are disabled. Not a setting."""
    config_stamp: FileStamp | None = field(default=None, compare=False, repr=False)
    """The state of the file `config` when it was read. Not a setting."""
    login_store_url: str | None = field(default=None, repr=False)
    """`TOOLWAY_STORE`, when machines share it: there is what people granted. Not a setting."""

    @property
    def all_disabled(self) -> str:
        """What to do when there is no server because the file disables each; empty otherwise."""
        if self.endpoints or self.servers or not self.disabled:
            return ""
        which = "The only server" if len(self.disabled) == 1 else f"Each of the {len(self.disabled)} servers"
        labels = ", ".join(self.disabled)
        return (
            f'{which} in {self.config} is disabled ({labels}): take "disabled": true out where you want one.'
        )


@dataclass(frozen=True, kw_only=True)
class ApprovalSettings:
    """Calls that wait for a person."""

    approval_wait: Pause = 0.0
    """Seconds for which a request waits for the console or the command line, before it goes on without."""
    approval_ttl: Seconds = 3600.0
    """Seconds in which an answer counts."""
    grant_ttl: Seconds = 2_592_000.0
    """Seconds for which "always" counts."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """The audit log."""

    file: str | None = None
    """Path of the log, or "-" for the standard output; without one there is none."""
    audit_max_bytes: Size = 10 * 2**20
    audit_files: Number = 5
    """Files that are kept besides the one that is written."""
    audit_arguments: AuditArguments = "digest"


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The tool loop: how calls are run, what the client sees of them, and when a conversation must end."""

    text_tool_calls: Flag = False
    side_request_tools: Flag = False
    tool_timeout: Seconds = 60.0
    progress: ProgressForm = "off"
    usage: UsageForm = "last"
    replay: Flag = False
    max_rounds: Size = 20
    max_calls: Size = 100
    max_repeats: Size = 3
    max_similar: Size = 8
    max_seconds: Seconds = 600.0
    retry_wait: Seconds = 60.0


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
    quotas_fail: QuotasFail = "open"


@dataclass(frozen=True, kw_only=True)
class ResponsesSettings:
    """The Responses API."""

    mode: ResponsesApi = "translate"
    ttl: Seconds = 2_592_000.0
    max_background: Size = 100


@dataclass(frozen=True, kw_only=True)
class ConsoleSettings:
    """The console at `/`: who may use it, and what it keeps of conversations."""

    enabled: Flag = True
    keys: tuple[Credential, ...] = field(default=(), repr=False)
    """Those who have one may see and change everything that the console shows."""
    edit: Flag = True
    """Whether it may change the file of the tool servers, and so run programs."""
    contents: Contents = "auto"
    max_conversations: Size = 10_000
    """Conversations that are listed; the oldest go first."""
    max_bytes: Size = 16 * 2**20
    """What is kept of all of them but their lines in the list."""
    ttl: Seconds = 86_400.0


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What is said on the terminal."""

    debug_output: Flag = True
    format: LogFormat = "text"


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """The metrics for Prometheus, and where they are served."""

    address: MetricsAddress = ""
    """Empty: there are none. "on": at /metrics, for whoever may use the API. Else an address of their own."""

    @property
    def own_address(self) -> tuple[str, int] | None:
        """Host and port of a listener for the metrics alone."""
        host, separator, port = self.address.rpartition(":")
        return (host.removeprefix("[").removesuffix("]"), int(port)) if separator else None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. Times are seconds, sizes are bytes unless the name says otherwise.

    `config.example` explains each one; a test keeps it complete.
    """

    upstream: UpstreamSettings = UpstreamSettings()
    server: ServerSettings = ServerSettings()
    tools: ToolSettings = ToolSettings()
    approvals: ApprovalSettings = ApprovalSettings()
    audit: AuditSettings = AuditSettings()
    loop: LoopSettings = LoopSettings()
    results: ResultSettings = ResultSettings()
    store: StoreSettings = StoreSettings()
    responses: ResponsesSettings = ResponsesSettings()
    console: ConsoleSettings = ConsoleSettings()
    log: LogSettings = LogSettings()
    access: AccessConfig = UNDECLARED
    """Who may do what, as the file `config` says. Not a setting."""
    metrics: MetricsSettings = MetricsSettings()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What looks like a mistake but forbids nothing, one sentence each. Not a setting."""

    @property
    def shows_contents(self) -> bool:
        """Whether the console keeps and shows what is said in conversations."""
        choice = self.console.contents
        return choice == "on" or (choice == "auto" and not self.server.is_exposed)

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all configured servers."""
        return frozenset(entry.label for entry in (*self.tools.endpoints, *self.tools.servers))

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every configured value that must never be shown."""
        found = [self.upstream.api_key, *self.server.api_keys, *self.console.keys]
        found += store_secrets(self.store.url)
        found += [
            value for name, value in parse_qsl(self.upstream.query.decode()) if looks_secret(name, value)
        ]
        for endpoint in self.tools.endpoints:
            found += [endpoint.password, endpoint.token, *endpoint.headers.values()]
        for server in self.tools.servers:
            found += server.secrets
        return tuple(s for s in found if s)
