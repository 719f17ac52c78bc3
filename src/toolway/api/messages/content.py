"""Content blocks of the Messages API -> parts of chat completions; what a block carries that clients do not read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from toolway.api import fields
from toolway.errors import InvalidRequest
from toolway.types import JSON
from toolway.wire.lenient_json import dumps, loads_harmless

_TEXT = fields.object_of({"text": str})
_IMAGE = fields.object_of({"source": JSON})
_DOCUMENT = fields.object_of({"source": JSON}, title=str, context=str)
_SEARCH_RESULT = fields.object_of({"content": list[JSON]}, title=str, source=str)
_BASE64 = fields.object_of({"media_type": fields.Name, "data": fields.Name})
_URL = fields.object_of({"url": fields.Name})
_PLAIN = fields.object_of({"data": str})

_NO_FILES = "Files are not kept here: send the content itself."


@dataclass(kw_only=True)
class Media:
    """What is known of the images and files in a conversation."""

    chars: int = 0
    """Characters of base64, which are no text that the model reads."""
    count: int = 0
    has_documents: bool = False
    """Whether there is a file that not every model server takes."""


def blocks_of(content: Any, where: str) -> list[JSON]:
    """The blocks of a content; a text is one block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise fields.wrong(where, "a text or a list of content blocks")
    fields.check_size(where, len(content))
    return content


def parts_of(block: JSON, where: str, media: Media) -> list[JSON]:
    """The parts for one block that is text, image or document. Raises InvalidRequest for any other."""
    match block.get("type"):
        case "text":
            return [text_part(fields.check(_TEXT, block, where)["text"])]
        case "image":
            media.count += 1
            source = fields.check(_IMAGE, block, where)["source"]
            return [{"type": "image_url", "image_url": {"url": _url(source, f"{where}.source", media)}}]
        case "document":
            return _document(fields.check(_DOCUMENT, block, where), f"{where}.source", media)
        case "search_result":
            found = fields.check(_SEARCH_RESULT, block, where)
            return [text_part(_tagged("search_result", found, "\n".join(fields.texts_in(found["content"]))))]
        case "container_upload":
            raise InvalidRequest(_NO_FILES, param=where)
    served = "Blocks served here: text, image, document, search_result, tool_use and tool_result."
    raise fields.invalid(block.get("type"), f"{where}.type", served)


def text_part(text: str) -> JSON:
    """A part that is text."""
    return {"type": "text", "text": text}


def chat_content(parts: Sequence[JSON]) -> str | list[JSON]:
    """Parts as the content of a message. Text alone is one text: every server and every template takes that."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return list(parts)


def text_and_rest(parts: Sequence[JSON]) -> tuple[str, list[JSON]]:
    """The text of parts, and those that are none."""
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    return text, [part for part in parts if part["type"] != "text"]


def _url(source: JSON, where: str, media: Media) -> str:
    match source.get("type"):
        case "base64":
            given = fields.check(_BASE64, source, where)
            media.chars += len(given["data"])
            return f"data:{given['media_type']};base64,{given['data']}"
        case "url":
            return str(fields.check(_URL, source, where)["url"])
        case "file":
            raise InvalidRequest(_NO_FILES, param=where)
    raise fields.invalid(source.get("type"), f"{where}.type", "Sources of pictures are base64 and url.")


def _document(document: JSON, where: str, media: Media) -> list[JSON]:
    source = document["source"]
    match source.get("type"):
        case "text":
            return [text_part(_tagged("document", document, fields.check(_PLAIN, source, where)["data"]))]
        case "content":
            inner = [
                part
                for number, block in enumerate(blocks_of(source.get("content"), f"{where}.content"))
                for part in parts_of(block, f"{where}.content[{number}]", media)
            ]
            text, rest = text_and_rest(inner)
            return [text_part(_tagged("document", document, text)), *rest]
        case "base64":
            media.has_documents = True
            name = document.get("title") or "document.pdf"
            return [{"type": "file", "file": {"filename": name, "file_data": _url(source, where, media)}}]
        case "url":
            raise InvalidRequest(
                "Documents are not fetched here: send the content, as base64 or text.", param=where
            )
        case "file":
            raise InvalidRequest(_NO_FILES, param=where)
    served = "Sources of documents are text, content and base64."
    raise fields.invalid(source.get("type"), f"{where}.type", served)


def _tagged(tag: str, given: JSON, text: str) -> str:
    """A text with what is told about it, in a form that models know."""
    names = ("title", "source") if tag == "search_result" else ("title",)
    attributes = "".join(f" {name}={quoteattr(given[name])}" for name in names if given.get(name))
    about = f"{given['context']}\n\n" if given.get("context") else ""
    return f"<{tag}{attributes}>\n{about}{text}\n</{tag}>"


PREFIX = "toolway."
"""What a signature that was made here begins with."""


def sealed(state: JSON) -> str:
    """What must come back with a turn of the model, as the `signature` of a thinking block or `data` of a redacted one.

    Clients carry these unread. It is encoded, not encrypted: all in it is of the client's own conversation.
    """
    return PREFIX + base64.urlsafe_b64encode(dumps(state)).decode()


def unsealed(signature: Any) -> JSON:
    """The state in a signature; nothing in one that was not made here."""
    if not isinstance(signature, str) or not signature.startswith(PREFIX):
        return {}
    try:
        state = loads_harmless(base64.urlsafe_b64decode(signature.removeprefix(PREFIX)))
    except (binascii.Error, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
