"""Our tools and results -> MCP's `Tool` and `CallToolResult`, each valid whatever the server behind wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_types import SERVER_INFO_META_KEY
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError

from toolway.tools.forwarding_loops import passed_on
from toolway.types import JSON, Tool, ToolResult
from toolway.wire.lenient_json import dumps_text

_ESSENTIAL = ("name", "description", "inputSchema")


def tool_object(name: str, tool: Tool, version: str, toolway: str | None) -> JSON:
    """MCP's `Tool`, as its server gave it but for the name; members that are not what MCP says are left out.

    `toolway` is the name of this Toolway in the path of the tool, for a client that is one too.
    """
    extra = tool.extra if toolway is None else passed_on(tool, toolway)
    details: JSON = {
        **extra,
        **({"annotations": tool.annotations} if tool.annotations else {}),
    }
    whole: JSON = {
        **details,
        "name": name,
        "description": tool.description,
        "inputSchema": tool.parameters,
    }
    if _is_tool(whole, version):
        return whole
    kept = {key: whole[key] for key in _ESSENTIAL}
    for key, value in details.items():
        if _is_tool({**kept, key: value}, version):
            kept[key] = value
    return kept


def _is_tool(tool: JSON, version: str) -> bool:
    return is_result("tools/list", {"tools": [tool]}, version)


def complete(result: JSON) -> JSON:
    """A result with what 2026-07-28 wants in it; versions before know no more of it than the SDK lets through."""
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **result}


def is_result(method: str, result: JSON, version: str) -> bool:
    """Whether MCP of this version takes it as the result of `method`."""
    try:
        serialize_server_result(method, version, complete(result))
    except ValidationError:
        return False
    return True


def call_result(result: ToolResult, version: str) -> JSON:
    """MCP's `CallToolResult`: as the server behind wrote it, or the text and the images of any other tool."""
    if result.raw is None:
        return {"content": list(_blocks(result)), "isError": result.is_error}
    raw = without_hop(result.raw())
    whole = {**raw, "content": raw.get("content") or [], "isError": result.is_error}
    if is_result("tools/call", whole, version):
        return whole
    kept: JSON = {"content": _valid_blocks(whole["content"], version), "isError": result.is_error}
    for key in ("structuredContent", "_meta"):
        if key in raw and is_result("tools/call", {**kept, key: raw[key]}, version):
            kept[key] = raw[key]
    return kept


def without_hop(raw: JSON) -> JSON:
    """A result without what the server behind said of itself: here another one answers."""
    meta = raw.get("_meta")
    if not isinstance(meta, dict) or SERVER_INFO_META_KEY not in meta:
        return raw
    kept = {key: value for key, value in meta.items() if key != SERVER_INFO_META_KEY}
    rest = {key: value for key, value in raw.items() if key != "_meta"}
    return {**rest, "_meta": kept} if kept else rest


def _blocks(result: ToolResult) -> Iterator[JSON]:
    if result.text or not result.images:
        yield {"type": "text", "text": result.text}
    for image in result.images:
        yield {"type": "image", "mimeType": image.media_type, "data": image.data}


def _valid_blocks(content: Any, version: str) -> list[JSON]:
    blocks = content if isinstance(content, list) else [content]
    return [block if _is_block(block, version) else _as_text(block) for block in blocks]


def _is_block(block: Any, version: str) -> bool:
    return is_result("tools/call", {"content": [block]}, version)


def _as_text(block: Any) -> JSON:
    """A block that MCP does not know, in words."""
    text = block.get("text") if isinstance(block, dict) else block
    return {"type": "text", "text": text if isinstance(text, str) else dumps_text(block)}
