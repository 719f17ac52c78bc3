"""Parses and validates `mcp.json`, in the forms of other hosts too; each mistake is one message with its line.

Run as a program it prints the JSON Schema of such a file, made from the models: `make schema`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from shutil import which
from typing import Any, get_type_hints

from dotenv import dotenv_values
from pydantic import AliasChoices, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from toolway.errors import ConfigError
from toolway.settings.access import ROOTS as ACCESS_ROOTS
from toolway.settings.access import UNDECLARED, AccessConfig, json_schemas, read_access
from toolway.settings.jsonc import MistakeError, Node, parse, parse_toml
from toolway.settings.mcp_server import (
    ClientCredentials,
    ConfiguredServer,
    OpenApiServerConfig,
    RemoteServerConfig,
    ServerConfig,
    StdioServerConfig,
    UnusableServerConfig,
    expand,
    with_home,
)
from toolway.settings.mistakes import Report, did_you_mean, explain

__all__ = ["McpConfig", "ServerConfig", "keys_of", "parse_config", "read_config"]

TYPES = {
    "stdio": "stdio",
    "local": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "streamablehttp": "http",
    "sse": "sse",
    "remote": "auto",
    "openapi": "openapi",
}
"""What `type` may be, in the spellings of other hosts too."""
TYPE_KEYS = ("type", "transport", "transportType")
MODELS: Mapping[str, type[Any]] = {
    "stdio": StdioServerConfig,
    "http": RemoteServerConfig,
    "sse": RemoteServerConfig,
    "auto": RemoteServerConfig,
    "openapi": OpenApiServerConfig,
}
IGNORED = frozenset(
    "autoApprove alwaysAllow allow trust tools name title note notes comment icon iconUrl gallery version id provider "
    "tags metadata $schema dev initTimeout initializationTimeout startupTimeout networkTimeout "
    "disabledInDashboard sandbox sandboxEnabled fromGalleryId registryUrl watch watchPaths debug source "
    "settings authProviderType targetAudience targetServiceAccount startup_timeout_sec headersHelper required".split()
)
"""Keys that other hosts read and that change nothing here."""
ROOTS = ("mcpServers", "servers", "context_servers", "mcp.servers", "amp.mcpServers", "mcp_servers")
"""Where most programs, VS Code, Zed, VS Code's settings, Amp and Codex keep servers; opencode does in "mcp" itself."""
_SWITCHES = ("enabled", "isActive", "active")
_CREDENTIAL_FIELDS = tuple(field.name for field in fields(ClientCredentials))


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """What a file holds. `warnings` are sentences about what is ignored; `disabled` are the servers left out."""

    servers: tuple[ConfiguredServer, ...] = ()
    disabled: tuple[str, ...] = ()
    access: AccessConfig = UNDECLARED
    warnings: tuple[str, ...] = ()


def read_config(path: Path, env: Mapping[str, str], *, strict: bool = False) -> McpConfig:
    """Read the file. Raises ConfigError as `parse_config` does, and when the file cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    return parse_config(text, env, path=str(path), strict=strict)


def parse_config(
    text: str, env: Mapping[str, str], *, path: str = "mcp.json", strict: bool = False
) -> McpConfig:
    """The servers of a file's text, in its order; one with mistakes is an UnusableServerConfig.

    Raises:
        ConfigError: No servers can be found in the file, or what it says of keys is wrong; one line for each mistake.
            Under `strict` the mistakes of the servers, and all warnings, are such too.
    """
    report = Report(path)
    try:
        root = parse_toml(text, ROOTS[-1]) if path.endswith(".toml") else parse(text)
    except MistakeError as mistake:
        raise ConfigError(f"{path}:{mistake.line}: {mistake}.") from None
    entries = _entries(root, report)
    disabled = tuple(label for label, node in entries.items() if _is_disabled(node))
    expanded = partial(expand, env=env, predefined=_predefined(Path(path)))
    usable = [label for label in entries if label not in disabled]
    servers = [_server(label, entries[label], report, expanded) for label in usable]
    access = read_access(root, report, expanded) if isinstance(root.value, dict) else UNDECLARED
    problems = list(report.problems)
    if strict:
        unusable = [server for server in servers if isinstance(server, UnusableServerConfig)]
        problems += [mistake for server in unusable for mistake in server.mistakes] + report.warnings
    if problems:
        raise ConfigError("\n".join(problems))
    return McpConfig(
        servers=tuple(servers), disabled=disabled, access=access, warnings=tuple(report.warnings)
    )


def _predefined(path: Path) -> Mapping[str, str]:
    """What editors replace by themselves. A file in `.vscode`, `.cursor` and their like is about the folder above."""
    folder = path.absolute().parent
    folder = folder.parent if folder.name.startswith(".") else folder
    return {
        "workspaceFolder": str(folder),
        "workspaceRoot": str(folder),
        "workspaceFolderBasename": folder.name,
        "userHome": str(Path.home()),
        "pathSeparator": os.sep,
        "/": os.sep,
    }


def _entries(root: Node, report: Report) -> dict[str, Node]:
    """The servers' nodes by label, wherever the file keeps them."""
    found: dict[str, Node] = {}
    if not isinstance(root.value, dict):
        report.problem(root.line, "mcpServers", "the file must hold an object with this key")
        return {}
    nested = root.value.get("mcp")
    holders = [root.value, nested.value if nested and isinstance(nested.value, dict) else {}]
    keys = [(key, holder[key]) for holder in holders for key in ROOTS if key in holder]
    if not keys and nested and isinstance(nested.value, dict):
        keys = [("mcp", nested)]
    for key, node in keys:
        if not isinstance(node.value, dict):
            report.problem(node.line, key, "it must be an object: a server's name -> its entry")
            continue
        for label, entry in node.value.items():
            if not label.strip():
                report.warning(entry.line, key, "a server has an empty name")
            elif label in found:
                first = found[label].line
                report.warning(
                    entry.line, label, f"this server is also in line {first}; each needs a name of its own"
                )
            else:
                found[label] = entry
    if not keys and not any(key in root.value for key in ACCESS_ROOTS):
        report.problem(root.line, "mcpServers", "the file has no such key, and no servers")
    _warn_of_unknown_roots(root, report)
    return found


def _warn_of_unknown_roots(root: Node, report: Report) -> None:
    for key, node in root.value.items():
        # Keys unlike ours are other settings of the program whose file this is.
        if key in (*ROOTS, *ACCESS_ROOTS):
            continue
        if hint := did_you_mean(key, ROOTS):
            report.warning(node.line, key, "this key is not read" + hint)
        elif isinstance(node.value, dict | list) and (hint := did_you_mean(key, ACCESS_ROOTS)):
            # Not read, it would leave open what was to be closed.
            report.problem(node.line, key, "this key is not read" + hint)


def _is_disabled(node: Node) -> bool:
    entry = node.plain() if isinstance(node.value, dict) else {}
    return entry.get("disabled") is True or any(entry.get(key) is False for key in _SWITCHES)


def _server(label: str, node: Node, report: Report, expanded: Callable[[str], str]) -> ConfiguredServer:
    """The server of an entry. What is wrong with one costs that one alone."""
    own = Report(report.path)
    server = _checked(label, node, own, expanded)
    report.warnings += own.warnings
    if own.problems or server is None:
        where = f"{report.path}:{node.line}"
        return UnusableServerConfig(label=label, where=where, mistakes=tuple(own.problems))
    return server


def _checked(label: str, node: Node, report: Report, expanded: Callable[[str], str]) -> ServerConfig | None:
    """The server of an entry, unless the report has a problem."""
    if not isinstance(node.value, dict):
        report.problem(node.line, label, 'it must be an object like {"command": "npx", "args": [...]}')
        return None
    node = _in_our_shape(node)
    entry = {key: child.plain() for key, child in node.value.items()}
    kind = _kind(label, node, entry, report)
    if kind is None:
        return None
    _warn_of_unknown_keys(label, node, kind, report)
    entry |= {"type": kind, "label": label, "where": f"{report.path}:{node.line}"}
    try:
        server = _adapter(kind).validate_python(entry, context=expanded)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            report.problem(*explain(label, node, mistake, _CREDENTIAL_FIELDS))
        return None
    if isinstance(server, OpenApiServerConfig) and not server.url and not server.spec:
        report.problem(
            node.line, label, 'an OpenAPI service needs its "url", or the "spec" that describes it'
        )
    if isinstance(server, StdioServerConfig):
        try:
            server = _with_env_file(server)
        except (OSError, UnicodeDecodeError) as error:
            report.problem(node.line, label, f"{server.env_file} cannot be read: {error}")
        if hint := _split_command(server, node.value["command"].value):
            report.problem(node.value["command"].line, f"{label}.command", hint)
    return _in_seconds(server, node, report)


def _in_our_shape(node: Node) -> Node:
    """An entry without null, and with what other programs say in shapes of their own said in ours."""
    entry = {key: child for key, child in node.value.items() if child.value is not None}

    def add(key: str, members: Mapping[str, Node]) -> None:
        there = entry.get(key, Node(value={}, line=node.line))
        if isinstance(there.value, dict):
            entry[key] = Node(value={**members, **there.value}, line=there.line)

    command = entry.get("command")
    if command and isinstance(command.value, dict):  # Zed
        renamed = {"command" if key == "path" else key: child for key, child in command.value.items()}
        entry = {**{key: child for key, child in entry.items() if key != "command"}, **renamed}
    elif command and isinstance(command.value, list) and command.value:  # opencode
        rest = entry.get("args", Node(value=[], line=command.line))
        entry["command"] = command.value[0]
        if isinstance(rest.value, list):
            entry["args"] = Node(value=[*command.value[1:], *rest.value], line=command.line)
    if (headers := entry.pop("http_headers", None)) and isinstance(headers.value, dict):  # Codex
        add("headers", headers.value)
    if token := entry.pop("bearer_token_env_var", None):
        add("headers", {"Authorization": replace(token, value=f"Bearer ${{{token.value}}}")})
    if (named := entry.pop("env_http_headers", None)) and isinstance(named.value, dict):
        add(
            "headers",
            {key: replace(child, value=f"${{{child.value}}}") for key, child in named.value.items()},
        )
    auth = entry.get("auth")
    if (
        auth and isinstance(auth.value, dict) and "type" not in auth.value and "CLIENT_ID" in auth.value
    ):  # Cursor
        add("oauth", entry.pop("auth").value)
    if isinstance((oauth := entry.get("oauth", node)).value, bool):  # opencode: whether to log in by itself
        entry = {key: child for key, child in entry.items() if child is not oauth}
    return Node(value=entry, line=node.line)


def _with_env_file(server: StdioServerConfig) -> StdioServerConfig:
    if server.env_file is None:
        return server
    read = {name: value for name, value in dotenv_values(server.env_file).items() if value is not None}
    return replace(server, env={**read, **server.env})


def _split_command(server: StdioServerConfig, written: str) -> str:
    """What to write in place of a command that holds its arguments; empty if it holds none."""
    program, *arguments = written.split()
    whole = with_home(server.command)
    if not arguments or which(whole) or with_home(server.cwd or "").joinpath(whole).exists():
        return ""
    return f'it holds arguments; write "command": {json.dumps(program)}, "args": {json.dumps(arguments)}'


def _kind(label: str, node: Node, entry: Mapping[str, Any], report: Report) -> str | None:
    """What the entry says it is, or what its keys make it."""
    for key in TYPE_KEYS:
        if key in entry:
            named = entry[key]
            kind = TYPES.get(named) if isinstance(named, str) else None
            if kind is None:
                legal = ", ".join(dict.fromkeys(kind for kind in TYPES.values() if kind != "auto"))
                report.problem(node.value[key].line, f"{label}.type", f"{named!r} is none of {legal}")
            return kind
    if "command" in entry:
        return "stdio"
    if "httpUrl" in entry:
        return "http"
    if "url" in entry or "serverUrl" in entry:
        return "auto"
    meant = [(key, did_you_mean(key, ("command", "url"))) for key in entry]
    hint = next((f"{named} for {key!r}" for key, named in meant if named), "")
    report.problem(node.line, label, f'it needs a "command" to run or a "url" to call{hint}')
    return None


def _warn_of_unknown_keys(label: str, node: Node, kind: str, report: Report) -> None:
    known = keys_of(kind)
    for key, child in node.value.items():
        if key in known or key in TYPE_KEYS or key in _SWITCHES or key in IGNORED:
            continue
        elsewhere = any(key in keys_of(other) for other in MODELS)
        message = "this key is not for a server of this kind" if elsewhere else "this key is not known"
        report.warning(child.line, f"{label}.{key}", message + did_you_mean(key, ("type", *known.values())))


def _in_seconds(server: ServerConfig, node: Node, report: Report) -> ServerConfig:
    if server.timeout is None or server.timeout < 1000:
        return server
    seconds = server.timeout / 1000
    message = f"{server.timeout:g} is taken for milliseconds; write {seconds:g}"
    key = next(key for key, field in keys_of(server.type).items() if field == "timeout" and key in node.value)
    report.warning(node.value[key].line, f"{server.label}.{key}", message)
    return replace(server, timeout=seconds)


@cache
def keys_of(kind: str) -> Mapping[str, str]:
    """Each key that an entry of this kind may have -> the field that it sets; several keys may be names of one."""
    hints = get_type_hints(MODELS[kind], include_extras=True)
    keys: dict[str, str] = {}
    for name in (f.name for f in fields(MODELS[kind]) if f.name not in ("label", "where", "type")):
        notes = getattr(hints[name], "__metadata__", ())
        aliases = [note.validation_alias for note in notes if isinstance(note, FieldInfo)]
        choices = [key for alias in aliases if isinstance(alias, AliasChoices) for key in alias.choices]
        keys |= {str(key): name for key in choices or [name]}
    return keys


@cache
def _adapter(kind: str) -> TypeAdapter[ServerConfig]:
    return TypeAdapter(MODELS[kind])


class _ShortSchema(GenerateJsonSchema):
    """Without titles that repeat each name, and without null and defaults where they mean that a key is left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Any:
        shown = super().default_schema(schema)
        return self.generate_inner(schema["schema"]) if shown.get("default") in (None, "", []) else shown


def json_schema() -> dict[str, Any]:
    """What editors check a file with. A server of any kind may have the keys of each."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}

    def described(model: type[Any]) -> dict[str, Any]:
        """The schema of a model. A class knows the sentences about its own fields only, not of those it inherits."""
        schema = TypeAdapter(model).json_schema(schema_generator=_ShortSchema)
        definitions.update(schema.pop("$defs", {}))
        members: dict[str, Any] = {}
        for base in filter(is_dataclass, reversed(model.__mro__)):
            fields = TypeAdapter(base).json_schema(schema_generator=_ShortSchema).get("properties", {})
            members |= {key: field for key, field in fields.items() if "description" in field}
        return {**schema, "properties": members}

    for model in MODELS.values():
        properties |= described(model)["properties"]
    properties["type"] = {
        "description": "What the server is. Default: stdio with a command; with a url it is asked.",
        "enum": list(TYPES),
    }

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tool servers of Toolway, and who may use them (mcp.json)",
        "type": "object",
        "anyOf": [{"required": [key]} for key in ("mcpServers", "servers", "mcp", *ACCESS_ROOTS)],
        "properties": {key: {"$ref": "#/$defs/servers"} for key in ("mcpServers", "servers")}
        | json_schemas(described),
        "$defs": {
            "servers": {
                "description": "A server's name -> its entry.",
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/$defs/server"},
            },
            "server": {"type": "object", "properties": properties},
            **definitions,
        },
    }


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))  # noqa: T201
