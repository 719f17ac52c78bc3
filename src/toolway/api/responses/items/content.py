"""The content of items as chat completions have it, and log probabilities as OpenAI writes them."""

from __future__ import annotations

import math
from typing import Any

from toolway.api.fields import invalid
from toolway.errors import InvalidRequest
from toolway.types import JSON
from toolway.wire.lenient_json import fix_surrogates

UNLIKELY = -9999.0
"""How OpenAI writes the logprob of a token that is too unlikely; model servers write null or infinity."""


def chat_content(content: Any, where: str) -> str | list[JSON]:
    """A text, or parts as chat completions have them. One part of text is a text: every server takes that."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InvalidRequest(f"{where} must be a text or a list of parts.", param=where)
    parts = [_part(part, f"{where}[{number}]") for number, part in enumerate(content)]
    if not parts or (len(parts) == 1 and parts[0]["type"] == "text"):
        return str(parts[0]["text"]) if parts else ""
    return parts


def read_logprobs(logprobs: Any) -> list[JSON]:
    """Those of the content in a choice's `logprobs`; what is no entry is passed over."""
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [{**_own(entry), "top_logprobs": _top(entry)} for entry in _objects(entries)]


def _part(part: JSON, where: str) -> JSON:
    match part.get("type"):
        case "input_text" | "output_text" | "text" if isinstance(part.get("text"), str):
            return {"type": "text", "text": part["text"]}
        case "input_image" | "image_url" if url := _image_url(part.get("image_url")):
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {**detail, **url}}
        case "input_file" if isinstance(part.get("file_data"), str):
            file = {name: part[name] for name in ("filename", "file_data") if part.get(name)}
            return {"type": "file", "file": file}
        case "file" if isinstance(part.get("file"), dict) and isinstance(part["file"].get("file_data"), str):
            return {"type": "file", "file": part["file"]}
        case "input_audio" if isinstance(part.get("input_audio"), dict):
            return {"type": "input_audio", "input_audio": part["input_audio"]}
        case "input_image" | "input_file" | "image_url" | "file":
            raise InvalidRequest(
                "Files are not kept here: send image_url (a URL or data: URL) or file_data.", param=where
            )
    served = "Parts are input_text, input_image, input_file or input_audio."
    raise invalid(part.get("type"), where, served)


def _top(entry: JSON) -> list[JSON]:
    return [_own(other) for other in _objects(entry.get("top_logprobs"))]


def _own(entry: JSON) -> JSON:
    token, logprob = entry.get("token"), entry.get("logprob")
    token = fix_surrogates(token) if isinstance(token, str) else ""
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        logprob = UNLIKELY
    return {"token": token, "logprob": float(logprob), "bytes": _bytes(entry, token)}


def _bytes(entry: JSON, token: str) -> list[int]:
    given = entry.get("bytes")
    if isinstance(given, list) and all(type(number) is int for number in given):
        return given
    return list(token.encode())


def _objects(value: Any) -> list[JSON]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _image_url(value: Any) -> JSON | None:
    """What a chat completion's part holds, for a URL alone and for such an object."""
    if isinstance(value, dict):
        return value if isinstance(value.get("url"), str) else None
    return {"url": value} if isinstance(value, str) else None
