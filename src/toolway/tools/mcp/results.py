"""Results of MCP requests -> Tools and ToolResults: what can be used is mended, what cannot is left out in words."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from toolway.tools.mcp.sdk import find_invalid_x_mcp_header, x_mcp_header_map
from toolway.types import JSON, Image, Tool, ToolResult
from toolway.wire.lenient_json import dumps_text, harmless, loads_exact


@dataclass(frozen=True, kw_only=True)
class Handle:
    """What calling a tool takes: its name on the server, and which arguments are sent as headers too.

    `method` is the request that a call makes; for resources it is not a tool of the server's own.
    """

    name: str
    method: Literal["tools/call", "resources/list", "resources/read"] = "tools/call"
    headers: Mapping[tuple[str, ...], str] = field(default_factory=dict)


def tools(items: Sequence[Any], *, server: str, modern: bool) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools of a list in the server's order, and one sentence for each that was left out or changed."""
    found: dict[str, Tool] = {}
    warnings: list[str] = []
    for number, listed in enumerate(items):
        item = harmless(listed)
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
        extra={key: value for key, value in item.items() if key not in _OWN_FIELDS and value is not None},
        handle=Handle(
            name=name,
            headers=x_mcp_header_map(schema) if isinstance(schema, dict) else {},
        ),
        annotations=annotations if isinstance(annotations, dict) else {},
    )


_OWN_FIELDS = frozenset({"name", "description", "inputSchema", "annotations"})
"""Members of MCP's tool that have a field of their own in ours."""


def _description(item: JSON) -> str:
    annotations = item.get("annotations")
    hint = annotations.get("title") if isinstance(annotations, dict) else None
    values = (item.get("description"), item.get("title"), hint)
    return next((text for text in values if isinstance(text, str) and text.strip()), "")


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
            annotations={"readOnlyHint": True},
            handle=Handle(name="", method="resources/list"),
        ),
        Tool(
            name=_free("read_resource", taken),
            server=server,
            description=f"Reads one resource of {server} by its URI.",
            parameters=reading,
            annotations={"readOnlyHint": True},
            handle=Handle(name="", method="resources/read"),
        ),
    )


def _free(name: str, taken: Iterable[str]) -> str:
    return f"mcp_{name}" if name in taken else name


def tool_result(raw: JSON) -> ToolResult:
    """What the model reads of a `CallToolResult`, as far as it follows the specification of any version."""
    texts, images = _blocks(raw.get("content", raw.get("toolResult")))
    structured = raw.get("structuredContent")
    if structured is not None and not _mirrored(structured, texts):
        texts.append(dump(structured))
    is_error = raw.get("isError") is True
    text = "\n\n".join(text for text in texts if text.strip())
    return ToolResult(
        text=text or _nothing(is_error, images),
        is_error=is_error,
        images=tuple(images),
        raw=partial(harmless, {key: raw[key] for key in _RESULT_FIELDS if raw.get(key) is not None}),
    )


_RESULT_FIELDS = ("content", "structuredContent", "_meta", "isError")


def resource_result(raw: JSON) -> ToolResult:
    """What the model reads of a `ReadResourceResult`."""
    contents = raw.get("contents")
    blocks = (
        [{"type": "resource", "resource": item} for item in contents] if isinstance(contents, list) else []
    )
    return tool_result({"content": blocks})


def resource_list(resources: Sequence[Any], templates: Sequence[Any]) -> ToolResult:
    """What the model reads of `resources/list` and `resources/templates/list`: one line each."""
    lines = [_line(item, "uri") for item in resources if isinstance(item, dict)]
    lines += [_line(item, "uriTemplate") for item in templates if isinstance(item, dict)]
    return ToolResult(text="\n".join(lines) or "There are no resources.")


def _line(item: JSON, key: str) -> str:
    return _link({**item, "uri": item.get(key)})


def dump(value: Any) -> str:
    """JSON text of a value that came as JSON, its integers exact; what is nested too deeply is cut."""
    return dumps_text(value)


def _blocks(content: Any) -> tuple[list[str], list[Image]]:
    texts: list[str] = []
    images: list[Image] = []
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, dict):
            _read(block, texts, images)
        elif block is not None:
            texts.append(block if isinstance(block, str) else dump(block))
    return texts, images


def _read(block: JSON, texts: list[str], images: list[Image]) -> None:
    kind, data = block.get("type"), block.get("data")
    if kind == "text" and isinstance(block.get("text"), str):
        texts.append(block["text"])
    elif kind == "image" and isinstance(data, str):
        _add_image(data, block.get("mimeType"), texts, images)
    elif kind == "audio" and isinstance(data, str):
        texts.append(f"[audio, {block.get('mimeType') or 'unknown type'}, {_size(data)}: not shown]")
    elif kind == "resource_link":
        texts.append(_link(block))
    elif kind == "resource" and isinstance(block.get("resource"), dict):
        _resource(block["resource"], texts, images)
    else:
        texts.append(dump(block))


def _resource(resource: JSON, texts: list[str], images: list[Image]) -> None:
    uri, blob, media_type = resource.get("uri"), resource.get("blob"), str(resource.get("mimeType") or "")
    if isinstance(resource.get("text"), str):
        texts.append(f"[{uri}]\n{resource['text']}" if uri else resource["text"])
    elif isinstance(blob, str) and media_type.startswith("image/"):
        _add_image(blob, media_type, texts, images)
    elif isinstance(blob, str):
        texts.append(f"[{uri}, {media_type or 'binary'}, {_size(blob)}: not shown]")
    else:
        texts.append(dump(resource))


def _add_image(data: str, media_type: Any, texts: list[str], images: list[Image]) -> None:
    media_type = (
        media_type if isinstance(media_type, str) and media_type.startswith("image/") else "image/png"
    )
    data = "".join(data.split())
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        texts.append(f"[an image, {media_type}, that is not valid base64]")
        return
    images.append(Image(media_type=media_type, data=data))


def _link(block: JSON) -> str:
    name = block.get("title") or block.get("name") or ""
    line = f"[{name}]({block.get('uri')})" if name else str(block.get("uri"))
    described = block.get("description")
    return f"{line}: {described}" if isinstance(described, str) and described else line


def _mirrored(structured: Any, texts: list[str]) -> bool:
    """Whether the text says the same, as the specification asks of servers that answer in structures.

    A single value is often wrapped: FastMCP says `{"result": ...}`, server-filesystem `{"content": ...}`.
    """
    bare = (
        next(iter(structured.values()))
        if isinstance(structured, dict) and len(structured) == 1
        else structured
    )
    if bare == texts or bare == "\n".join(texts):
        return True
    values = [_loads(text) for text in texts]
    return any(value in (structured, bare) for value in values) or values == bare


def _loads(text: str) -> Any:
    try:
        return loads_exact(text)
    except ValueError:
        return text


def _size(data: str) -> str:
    size = len(data) * 3 // 4
    return f"{size / 1024:.0f} KiB" if size >= 1024 else f"{size} bytes"


def _nothing(is_error: bool, images: list[Image]) -> str:
    if is_error:
        return "The tool failed and did not say why."
    if images:
        return f"The tool returned {len(images)} image{'s' if len(images) > 1 else ''}."
    return "The tool ran and returned nothing."
