"""A tool's result as the body of an HTTP answer, in the shape that mcpo's clients know.

Structured content is the body where there is any. One block of content is the body by itself, several are a list; a
text that is JSON is that JSON, a picture by itself its bytes, in a list a `data:` URI.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from toolway.types import JSON, ToolResult
from toolway.wire.lenient_json import dumps, loads_exact

JSON_TYPE = "application/json"

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


def http_body(result: ToolResult) -> tuple[str, bytes]:
    """(media type, body) of a result that is no error."""
    raw = result.raw() if result.raw is not None else {}
    if raw.get("structuredContent") is not None:
        return JSON_TYPE, dumps(raw["structuredContent"])
    content = raw.get("content") if result.raw is not None else _content(result)
    blocks = content if isinstance(content, list) else [content]
    if len(blocks) == 1:
        return _only(blocks[0])
    return JSON_TYPE, dumps([_value(block) for block in blocks])


def _content(result: ToolResult) -> list[JSON]:
    images = [{"type": "image", "mimeType": i.media_type, "data": i.data} for i in result.images]
    return [{"type": "text", "text": result.text}, *images]


def _only(block: Any) -> tuple[str, bytes]:
    if isinstance(block, dict) and block.get("type") in ("image", "audio"):
        media_type, data = _data_of(block)
        try:
            return media_type, base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            pass
    text = _text(block)
    if text is not None and _is_json(text):
        return JSON_TYPE, text.encode()  # its numbers as they are written
    return JSON_TYPE, dumps(_value(block))


def _value(block: Any) -> Any:
    if (text := _text(block)) is not None:
        return loads_exact(text) if _is_json(text) else text
    kind, resource = (block.get("type"), block.get("resource")) if isinstance(block, dict) else (None, None)
    match kind, resource:
        case "image" | "audio", _:
            return _data_uri(*_data_of(block))
        case "resource", {"text": str(text)}:
            return text
        case "resource", {"blob": str(blob), **rest}:
            return _data_uri(_media_type(rest.get("mimeType")), blob)
    return block


def _text(block: Any) -> str | None:
    text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _is_json(text: str) -> bool:
    try:
        loads_exact(text)
    except ValueError:
        return False
    return True


def _data_of(block: JSON) -> tuple[str, str]:
    data = block.get("data")
    return _media_type(block.get("mimeType")), "".join(data.split()) if isinstance(data, str) else ""


def _media_type(value: Any) -> str:
    fits = isinstance(value, str) and _MEDIA_TYPE.fullmatch(value)
    return value if fits and not value.startswith(("text/html", "image/svg")) else "application/octet-stream"


def _data_uri(media_type: str, data: str) -> str:
    return f"data:{media_type};base64,{data}"
