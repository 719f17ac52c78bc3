"""Items of `tools/list` -> Tools: what can be used is mended, what cannot is left out with a warning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolway.tools.mcp.sdk import find_invalid_x_mcp_header, x_mcp_header_map
from toolway.types import JSON, Tool


@dataclass(frozen=True, kw_only=True)
class Handle:
    """What calling a tool takes: its name on the server, and which arguments are sent as headers too.

    `method` is the request that a call makes; for resources it is not a tool of the server's own.
    """

    name: str
    method: Literal["tools/call", "resources/list", "resources/read"] = "tools/call"
    headers: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    annotations: JSON = field(default_factory=dict)


def tools(items: Sequence[Any], *, server: str, modern: bool) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools of a list in the server's order, and one sentence for each that was left out or changed."""
    found: dict[str, Tool] = {}
    warnings: list[str] = []
    for number, item in enumerate(items):
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name:
            warnings.append(f"item {number} of the tool list has no name and was left out")
        elif name in found:
            warnings.append(f"tool {name!r} is listed twice; the first one is used")
        elif modern and (reason := find_invalid_x_mcp_header(item.get("inputSchema"))):
            # The specification (2026-07-28) forbids to call such a tool.
            warnings.append(f"tool {name!r} was left out: its x-mcp-header is invalid ({reason})")
        else:
            found[name] = _tool(item, name, server, warnings)
    return tuple(found.values()), tuple(warnings)


def _tool(item: JSON, name: str, server: str, warnings: list[str]) -> Tool:
    annotations = item.get("annotations")
    schema = item.get("inputSchema")
    return Tool(
        name=name,
        server=server,
        description=_description(item),
        parameters=_parameters(schema, name, warnings),
        handle=Handle(
            name=name,
            headers=x_mcp_header_map(schema) if isinstance(schema, dict) else {},
            annotations=annotations if isinstance(annotations, dict) else {},
        ),
    )


def _description(item: JSON) -> str:
    annotations = item.get("annotations")
    hint = annotations.get("title") if isinstance(annotations, dict) else None
    said = (item.get("description"), item.get("title"), hint)
    return next((text for text in said if isinstance(text, str) and text.strip()), "")


def _parameters(schema: Any, name: str, warnings: list[str]) -> JSON:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        warnings.append(f"tool {name!r} has no usable input schema; it is offered without parameters")
        schema = {}
    properties = schema.get("properties")
    return {**schema, "type": "object", "properties": properties if isinstance(properties, dict) else {}}


def resource_tools(server: str, taken: Iterable[str]) -> tuple[Tool, ...]:
    """Two tools that stand for a server's resources, under names that it does not use itself."""
    uri = {"type": "string", "description": "The URI of a resource."}
    reading = {"type": "object", "properties": {"uri": uri}, "required": ["uri"]}
    return (
        Tool(
            name=_free("list_resources", taken),
            server=server,
            description=f"Lists the resources of {server} that can be read: their URIs, names and descriptions.",
            parameters={"type": "object", "properties": {}},
            handle=Handle(name="", method="resources/list"),
        ),
        Tool(
            name=_free("read_resource", taken),
            server=server,
            description=f"Reads one resource of {server} by its URI.",
            parameters=reading,
            handle=Handle(name="", method="resources/read"),
        ),
    )


def _free(name: str, taken: Iterable[str]) -> str:
    return f"mcp_{name}" if name in taken else name
