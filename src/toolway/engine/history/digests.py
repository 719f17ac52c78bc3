"""What a client's conversation is known by when it comes back: digests of what clients do not change in messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from toolway.types import JSON
from toolway.wire.lenient_json import dumps

SYSTEM = ("system", "developer")
"""The roles of messages that clients change, so that they count for nothing."""


def essences(messages: Sequence[Any]) -> Iterator[bytes]:
    """What clients do not change of each message when they send it again; nothing of a system message."""
    for message in messages:
        is_kept = isinstance(message, dict) and message.get("role") not in SYSTEM
        yield dumps(_essence(message)) if is_kept else b""


def digests(parts: Iterable[bytes]) -> Iterator[str]:
    """The digest of the first 0, 1, 2 ... of these essences."""
    digest = hashlib.sha256()
    yield digest.hexdigest()
    for part in parts:
        digest.update(part)
        yield digest.hexdigest()


def role_of(message: Any) -> Any:
    """The role of a message; None where it is none."""
    return message.get("role") if isinstance(message, dict) else None


def text_of(content: Any) -> str:
    """The words of a message's content."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _essence(message: JSON) -> list[Any]:
    """White space is changed where clients join texts."""
    calls = message.get("tool_calls")
    ids = [call.get("id") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    content = message.get("content")
    if isinstance(content, list) and not all(isinstance(p, dict) and "text" in p for p in content):
        return [message.get("role"), content, ids]
    return [message.get("role"), "".join(text_of(content).split()), ids]
