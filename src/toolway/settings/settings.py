"""Environment and .env -> frozen Settings; the only module that reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from toolway.errors import ConfigError
from toolway.net.allowlist import AllowedServer, parse_allowed
from toolway.net.hosts import HOST, is_loopback, masked
from toolway.settings.env_endpoints import Endpoint, parse_endpoints, token_key
from toolway.settings.mcp_json import McpConfig, read_config
from toolway.settings.mcp_server import ServerConfig
from toolway.settings.profiles import Profile, parse_profiles
from toolway.settings.store_url import shown_store, store_secrets, store_url

__all__ = ["Endpoint", "Settings", "load_settings", "reload_servers", "variable"]

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


def _credential(text: str) -> str:
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
Credential = Annotated[str, AfterValidator(_credential)]
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
class Settings:
    """Everything that can be set. Times are seconds, sizes are bytes unless the name says otherwise.

    `config.example` explains each one; a test keeps it complete.
    """

    openai_base_url: BaseUrl = "http://127.0.0.1:1234/v1"
    openai_api_key: Credential | None = field(default=None, repr=False)
    endpoints: tuple[Endpoint, ...] = ()
    config: str | None = None
    """Path of the file that describes tool servers (`mcp.json`)."""
    strict: Flag = False
    token_file: str = "~/.config/toolway/tokens.json"  # noqa: S105 - a path
    debug_output: Flag = True

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
    upstream_connect_timeout: Seconds = 10.0
    upstream_silence_timeout: Seconds = 600.0
    keepalive_interval: Seconds = 10.0

    tool_names: ToolNames = "operation"
    schema_profile: SchemaProfile = "auto"
    text_tool_calls: Flag = False
    tool_timeout: Seconds = 60.0
    max_tool_response_bytes: Size = 10 * 2**20
    max_result_chars: Size = 60_000
    max_round_chars: Size = 120_000
    read_more: Flag = True
    vision: Vision = "auto"
    max_image_bytes: Size = 5 * 2**20
    max_document_bytes: Size = 32 * 2**20
    refresh_interval: Seconds = 60.0
    dynamic_servers: AllowedServers = ()
    max_dynamic_servers: Size = 32
    profiles: Profiles = ()
    progress: ProgressForm = "off"
    max_rounds: Size = 20
    max_calls: Size = 100
    max_repeats: Size = 3
    max_similar: Size = 8
    max_seconds: Seconds = 600.0

    store: StoreUrl = field(default="memory:", repr=False)
    store_ttl: Seconds = 86_400.0
    store_max_bytes: Size = 64 * 2**20
    replay: Flag = False

    responses: ResponsesApi = "translate"
    responses_ttl: Seconds = 2_592_000.0
    max_background: Size = 100

    servers: tuple[ServerConfig, ...] = ()
    """The tool servers of the file `config`. Not a setting."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What looks like a mistake but forbids nothing, one sentence each. Not a setting."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every configured value that must never be shown."""
        found = [self.openai_api_key, *self.api_keys, *store_secrets(self.store)]
        for endpoint in self.endpoints:
            found += [endpoint.password, endpoint.token, *endpoint.headers.values()]
        for server in self.servers:
            found += server.secrets
        return tuple(s for s in found if s)

    @property
    def is_exposed(self) -> bool:
        """Can other machines reach the address that this process listens on?"""
        return not is_loopback(self.host)


_OWN_NAMES = {
    "openai_base_url": "OPENAI_BASE_URL",
    "openai_api_key": "OPENAI_API_KEY",
    "endpoints": "MCP_SERVER_ENDPOINTS",
    "debug_output": "DEBUG_OUTPUT",
}
_SECRET = {"openai_api_key", "api_keys"}
_READ_ELSEWHERE = {"TOOLWAY_CACHE"}
"""Where the demo keeps its model's weights; not a setting of the server."""
_TOKEN = re.compile(r"TOOLWAY_SERVER_([A-Z0-9_]+)_TOKEN")
_MISTAKEN = {
    "OPENAI_API_BASE": "OPENAI_BASE_URL",
    "OPENAI_BASEURL": "OPENAI_BASE_URL",
    "MCP_SERVER_ENDPOINT": "MCP_SERVER_ENDPOINTS",
    "MCP_SERVERS_ENDPOINTS": "MCP_SERVER_ENDPOINTS",
    "MCP_ENDPOINTS": "MCP_SERVER_ENDPOINTS",
}


def variable(setting: str) -> str:
    """The environment variable of a field of Settings."""
    return _OWN_NAMES.get(setting) or f"TOOLWAY_{setting.upper()}"


def load_settings(
    env: Mapping[str, str] | None = None,
    dotenv: Path | None = Path(".env"),
    found_config: Path | None = Path("mcp.json"),
    **overrides: Any,
) -> Settings:
    """Settings from `overrides` (the command line; None is not given), else `env`, else the file `dotenv`.

    `found_config` is read when there is such a file and `config` names no other. `env` is the process's
    environment if None. An empty value means unset. Raises ConfigError that names
    every mistake, one a line; what is only suspicious is in `Settings.warnings`.
    """
    unknown = overrides.keys() - _settings()
    if unknown:
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    texts = _texts(os.environ if env is None else env, dotenv)
    given = {name: value for name, value in overrides.items() if value is not None}
    values: dict[str, Any] = {name: texts[variable(name)] for name in _settings() if variable(name) in texts}
    values |= given
    problems, warnings = _read_endpoints(values, texts)
    if "config" not in values and found_config is not None and found_config.is_file():
        values["config"] = str(found_config)
    values = {name: _as_list(name, value) for name, value in values.items()}
    warnings += _suspicious(texts)
    try:
        settings = _adapter().validate_python({**values, "warnings": tuple(warnings)})
        settings = _with_servers(settings, texts)
    except ValidationError as error:
        problems += _sentences(error, given)
    except ConfigError as error:
        problems.append(error.message)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def reload_servers(settings: Settings, dotenv: Path | None = Path(".env")) -> Settings:
    """The same settings with the servers that the file `config` holds now. Raises ConfigError."""
    return _with_servers(settings, _texts(os.environ, dotenv))


def _with_servers(settings: Settings, texts: Mapping[str, str]) -> Settings:
    if settings.config is None:
        return settings
    found: McpConfig = read_config(Path(settings.config).expanduser(), texts, strict=settings.strict)
    labels = {endpoint.label for endpoint in settings.endpoints}
    if twice := [server for server in found.servers if server.label in labels]:
        raise ConfigError(
            "\n".join(
                f"{s.where}: {s.label}: MCP_SERVER_ENDPOINTS has a server of this name too." for s in twice
            )
        )
    warnings = tuple(warning.removesuffix(".") for warning in found.warnings)
    return replace(settings, servers=found.servers, warnings=(*settings.warnings, *warnings))


@cache
def _settings() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Settings) if f.name not in ("warnings", "servers"))


@cache
def _adapter() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _texts(env: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    """All variables that hold something; the environment wins."""
    texts: dict[str, str] = {}
    if dotenv is not None and dotenv.is_file():
        try:
            texts = {name: value.strip() for name, value in dotenv_values(dotenv).items() if value}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{dotenv} cannot be read: {error}") from None
    texts |= {name: value.strip() for name, value in env.items() if value.strip()}
    return {name: value for name, value in texts.items() if value}


def _read_endpoints(values: dict[str, Any], texts: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Replace the text of the endpoints by what it means; returns problems and warnings."""
    text = values.get("endpoints", "")
    if not isinstance(text, str) and any(isinstance(entry, Endpoint) for entry in text):
        return [], []
    tokens, problems = _tokens(texts)
    parsed = parse_endpoints(text if isinstance(text, str) else ",".join(text), tokens)
    values["endpoints"] = parsed.endpoints
    known = {token_key(e.label) for e in parsed.endpoints}
    warnings = [f"MCP_SERVER_ENDPOINTS: {note}" for note in parsed.notes]
    warnings += [_homeless(key, known) for key in sorted(tokens.keys() - known)]
    return problems + [f"MCP_SERVER_ENDPOINTS: {problem}" for problem in parsed.problems], warnings


def _tokens(texts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    tokens: dict[str, str] = {}
    problems: list[str] = []
    for name, text in texts.items():
        match = _TOKEN.fullmatch(name)
        if not match:
            continue
        try:
            tokens[match[1]] = _credential(text)
        except ValueError as error:
            problems.append(f"{name}: {error}.")
    return tokens, problems


def _homeless(key: str, known: Iterable[str]) -> str:
    legal = ", ".join(f"TOOLWAY_SERVER_{k}_TOKEN" for k in sorted(known)) or "none"
    return f"TOOLWAY_SERVER_{key}_TOKEN belongs to no endpoint; those that do: {legal}"


def _as_list(name: str, value: Any) -> Any:
    if name in {"api_keys", "allowed_hosts", "cors_origins"} and isinstance(value, str):
        return tuple(filter(None, re.split(r"[,\s]+", value)))
    return value


def _suspicious(texts: Mapping[str, str]) -> list[str]:
    """Sentences about variables that look like settings and are none."""
    known = {variable(name).removeprefix("TOOLWAY_"): variable(name) for name in _settings()}
    found = [
        f"{name} is not read; did you mean {meant}?"
        for name, meant in _MISTAKEN.items()
        if name in texts and meant not in texts
    ]
    for name in sorted(texts):
        if (
            name.startswith("TOOLWAY_")
            and name not in (*known.values(), *_READ_ELSEWHERE)
            and not _TOKEN.fullmatch(name)
        ):
            # The prefix that all share would make any two names look alike.
            close = get_close_matches(name.removeprefix("TOOLWAY_"), known, 1)
            found.append(f"{name} is not a setting" + (f"; did you mean {known[close[0]]}?" if close else ""))
    if "OPENAI_BASE_URL" in texts and urlsplit(texts["OPENAI_BASE_URL"]).path in {"", "/"}:
        found.append("OPENAI_BASE_URL has no path; most model servers want /v1 at its end")
    return found


def _sentences(error: ValidationError, given: Mapping[str, Any]) -> list[str]:
    """One sentence for each mistake: the variable, the value unless it is a secret, and what is legal."""
    sentences = []
    for mistake in error.errors(include_url=False):
        setting = str(mistake["loc"][0])
        name = f"--{setting.replace('_', '-')}" if setting in given else variable(setting)
        reason = (
            mistake.get("ctx", {}).get("error") or f"it must be {_legal(setting) or mistake['msg'].lower()}"
        )
        shown = shown_store if setting == "store" else masked
        value = "" if setting in _SECRET else f" is {shown(str(mistake['input']))!r}"
        sentences.append(f"{name}{value}: {reason}.")
    return sentences


def _legal(setting: str) -> str | None:
    hint = get_type_hints(Settings, include_extras=True)[setting]
    notes = [n for n in getattr(hint, "__metadata__", ()) if isinstance(n, FieldInfo)]
    return notes[0].description if notes else None
