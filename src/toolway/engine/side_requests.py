"""Requests that clients make for themselves (titles, tags, memory): known by a table, and offered no tools of ours.

The table is `side_requests.toml`. A model that is asked for a title and offered tools runs them, and what they did is
seen by nobody.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from toolway.conversation.message import ChatRequest
from toolway.types import Header


@dataclass(frozen=True, kw_only=True)
class SideRequest:
    """One entry of the table: everything in it must hold."""

    client: str
    purpose: str
    role: str
    begins: str
    contains: tuple[str, ...] = ()
    agent: str = ""
    max_tokens: int | None = None

    def is_it(self, text: str, agent: str, max_tokens: Any) -> bool:
        """Whether a request with this message is one."""
        return (
            text[: len(self.begins)].casefold() == self.begins.casefold()
            and all(words in text for words in self.contains)
            and self.agent.casefold() in agent.casefold()
            and (self.max_tokens is None or (isinstance(max_tokens, int) and max_tokens <= self.max_tokens))
        )


def find_side_request(request: ChatRequest, headers: Sequence[Header]) -> SideRequest | None:
    """The entry that a request fits; None: it is a question of somebody's."""
    messages = {"system": _first_system(request.messages), "user": _last_user(request.messages)}
    agent = next((value for name, value in headers if name == b"user-agent"), b"").decode("latin-1")
    most = request.options.get("max_completion_tokens", request.options.get("max_tokens"))
    return next((entry for entry in _table() if entry.is_it(messages[entry.role], agent, most)), None)


@cache
def _table() -> tuple[SideRequest, ...]:
    text = files("toolway.engine").joinpath("side_requests.toml").read_text(encoding="utf-8")
    return tuple(
        SideRequest(**{**entry, "contains": tuple(entry.get("contains", ()))})
        for entry in tomllib.loads(text)["request"]
    )


def _first_system(messages: Sequence[Any]) -> str:
    return _said_by({"system", "developer"}, messages[0]) if messages else ""


def _last_user(messages: Sequence[Any]) -> str:
    return _said_by({"user"}, messages[-1]) if messages else ""


def _said_by(roles: set[str], message: Any) -> str:
    """What a message of one of these roles says, from its first letter on."""
    if not isinstance(message, dict) or message.get("role") not in roles:
        return ""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = next((text for text in texts if isinstance(text, str)), "")
    return content.lstrip() if isinstance(content, str) else ""
