"""A server's answer -> what the model reads: text as it came, pictures apart, a note for what is neither."""

from __future__ import annotations

import base64
import re
from http import HTTPStatus
from typing import Any

import orjson

from toolway.tools.openapi.operation import essence, kind_of
from toolway.tools.openapi.transport import Answer
from toolway.types import Image, ToolResult
from toolway.wire.lenient_json import dumps_text, loads_exact

MAX_ERROR_CHARS = 4000

PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The kinds that models take."""

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[^,;]*)*;base64,([A-Za-z0-9+/_=\s-]*)", re.ASCII)


def read_result(answer: Answer) -> ToolResult:
    """The result of a call. Anything but a 2xx is an error with its status and what the server said."""
    if not 200 <= answer.status < 300:
        return ToolResult(text=_error(answer), is_error=True)
    if not answer.body.strip():
        return ToolResult(text=f"Done: the server answered {_status(answer)} without content.")
    media_type = essence(answer.content_type)
    if media_type in PICTURES:
        image = Image(media_type=media_type, data=base64.b64encode(answer.body).decode())
        return ToolResult(text=_note(media_type, len(answer.body), "attached"), images=(image,))
    if not _is_text(media_type, answer.body):
        return ToolResult(text=_note(media_type or "data", len(answer.body), "not shown"))
    text = _decoded(answer)
    return _without_data_uris(text) if "data:" in text and ";base64," in text else ToolResult(text=text)


def _is_text(media_type: str, body: bytes) -> bool:
    if media_type == "image/svg+xml" or (media_type and kind_of(media_type) in ("json", "form", "text")):
        return True
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    return not re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text)


def _decoded(answer: Answer) -> str:
    match = re.search(r"charset=\"?([\w.:-]+)", answer.content_type, re.IGNORECASE)
    try:
        text = answer.body.decode(match[1] if match else "utf-8", errors="replace")
    except LookupError:
        text = answer.body.decode(errors="replace")
    return text.removeprefix("\ufeff")


def _note(media_type: str, size: int, what: str) -> str:
    return f"[{media_type}, {_size(size)}: {what}]"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _without_data_uris(text: str) -> ToolResult:
    """JSON text whose data: URIs (mcpo's way to hand over pictures) became notes, with the pictures apart."""
    images: list[Image] = []
    try:
        value = loads_exact(text)
    except ValueError:
        return ToolResult(
            text=_DATA_URI.sub(lambda match: _take_image(match, images), text), images=tuple(images)
        )
    value = _replace_data_uris(value, images)
    shown = value if isinstance(value, str) else dumps_text(value)
    return ToolResult(text=shown, images=tuple(images))


def _replace_data_uris(value: Any, images: list[Image], depth: int = 0) -> Any:
    if isinstance(value, str) and (match := _DATA_URI.fullmatch(value)) is not None:
        return _take_image(match, images)
    if isinstance(value, list) and depth < 32:
        return [_replace_data_uris(item, images, depth + 1) for item in value]
    if isinstance(value, dict) and depth < 32:
        return {key: _replace_data_uris(item, images, depth + 1) for key, item in value.items()}
    return value


def _take_image(match: re.Match[str], images: list[Image]) -> str:
    media_type, data = match[1].lower(), "".join(match[2].split())
    size = len(data.rstrip("=")) * 3 // 4
    if media_type not in PICTURES:
        return _note(media_type, size, "not shown")
    images.append(Image(media_type=media_type, data=data))
    return _note(media_type, size, f"attached as image {len(images)}")


def _error(answer: Answer) -> str:
    detail = ""
    if answer.body and _is_text(essence(answer.content_type), answer.body):
        detail = _error_detail(_decoded(answer))
    if len(detail) > MAX_ERROR_CHARS:
        detail = f"{detail[:MAX_ERROR_CHARS]}… ({len(detail)} characters)"
    return f"The server answered {_status(answer)}" + (f": {detail}" if detail else " without saying why")


def _status(answer: Answer) -> str:
    try:
        return f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        return str(answer.status)


def _error_detail(text: str) -> str:
    """The part of an error that a model can use."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.strip()
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, dict) and isinstance(detail.get("message"), str):
        return _mcpo(detail)
    if (
        isinstance(detail, list)
        and detail
        and all(isinstance(item, dict) and "msg" in item for item in detail)
    ):
        return "; ".join(_validation_line(item) for item in detail)
    return detail if isinstance(detail, str) and len(body) == 1 else text.strip()


_WRAPPED = re.compile(r"^\d{3}: \{'message': (?P<quote>['\"])(?P<message>.*)(?P=quote)\}$", re.DOTALL)


def _mcpo(detail: dict[str, Any]) -> str:
    """mcpo says `{"message": "Unexpected error", "error": "500: {'message': '...'}"}` when a tool reports an error."""
    error = detail.get("error")
    if not isinstance(error, str):
        return str(detail["message"])
    wrapped = _WRAPPED.match(error)
    return _unescaped(wrapped["message"]) if wrapped else f"{detail['message']}: {error}"


def _unescaped(text: str) -> str:
    """Python's repr of a text, read back as far as it matters."""
    known = {"n": "\n", "t": "\t", "r": "\r"}
    return re.sub(r"\\(.)", lambda match: known.get(match[1], match[1]), text, flags=re.DOTALL)


def _validation_line(item: dict[str, Any]) -> str:
    """One of FastAPI's 422 entries: `body.city: Field required`."""
    place = item.get("loc")
    return (
        f"{'.'.join(map(str, place))}: {item['msg']}"
        if isinstance(place, list) and place
        else str(item["msg"])
    )
