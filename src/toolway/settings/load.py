"""Loads the settings: environment and .env -> frozen Settings; the only module that reads Toolway's settings there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from toolway.errors import ConfigError
from toolway.net.hosts import masked
from toolway.settings.env_endpoints import Endpoint, parse_endpoints, token_key
from toolway.settings.files import stamp_of
from toolway.settings.mcp_json import McpConfig, parse_config, read_config
from toolway.settings.mcp_server import UnusableServerConfig, with_home
from toolway.settings.settings import DEFAULT_CONFIG, Settings, legal_credential
from toolway.settings.store_url import is_shared, masked_store

_NAMES = {
    ("upstream", "base_url"): "openai_base_url",
    ("upstream", "api_key"): "openai_api_key",
    ("upstream", "connect_timeout"): "upstream_connect_timeout",
    ("upstream", "silence_timeout"): "upstream_silence_timeout",
    ("upstream", "client_cert"): "upstream_client_cert",
    ("upstream", "client_key"): "upstream_client_key",
    ("store", "url"): "store",
    ("store", "ttl"): "store_ttl",
    ("store", "max_bytes"): "store_max_bytes",
    ("audit", "file"): "audit",
    ("responses", "mode"): "responses",
    ("responses", "ttl"): "responses_ttl",
    ("console", "enabled"): "console",
    ("console", "keys"): "console_keys",
    ("console", "edit"): "console_edit",
    ("console", "contents"): "console_contents",
    ("console", "max_bytes"): "console_max_bytes",
    ("console", "max_conversations"): "console_max_conversations",
    ("console", "ttl"): "console_ttl",
    ("log", "format"): "log_format",
    ("metrics", "address"): "metrics",
}
"""Settings that people know by another name than that of the field. The others have the field's."""
_NO_SETTINGS = {"query", "servers", "disabled", "config_stamp", "login_store_url", "access", "warnings"}
_ENDPOINTS = ("/chat/completions", "/completions", "/responses", "/messages", "/embeddings", "/models")
_VARIABLES = {
    "openai_base_url": "OPENAI_BASE_URL",
    "openai_api_key": "OPENAI_API_KEY",
    "endpoints": "MCP_SERVER_ENDPOINTS",
    "debug_output": "DEBUG_OUTPUT",
}
_LISTS = {"api_keys", "console_keys", "allowed_hosts", "cors_origins", "tool_search_always"}
_SECRET = {"openai_api_key", "api_keys", "console_keys"}
_OTHER_VARIABLES = {"TOOLWAY_CACHE", "TOOLWAY_DEPTH"}
"""Where the demo keeps its model's weights, and how many Toolways started one another; not settings of the server."""
_TOKEN = re.compile(r"TOOLWAY_SERVER_([A-Z0-9_]+)_TOKEN")
_MISTAKEN = {
    "OPENAI_API_BASE": "OPENAI_BASE_URL",
    "OPENAI_BASEURL": "OPENAI_BASE_URL",
    "MCP_SERVER_ENDPOINT": "MCP_SERVER_ENDPOINTS",
    "MCP_SERVERS_ENDPOINTS": "MCP_SERVER_ENDPOINTS",
    "MCP_ENDPOINTS": "MCP_SERVER_ENDPOINTS",
}


def variable(setting: str) -> str:
    """The environment variable of a setting."""
    return _VARIABLES.get(setting) or f"TOOLWAY_{setting.upper()}"


@cache
def setting_paths() -> Mapping[str, tuple[str, str]]:
    """Each setting by the name that the command line and `load_settings` use: its group and its field there."""
    groups = [f.name for f in fields(Settings) if f.name not in _NO_SETTINGS]
    paths = [(group, f.name) for group in groups for f in fields(getattr(Settings, group))]
    return {_NAMES.get(path, path[1]): path for path in paths if path[1] not in _NO_SETTINGS}


def load_settings(
    env: Mapping[str, str] | None = None,
    dotenv: Path | None = Path(".env"),
    found_config: Path | None = Path(DEFAULT_CONFIG),
    **overrides: Any,
) -> Settings:
    """Settings from `overrides` (the command line; None is not given), else `env`, else the file `dotenv`.

    `found_config` is read when there is such a file and `config` names no other. `env` is the process's
    environment if None. An empty value means unset. Raises ConfigError that names
    every mistake, one a line; what is only suspicious is in `Settings.warnings`.
    """
    unknown = overrides.keys() - setting_paths().keys()
    if unknown:
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    texts = _texts(os.environ if env is None else env, dotenv)
    given = {name: value for name, value in overrides.items() if value is not None}
    values: dict[str, Any] = {
        name: texts[variable(name)] for name in setting_paths() if variable(name) in texts
    }
    values |= given
    unusable = [name for name, value in values.items() if isinstance(value, str) and "\0" in value]
    for name in unusable:
        del values[name]
    problems, warnings = _read_endpoints(values, texts)
    problems += [f"{_shown_name(name, given)}: there is a NUL character in it." for name in unusable]
    query = _split_base_url(values, problems, warnings)
    if "config" not in values and found_config is not None and found_config.is_file():
        values["config"] = str(found_config)
    warnings += _suspicious(texts)
    try:
        groups = _in_groups(values)
        groups["upstream"] = {**groups.get("upstream", {}), "query": query.encode()}
        settings = _adapter().validate_python({**groups, "warnings": tuple(warnings)})
        settings = _with_servers(settings, texts)
    except ValidationError as error:
        problems += _sentences(error, given)
    except ConfigError as error:
        problems.append(error.message)
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def environment(dotenv: Path | None = Path(".env")) -> Mapping[str, str]:
    """The variables that the file `config` may refer to."""
    return _texts(os.environ, dotenv)


def reload_servers(settings: Settings, dotenv: Path | None = Path(".env")) -> Settings:
    """The same settings with the servers that the file `config` holds now. Raises ConfigError."""
    return _with_servers(settings, _texts(os.environ, dotenv))


def check_servers(settings: Settings, text: str, dotenv: Path | None = Path(".env")) -> McpConfig:
    """What the file `config` would be with this text. Raises ConfigError that names every mistake in it."""
    tools = settings.tools
    path = str(with_home(tools.config or ""))
    found = parse_config(text, _texts(os.environ, dotenv), path=path, strict=tools.strict)
    if mistakes := [
        m for server in found.servers if isinstance(server, UnusableServerConfig) for m in server.mistakes
    ]:
        raise ConfigError("\n".join(mistakes))
    return found


def _with_servers(settings: Settings, texts: Mapping[str, str]) -> Settings:
    tools = settings.tools
    if tools.config is None:
        return settings
    path = with_home(tools.config)
    stamp = stamp_of(path)  # before it is read: an edit behind that is seen as one
    found: McpConfig = read_config(path, texts, strict=tools.strict)
    labels = {endpoint.label for endpoint in tools.endpoints}
    if twice := [server for server in found.servers if server.label in labels]:
        raise ConfigError(
            "\n".join(
                f"{s.where}: {s.label}: MCP_SERVER_ENDPOINTS has a server of this name too." for s in twice
            )
        )
    login_store_url = settings.store.url if is_shared(settings.store.url) else None
    warnings = tuple(warning.removesuffix(".") for warning in found.warnings)
    if found.access.has_quotas and settings.server.workers > 1 and login_store_url is None:
        warnings += (
            "each worker counts the quotas of keys by itself; with a Redis as TOOLWAY_STORE all count together",
        )
    return replace(
        settings,
        tools=replace(
            tools,
            servers=found.servers,
            disabled=found.disabled,
            config_stamp=stamp,
            login_store_url=login_store_url,
        ),
        access=found.access,
        warnings=(*settings.warnings, *warnings),
    )


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


def _split_base_url(values: dict[str, Any], problems: list[str], warnings: list[str]) -> str:
    """Take the query string, which is returned, and the name of an endpoint off the base URL."""
    base, _, query = str(values.get("openai_base_url", "")).partition("?")
    base = base.rstrip("/")
    if "#" in query:
        return ""
    if not query.isascii() or not query.isprintable() or " " in query:
        problems.append("OPENAI_BASE_URL: behind its ? there is a character that must be percent-encoded.")
        query = ""
    if endpoint := next((name for name in _ENDPOINTS if base.endswith(name)), None):
        base = base.removesuffix(endpoint)
        warnings.append(
            f"OPENAI_BASE_URL ends in {endpoint}, which is one endpoint of many; {masked(base)} is used"
        )
    if base:
        values["openai_base_url"] = base
    return query


def _tokens(texts: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    tokens: dict[str, str] = {}
    problems: list[str] = []
    for name, text in texts.items():
        match = _TOKEN.fullmatch(name)
        if not match:
            continue
        try:
            tokens[match[1]] = legal_credential(text)
        except ValueError as error:
            problems.append(f"{name}: {error}.")
    return tokens, problems


def _homeless(key: str, known: Iterable[str]) -> str:
    legal = ", ".join(f"TOOLWAY_SERVER_{k}_TOKEN" for k in sorted(known)) or "none"
    return f"TOOLWAY_SERVER_{key}_TOKEN belongs to no endpoint; those that do: {legal}"


def _in_groups(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, key = setting_paths()[name]
        grouped.setdefault(group, {})[key] = _as_list(name, value)
    return grouped


def _as_list(name: str, value: Any) -> Any:
    if name in _LISTS and isinstance(value, str):
        return tuple(filter(None, re.split(r"[,\s]+", value)))
    return value


def _suspicious(texts: Mapping[str, str]) -> list[str]:
    """Sentences about variables that look like settings and are none."""
    known = {variable(name).removeprefix("TOOLWAY_"): variable(name) for name in setting_paths()}
    found = [
        f"{name} is not read; did you mean {meant}?"
        for name, meant in _MISTAKEN.items()
        if name in texts and meant not in texts
    ]
    for name in sorted(texts):
        if (
            name.startswith("TOOLWAY_")
            and name not in (*known.values(), *_OTHER_VARIABLES)
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
        group, key = (str(part) for part in mistake["loc"][:2])
        setting = _NAMES.get((group, key), key)
        name = _shown_name(setting, given)
        reason = (
            mistake.get("ctx", {}).get("error")
            or f"it must be {_legal(group, key) or mistake['msg'].lower()}"
        )
        shown = masked_store if setting == "store" else masked
        value = "" if setting in _SECRET else f" is {shown(str(mistake['input']))!r}"
        sentences.append(f"{name}{value}: {reason}.")
    return sentences


def _shown_name(setting: str, given: Mapping[str, Any]) -> str:
    """What a setting is called where it was set: on the command line, or in the environment."""
    return f"--{setting.replace('_', '-')}" if setting in given else variable(setting)


def _legal(group: str, key: str) -> str | None:
    hint = get_type_hints(get_type_hints(Settings)[group], include_extras=True)[key]
    notes = [n for n in getattr(hint, "__metadata__", ()) if isinstance(n, FieldInfo)]
    return notes[0].description if notes else None
