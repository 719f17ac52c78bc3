"""An `mcp.json` as people already have it -> frozen ServerConfigs; each mistake is one clear message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolway.errors import ConfigError
from toolway.settings.jsonc import MistakeError, Node, parse
from toolway.settings.mcp_entry import KEYS, Entry, Report, nearest
from toolway.settings.mcp_server import ServerConfig

__all__ = ["McpConfig", "ServerConfig", "parse_config", "read_config"]


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """What a file holds. `warnings` are sentences about what is ignored."""

    servers: tuple[ServerConfig, ...] = ()
    warnings: tuple[str, ...] = ()


_ROOTS = ("mcpServers", "servers")
_ROOT_IGNORED = frozenset(("inputs", "$schema", "globalShortcut", "preferences", "mcp", "sandbox", "version"))


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
            report.warning(node.line, key, "this key is not read" + nearest(key, _ROOTS))
    return found


def _server(label: str, node: Node, report: Report, env: Mapping[str, str]) -> ServerConfig | None:
    if not label.strip():
        report.problem(node.line, "mcpServers", "a server has an empty name")
        return None
    if not isinstance(node.value, dict):
        report.problem(node.line, label, 'it must be an object like {"command": "npx", "args": [...]}')
        return None
    entry = Entry(label, node, report, env)
    if entry.flag("disabled") or not entry.flag("enabled", True):
        return None
    kind = entry.kind()
    if kind is None:
        return None
    entry.check_keys(KEYS[kind if kind in KEYS else "remote"])
    return ServerConfig(label=label, type=kind, where=f"{report.path}:{node.line}", **entry.fields(kind))
