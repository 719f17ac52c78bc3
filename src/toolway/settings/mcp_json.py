"""An `mcp.json` as people already have it -> its servers; each mistake is one clear message with its line.

Run as a program it prints the JSON Schema of such a file, made from the models: `make schema`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import AliasChoices, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from toolway.errors import ConfigError
from toolway.settings.jsonc import MistakeError, Node, parse
from toolway.settings.mcp_server import (
    ClientCredentials,
    OpenApiServerConfig,
    RemoteServerConfig,
    ServerConfig,
    StdioServerConfig,
)

__all__ = ["McpConfig", "ServerConfig", "keys_of", "parse_config", "read_config"]

TYPES = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "streamablehttp": "http",
    "sse": "sse",
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
    "tags metadata $schema dev initTimeout initializationTimeout startupTimeout networkTimeout oauth "
    "disabledInDashboard sandbox sandboxEnabled fromGalleryId registryUrl isActive watch watchPaths debug".split()
)
"""Keys that other hosts read and that change nothing here."""
_ROOTS = ("mcpServers", "servers")
_ROOT_IGNORED = frozenset(("inputs", "$schema", "globalShortcut", "preferences", "mcp", "sandbox", "version"))


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """What a file holds. `warnings` are sentences about what is ignored."""

    servers: tuple[ServerConfig, ...] = ()
    warnings: tuple[str, ...] = ()


class Report:
    """Collects sentences: `problems` forbid the file, `warnings` do not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def problem(self, line: int, key: str, message: str) -> None:
        """The file cannot be used as it is."""
        self.problems.append(f"{self.path}:{line}: {key}: {message}.")

    def warning(self, line: int, key: str, message: str) -> None:
        """Something in the file is not used."""
        self.warnings.append(f"{self.path}:{line}: {key}: {message}.")


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
    """The servers of a file's text that are not disabled, in its order.

    Raises:
        ConfigError: One line for each mistake, with file, line and key; under `strict` warnings are mistakes.
    """
    report = Report(path)
    try:
        root = parse(text)
    except MistakeError as mistake:
        raise ConfigError(f"{path}:{mistake.line}: {mistake}.") from None
    entries = _entries(root, report)
    servers = [_server(label, node, report, env) for label, node in entries.items()]
    problems = report.problems + (report.warnings if strict else [])
    if problems:
        raise ConfigError("\n".join(problems))
    return McpConfig(
        servers=tuple(server for server in servers if server is not None), warnings=tuple(report.warnings)
    )


def _entries(root: Node, report: Report) -> dict[str, Node]:
    """The servers' nodes by label, wherever the file keeps them."""
    found: dict[str, Node] = {}
    if not isinstance(root.value, dict):
        report.problem(root.line, "mcpServers", "the file must hold an object with this key")
        return {}
    nested = root.value.get("mcp")
    holders = [root.value, nested.value if nested and isinstance(nested.value, dict) else {}]
    keys = [(key, holder[key]) for holder in holders for key in _ROOTS if key in holder]
    for key, node in keys:
        if not isinstance(node.value, dict):
            report.problem(node.line, key, "it must be an object: a server's name -> its entry")
            continue
        for label, entry in node.value.items():
            if label in found:
                first = found[label].line
                report.problem(
                    entry.line, label, f"this server is also in line {first}; each needs a name of its own"
                )
            found[label] = entry
    if not keys:
        report.problem(root.line, "mcpServers", "the file has no such key, and no servers")
    for key, node in root.value.items():
        if key not in (*_ROOTS, *_ROOT_IGNORED):
            report.warning(node.line, key, "this key is not read" + _nearest(key, _ROOTS))
    return found


def _server(label: str, node: Node, report: Report, env: Mapping[str, str]) -> ServerConfig | None:
    """The server of an entry; None when it is disabled, or wrong, which is then in the report."""
    if not label.strip():
        report.problem(node.line, "mcpServers", "a server has an empty name")
        return None
    if not isinstance(node.value, dict):
        report.problem(node.line, label, 'it must be an object like {"command": "npx", "args": [...]}')
        return None
    entry = {key: child.plain() for key, child in node.value.items() if child.value is not None}
    if entry.get("disabled") is True or entry.get("enabled") is False:
        return None
    kind = _kind(label, node, entry, report)
    if kind is None:
        return None
    _warn_of_unknown_keys(label, node, kind, report)
    entry |= {"type": kind, "label": label, "where": f"{report.path}:{node.line}"}
    try:
        server = _adapter(kind).validate_python(entry, context=env)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            report.problem(*_told(label, node, mistake))
        return None
    if isinstance(server, OpenApiServerConfig) and not server.url and not server.spec:
        report.problem(
            node.line, label, 'an OpenAPI service needs its "url", or the "spec" that describes it'
        )
    return _in_seconds(server, node, report)


def _kind(label: str, node: Node, entry: Mapping[str, Any], report: Report) -> str | None:
    """What the entry says it is, or what its keys make it."""
    for key in TYPE_KEYS:
        if key in entry:
            said = entry[key]
            kind = TYPES.get(said) if isinstance(said, str) else None
            if kind is None:
                legal = ", ".join(dict.fromkeys(TYPES.values()))
                report.problem(node.value[key].line, f"{label}.type", f"{said!r} is none of {legal}")
            return kind
    if "command" in entry:
        return "stdio"
    if "httpUrl" in entry:
        return "http"
    if "url" in entry or "serverUrl" in entry:
        return "auto"
    report.problem(node.line, label, 'it needs a "command" to run or a "url" to call')
    return None


def _warn_of_unknown_keys(label: str, node: Node, kind: str, report: Report) -> None:
    known = keys_of(kind)
    for key, child in node.value.items():
        if key in known or key in TYPE_KEYS or key in IGNORED:
            continue
        elsewhere = any(key in keys_of(other) for other in MODELS)
        said = "this key is not for a server of this kind" if elsewhere else "this key is not known"
        report.warning(child.line, f"{label}.{key}", said + _nearest(key, ("type", *known.values())))


def _in_seconds(server: ServerConfig, node: Node, report: Report) -> ServerConfig:
    if server.timeout is None or server.timeout < 1000:
        return server
    seconds = server.timeout / 1000
    said = f"{server.timeout:g} is taken for milliseconds; write {seconds:g}"
    report.warning(node.value["timeout"].line, f"{server.label}.timeout", said)
    return replace(server, timeout=seconds)


_SENTENCES = {
    "bool_type": "{input!r} is neither true nor false",
    "float_type": "{input!r} is no number above 0",
    "finite_number": "{input!r} is no number above 0",
    "int_type": "{input!r} is no whole number above 0",
    "greater_than": "{input!r} is no number above 0",
    "string_pattern_mismatch": "it is empty",
    "tuple_type": "it must be a list of strings",
    "dict_type": "it must be an object with strings as values",
    "dataclass_type": "it must be an object with strings as values",
}
"""What is said for pydantic's errors. Those of our own validators are sentences already."""


def _told(label: str, node: Node, mistake: Mapping[str, Any]) -> tuple[int, str, str]:
    """Line, key and sentence for an error of pydantic."""
    path: Sequence[str | int] = mistake["loc"]
    match mistake["type"]:
        case "missing":
            *path, name = path
            sentence = f'it needs a "{name}"'
        case "unexpected_keyword_argument":
            *path, name = path
            sentence = (
                f"{name!r} is not known{_nearest(str(name), [f.name for f in fields(ClientCredentials)])}"
            )
        case "literal_error":
            legal = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
            sentence = f"{mistake['input']!r} is none of {', '.join(legal)}"
            sentence += _nearest(str(mistake["input"]), legal)
        case "value_error":
            sentence = str(mistake["ctx"]["error"])
        case kind:
            sentence = _SENTENCES.get(kind, mistake["msg"]).format(input=mistake["input"])
    key, line = label, node.line
    for step in path:
        node = node.value[step]
        line = node.line
        key += f"[{step}]" if isinstance(step, int) else f".{step}"
    return line, key, sentence


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


def _nearest(key: str, known: Iterable[str]) -> str:
    """ "; did you mean ...", when one of the known names is near."""
    close = get_close_matches(key, dict.fromkeys(known), 1, 0.7)
    return f"; did you mean {close[0]!r}" if close else ""


class _Short(GenerateJsonSchema):
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
    for model in (base for kind in MODELS.values() for base in reversed(kind.__mro__) if is_dataclass(base)):
        schema = TypeAdapter(model).json_schema(schema_generator=_Short)
        definitions |= schema.get("$defs", {})
        # A class knows the sentences about its own fields only, not of those that it inherits.
        properties |= {key: field for key, field in schema["properties"].items() if "description" in field}
    properties["type"] = {
        "description": "What the server is. Default: stdio with a command; with a url it is asked.",
        "enum": list(TYPES),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tool servers of Toolway (mcp.json)",
        "type": "object",
        "anyOf": [{"required": [key]} for key in ("mcpServers", "servers", "mcp")],
        "properties": {key: {"$ref": "#/$defs/servers"} for key in ("mcpServers", "servers")},
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
