"""Anthropic's MCP connector: the servers of a request, and which of their tools it wants.

Source: https://platform.claude.com/docs/en/agents-and-tools/mcp-connector, of which `tool_configuration` is the version
of 2025-04-04.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from toolway.api import fields
from toolway.errors import InvalidRequest
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, Choice, Header, Tool

_SERVER = fields.object_of(
    {"name": fields.Name, "url": fields.Name},
    type=Literal["url"],
    authorization_token=str,
    tool_configuration=JSON,
)
_CONFIGURATION = fields.object_of(enabled=bool, allowed_tools=fields.Texts)
_TOOLSET = fields.object_of(
    {"mcp_server_name": fields.Name}, default_config=JSON, configs=JSON, tools=list[JSON]
)
_LISTING = fields.object_of({"mcp_server_name": fields.Name, "tools": list[JSON]})
_LISTED = fields.object_of({"name": fields.Name, "input_schema": JSON}, description=str)
_TOOL_CONFIG = fields.object_of(enabled=bool, defer_loading=bool)

BETA = "mcp-client-"
LISTING_BETA = "2026-09-15"
"""The first version of the beta `mcp-client` in which clients know the block `mcp_tool_listing`."""


@dataclass(frozen=True, kw_only=True)
class Toolset:
    """Which tools of a server the request wants: those in `configs` as it says there, all others as `default` says."""

    entry: JSON
    """The server as an entry of the type mcp, as the Responses API has it."""
    default: JSON = field(default_factory=dict)
    configs: Mapping[str, JSON] = field(default_factory=dict)
    tools: Sequence[Tool] | None = None
    """The tools of the server, where the request says which they are."""

    @property
    def label(self) -> str:
        """The name of the server."""
        return str(self.entry["server_label"])

    def _is(self, member: str, names: Collection[str], *, otherwise: bool) -> bool:
        configs = (self.configs[name] for name in names if name in self.configs)
        values = (config.get(member) for config in chain(configs, [self.default]))
        return next((value for value in values if value is not None), otherwise)

    def takes(self, *names: str) -> bool:
        """Whether the tool of these names is wanted."""
        if self.tools is not None and not any(tool.name in names for tool in self.tools):
            return False
        return self._is("enabled", names, otherwise=True)

    def defers(self, *names: str) -> bool:
        """Whether the model gets to see the tool of these names only when it is found or added."""
        return self._is("defer_loading", names, otherwise=False)

    def choice(self, snapshot: Snapshot, without: Collection[str]) -> Choice:
        """The tools that are wanted, but for those whose names are given."""
        if not (self.configs or without or self.tools) and self.default.get("enabled") is not False:
            return Choice(server=self.label)  # and those that join while the request runs
        wanted = {known for known, tool in self._own(snapshot) if self.takes(tool.name, known)}
        return Choice(server=self.label, names=frozenset(wanted - set(without)))

    def deferred(self, snapshot: Snapshot) -> dict[str, JSON]:
        """What is wanted and deferred, as a client would declare it."""
        return {
            known: {"name": known, "description": tool.description, "input_schema": tool.parameters}
            for known, tool in self._own(snapshot)
            if self.takes(tool.name, known) and self.defers(tool.name, known)
        }

    def listing(self, snapshot: Snapshot) -> JSON:
        """The block that tells the client of the server's tools."""
        tools = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for _, tool in self._own(snapshot)
        ]
        return {"type": "mcp_tool_listing", "mcp_server_name": self.label, "tools": tools}

    def _own(self, snapshot: Snapshot) -> Iterator[tuple[str, Tool]]:
        return ((known, tool) for known, tool in snapshot.callable.items() if tool.server == self.label)


def knows_listings(headers: Iterable[Header]) -> bool:
    """Whether a client asks for the lists of tools in its answers."""
    betas = (value.decode("latin-1") for name, value in headers if name == b"anthropic-beta")
    versions = (
        beta.strip().removeprefix(BETA) for named in betas for beta in named.split(",") if BETA in beta
    )
    return any(version >= LISTING_BETA for version in versions)


def read_toolsets(servers: Sequence[JSON], tools: Sequence[JSON], messages: Sequence[Any]) -> list[Toolset]:
    """What a request wants of each of its servers. Raises InvalidRequest.

    `messages` may hold toolsets too, and the lists of tools that earlier answers told of.
    """
    fields.check_size("mcp_servers", len(servers))
    listings = _listings(messages) if servers else {}
    entries = _entries(tools, messages)
    toolsets = [
        _toolset(server, f"mcp_servers[{number}]", entries, listings) for number, server in enumerate(servers)
    ]
    named = [toolset.label for toolset in toolsets]
    if missing := [name for name in entries if name not in named]:
        raise InvalidRequest(
            f"A toolset names the server {missing[0][:100]!r}, which is none of mcp_servers.", param="tools"
        )
    return toolsets


def _entries(tools: Sequence[JSON], messages: Sequence[Any]) -> dict[str, tuple[JSON, str]]:
    """The toolsets by the names of their servers, and where they stand; a later one of the messages replaces others."""
    found = {}
    for number, tool in enumerate(tools):
        if tool.get("type") == "mcp_toolset":
            entry = fields.check(_TOOLSET, tool, f"tools[{number}]")
            if entry["mcp_server_name"] in found:
                raise InvalidRequest(
                    f"Two toolsets name the server {entry['mcp_server_name'][:100]!r}; send one.",
                    param="tools",
                )
            found[entry["mcp_server_name"]] = entry, f"tools[{number}]"
    for block, where in _blocks(messages, "system", "tool_addition"):
        added = block.get("tool")
        definition = added.get("definition") if isinstance(added, dict) else None
        if isinstance(definition, dict) and definition.get("type") == "mcp_toolset":
            place = f"{where}.tool.definition"
            entry = fields.check(_TOOLSET, definition, place)
            found[entry["mcp_server_name"]] = entry, place
    return found


def _listings(messages: Sequence[Any]) -> dict[str, tuple[JSON, str]]:
    """The newest list of tools of each server that stands in the conversation, and where."""
    found = {}
    for block, where in _blocks(messages, "assistant", "mcp_tool_listing"):
        listing = fields.check(_LISTING, block, where)
        found[listing["mcp_server_name"]] = listing, where
    return found


def _blocks(messages: Sequence[Any], role: str, kind: str) -> Iterator[tuple[JSON, str]]:
    """The blocks of one type in the turns of one role; what has no shape at all is told of where it is read."""
    for number, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == role:
            content = message.get("content")
            for place, block in enumerate(content if isinstance(content, list) else ()):
                if isinstance(block, dict) and block.get("type") == kind:
                    yield block, f"messages[{number}].content[{place}]"


def _toolset(
    given: JSON,
    where: str,
    entries: Mapping[str, tuple[JSON, str]],
    listings: Mapping[str, tuple[JSON, str]],
) -> Toolset:
    server = fields.check(_SERVER, given, where)
    label = server["name"]
    entry = {"type": "mcp", "server_label": label, "server_url": server["url"]}
    if token := server.get("authorization_token"):
        entry["authorization"] = token
    toolset, place = entries.get(label) or ({}, "")
    pinned, at = (toolset, place) if toolset.get("tools") is not None else listings.get(label) or ({}, "")
    tools = _tools(label, pinned["tools"], f"{at}.tools") if pinned else None
    if toolset:
        default = fields.check(_TOOL_CONFIG, toolset.get("default_config") or {}, f"{place}.default_config")
        configs = {
            name: _config(config, f"{place}.configs.{name}"[:200])
            for name, config in (toolset.get("configs") or {}).items()
        }
        return Toolset(entry=entry, default=default, configs=configs, tools=tools)
    configuration = fields.check(
        _CONFIGURATION, server.get("tool_configuration") or {}, f"{where}.tool_configuration"
    )
    allowed: Collection[str] | None = configuration.get("allowed_tools")
    is_enabled = configuration.get("enabled") is not False
    if allowed is None or not is_enabled:
        return Toolset(entry=entry, default={"enabled": is_enabled}, tools=tools)
    only = {name: {"enabled": True} for name in allowed}
    return Toolset(entry=entry, default={"enabled": False}, configs=only, tools=tools)


def _config(config: Any, where: str) -> JSON:
    if not isinstance(config, dict):
        raise fields.wrong(where, "an object")
    return fields.check(_TOOL_CONFIG, config, where)


def _tools(label: str, listed: Sequence[JSON], where: str) -> list[Tool]:
    """The tools of a list; of two with one name the first."""
    fields.check_size(where, len(listed))
    tools: dict[str, Tool] = {}
    for number, entry in enumerate(listed):
        definition = fields.check(_LISTED, entry, f"{where}[{number}]")
        tools.setdefault(
            definition["name"],
            Tool(
                name=definition["name"],
                server=label,
                description=definition.get("description") or "",
                parameters=definition["input_schema"],
            ),
        )
    return list(tools.values())
