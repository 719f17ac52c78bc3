"""The pydantic models of tool servers: each checks an entry of `mcp.json`, and its tool source is made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic.config import ConfigDict
from pydantic.json_schema import SkipJsonSchema

LONG = 20
"""Characters from which on any value of an environment is taken for a key."""

_SECRET = re.compile(r"key|token|secret|pass|pwd|auth|cred|private|cookie|session", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\{(env:[A-Za-z_][A-Za-z0-9_]*)\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COMMON_VARIABLES = frozenset("HOME LANG LOGNAME PATH PORT PWD SHELL TERM TMPDIR USER USERNAME".split())
"""Variables that are set without anybody having meant an input of this name."""


def looks_secret(name: str, value: str) -> bool:
    """Whether the value of this variable or parameter is likely a key."""
    return bool(value) and (len(value) >= LONG or _SECRET.search(name) is not None)


def expand(text: str, env: Mapping[str, str], predefined: Mapping[str, str] = MappingProxyType({})) -> str:
    """`${VAR}`, `${env:VAR}` and either with `:-default` replaced, also `{env:VAR}`; `$${` is a plain `${`.

    `predefined` are names that editors know by themselves, like `workspaceFolder`. What an editor would ask its user
    for, `${input:my-key}`, is the variable MY_KEY.

    Raises:
        ValueError: A variable is not set (or empty) and has no default; the message says what to do.
    """

    def value(match: re.Match[str]) -> str:
        reference = match[1] if match[2] is None else match[2]
        if reference is None:
            return "${"
        name, separator, default = reference.removeprefix("env:").partition(":-")
        if name in predefined:
            return predefined[name]
        is_input = name.startswith("input:")
        variable = _input_variable(name) if is_input else name
        if not _VARIABLE.fullmatch(variable):
            raise ValueError(f"${{{reference}}} names no variable; for a plain ${{ write $${{")
        if found := env.get(variable):
            return found
        if separator:
            return default
        if is_input:
            raise ValueError(f"${{{name}}} is asked for by another program; here set the variable {variable}")
        raise ValueError(f"the variable {name} is not set; set it, or write ${{{name}:-default}}")

    return _REFERENCE.sub(value, text)


def _input_variable(name: str) -> str:
    variable = re.sub(r"\W", "_", name.removeprefix("input:")).upper()
    return f"INPUT_{variable}" if variable in _COMMON_VARIABLES or variable[:1].isdecimal() else variable


def _text(value: Any, info: ValidationInfo) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} must be a string")
    return info.context(value) if info.context else value


def _scalar(value: Any, info: ValidationInfo) -> str:
    if isinstance(value, dict | list) or value is None:
        raise ValueError("it must be a string")
    if isinstance(value, bool):
        return "true" if value else "false"
    return info.context(str(value)) if info.context else str(value)


def _without_null(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _by_tool(value: Any) -> Any:
    # Other hosts describe the server with it; here it says tool by tool what the model shall read.
    return {} if isinstance(value, str) else _without_null(value)


def _url(value: Any, check: ValidatorFunctionWrapHandler) -> str:
    text: str = check(value)
    try:
        url = urlsplit(text)
        legal = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        legal = False
    if not legal or any(c.isspace() for c in text):
        # As it is written: what a variable holds may be a secret.
        raise ValueError(f"{value!r} is no URL like http://localhost:8000/mcp")
    return text


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not name or not value.isprintable() or not name.isascii() or any(c in name for c in " :"):
            raise ValueError(f"{name!r} is no header, or holds what a header cannot hold")
    return headers


def _client_credentials(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") != "client_credentials":
        raise ValueError('its "type" must be "client_credentials"; for a login: toolway login SERVER')
    if isinstance(value, dict) and bool(value.get("client_secret")) == bool(value.get("private_key")):
        raise ValueError("it needs either a client_secret or a private_key")
    return _without_null(value)


def with_home(path: str) -> Path:
    """`~` replaced by the home folder; the path as it stands when it names a user whom nobody knows."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def existing_file(path: str) -> str:
    """The path with the home folder put in. Raises ValueError when there is no such file."""
    if not with_home(path).is_file():
        raise ValueError(f"there is no file {path}")
    return str(with_home(path))


def _joined(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


_SCALAR = {"type": ["string", "number", "boolean"]}
_SCALAR_OR_NULL = {"type": ["string", "number", "boolean", "null"]}
_BY_TOOL = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}

Flag = Annotated[bool, Field(strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(gt=0, strict=True)]
Text = Annotated[str, BeforeValidator(_text)]
NonEmpty = Annotated[str, Field(pattern=r"\S"), BeforeValidator(_text)]
Address = Annotated[NonEmpty, WrapValidator(_url)]
Url = Annotated[Address, Field(validation_alias=AliasChoices("url", "serverUrl", "httpUrl"))]
Name = Annotated[str, BeforeValidator(_scalar)]
Argument = Annotated[Name, WithJsonSchema(_SCALAR)]
Value = Annotated[Name, WithJsonSchema(_SCALAR_OR_NULL)]
Values = Annotated[Mapping[str, Value], BeforeValidator(_without_null)]
Headers = Annotated[Values, AfterValidator(_headers)]
Names = Annotated[Mapping[str, Name], BeforeValidator(_without_null)]
Descriptions = Annotated[Mapping[str, Name], BeforeValidator(_by_tool), WithJsonSchema(_BY_TOOL)]
File = Annotated[NonEmpty, AfterValidator(existing_file)]
Included = Annotated[
    tuple[Name, ...],
    Field(validation_alias=AliasChoices("include", "includeTools", "enabledTools", "enabled_tools")),
]
Excluded = Annotated[
    tuple[Name, ...],
    Field(validation_alias=AliasChoices("exclude", "excludeTools", "disabledTools", "disabled_tools")),
]
Environment = Annotated[Values, Field(validation_alias=AliasChoices("env", "environment"))]
Timeout = Annotated[Seconds | None, Field(validation_alias=AliasChoices("timeout", "tool_timeout_sec"))]
Era = Literal["auto", "legacy", "modern"]


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What servers of every kind have. Times are seconds. The sentences about the fields stand in the schema."""

    __pydantic_config__ = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    label: SkipJsonSchema[str]
    where: SkipJsonSchema[str] = field(default="", compare=False)
    """File and line, for messages."""

    disabled: Flag = False
    """Leave this server out."""
    enabled: Flag = True
    """The opposite of disabled."""
    include: Included = ()
    """Patterns (*, ?, [abc]) of tools to offer; by default all."""
    exclude: Excluded = ()
    """Patterns of tools to leave out."""
    prefix: Text = ""
    """Put in front of each tool's name."""
    rename: Names = field(default_factory=dict)
    """The server's name of a tool -> its name here."""
    description: Descriptions = field(default_factory=dict)
    """The server's name of a tool -> what the model reads about it. Plain text describes the server; it is not used."""
    timeout: Timeout = None
    """Seconds that one call may take."""
    lazy: Flag = False
    """Start at the first call only."""
    idle_timeout: Seconds = 300.0
    """Seconds without a call after which a lazy server is ended."""

    @property
    def changes_tools(self) -> bool:
        """Whether it says anything of the server's tools."""
        named = self.include, self.exclude, self.prefix, self.rename, self.description, self.timeout
        return any(named)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must never be shown."""
        return ()


@dataclass(frozen=True, kw_only=True)
class _CommonMcp(_Common):
    """What the MCP servers have."""

    era: Annotated[Era, BeforeValidator(_text)] = "auto"
    """Protocol: legacy is 2025-11-25 and older, modern 2026-07-28 and newer."""
    resources: Flag = False
    """Offer two tools that list and read the server's resources."""
    sampling: Flag = False
    """Answer with the model behind Toolway when the server asks for one."""
    sampling_max_tokens: Count = 1024
    """Most tokens of one such answer."""


@dataclass(frozen=True, kw_only=True)
class StdioServerConfig(_CommonMcp):
    """An MCP server that is a program."""

    type: Literal["stdio"] = "stdio"
    command: NonEmpty
    """Program that speaks MCP on its standard input and output."""
    args: tuple[Argument, ...] = ()
    """Arguments of the command."""
    env: Environment = field(default_factory=dict, repr=False)
    """Environment variables of the command, added to PATH, HOME, locale and proxies."""
    env_file: Annotated[File | None, Field(validation_alias=AliasChoices("env_file", "envFile"))] = None
    """File with more of them, a line NAME=value each."""
    cwd: Text | None = None
    """Directory to start the command in."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Of the environment, what looks like a key."""
        return tuple(value for name, value in self.env.items() if looks_secret(name, value))


@dataclass(frozen=True, kw_only=True)
class ClientCredentials:
    """OAuth client credentials: where tokens are given out, and to whom."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    type: Literal["client_credentials"] = "client_credentials"
    token_url: NonEmpty
    client_id: NonEmpty
    client_secret: NonEmpty | None = field(default=None, repr=False)
    private_key: NonEmpty | None = field(default=None, repr=False)
    """The client's key in PEM, in place of a secret: it signs who it is (private_key_jwt)."""
    algorithm: Literal["ES256", "ES384", "EdDSA", "PS256", "RS256"] = "RS256"
    """How it signs."""
    audience: Text | None = None
    """Whom the signature is for: the issuer that the server names; by default the token_url."""
    scope: Text | None = None


@dataclass(frozen=True, kw_only=True)
class OAuthClient:
    """Who Toolway is when `toolway login` asks a server, where clients do not register themselves."""

    __pydantic_config__ = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    client_id: Annotated[
        NonEmpty | None, Field(validation_alias=AliasChoices("client_id", "clientId", "CLIENT_ID"))
    ] = None
    """The id of a client that was registered by hand."""
    client_secret: Annotated[
        NonEmpty | None,
        Field(validation_alias=AliasChoices("client_secret", "clientSecret", "CLIENT_SECRET")),
    ] = field(default=None, repr=False)
    """Its secret, if it has one."""
    scope: Annotated[
        Text | None, BeforeValidator(_joined), Field(validation_alias=AliasChoices("scope", "scopes"))
    ] = None
    """What to ask for, separated by spaces."""
    metadata_url: Annotated[
        Text | None, Field(validation_alias=AliasChoices("metadata_url", "client_metadata_url"))
    ] = None
    """An https URL of a client-id metadata document that names the callback, for servers that take one."""
    callback_port: Annotated[
        Count | None, Field(validation_alias=AliasChoices("callback_port", "callbackPort"))
    ] = None
    """The port of http://localhost:PORT/callback that was registered for the client."""


@dataclass(frozen=True, kw_only=True)
class RemoteServerConfig(_CommonMcp):
    """An MCP server that is reached by its URL."""

    type: Literal["http", "sse", "auto"] = "auto"
    """"auto": a URL that is asked whether it speaks streamable HTTP or, as servers before 2025 do, SSE."""
    url: Url
    """URL of an MCP server or OpenAPI service."""
    headers: Headers = field(default_factory=dict, repr=False)
    """HTTP headers sent with every request."""
    auth: Annotated[ClientCredentials | None, BeforeValidator(_client_credentials)] = field(
        default=None, repr=False
    )
    """OAuth client credentials of a remote server."""
    oauth: OAuthClient | None = None
    """The client for `toolway login`, where a server does not let clients register themselves."""
    client_cert: File | None = None
    """PEM file with the client certificate that the server asks for, and perhaps its key."""
    client_key: File | None = None
    """PEM file with the key of the client certificate."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """All headers, and the client's secrets."""
        found = [client.client_secret for client in (self.auth, self.oauth) if client]
        found.append(self.auth.private_key if self.auth else None)
        return tuple(secret for secret in (*self.headers.values(), *found) if secret)


@dataclass(frozen=True, kw_only=True)
class OpenApiServerConfig(_Common):
    """A service with an OpenAPI document."""

    type: Literal["openapi"] = "openapi"
    url: Url = ""
    """URL of an MCP server or OpenAPI service."""
    spec: Text = ""
    """URL or path of an OpenAPI document, when it is not found by the url."""
    headers: Headers = field(default_factory=dict, repr=False)
    """HTTP headers sent with every request."""
    client_cert: File | None = None
    """PEM file with the client certificate that the server asks for, and perhaps its key."""
    client_key: File | None = None
    """PEM file with the key of the client certificate."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """All headers."""
        return tuple(filter(None, self.headers.values()))


@dataclass(frozen=True, kw_only=True)
class UnusableServerConfig:
    """An entry that nothing can be made of. It costs no other entry, and is listed with its mistakes."""

    type: Literal["unusable"] = "unusable"
    label: str
    where: str = field(default="", compare=False)
    mistakes: tuple[str, ...]
    """Whole sentences with file, line and key."""
    secrets: tuple[str, ...] = ()


McpServerConfig = StdioServerConfig | RemoteServerConfig
ServerConfig = McpServerConfig | OpenApiServerConfig
ConfiguredServer = ServerConfig | UnusableServerConfig
