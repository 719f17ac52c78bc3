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
from typing import Any, NamedTuple

from toolway.conversation.message import ChatRequest
from toolway.types import JSON, Header


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

    def __str__(self) -> str:
        return f"{self.client}'s {self.purpose}"

    def is_it(self, text: str, agent: str, max_tokens: Any) -> bool:
        """Whether a request with this message, which `begins` as it must, is one."""
        return (
            all(words in text for words in self.contains)
            and self.agent.casefold() in agent.casefold()
            and (self.max_tokens is None or (isinstance(max_tokens, int) and max_tokens <= self.max_tokens))
        )


def find_side_request(request: ChatRequest, headers: Sequence[Header]) -> SideRequest | None:
    """The entry that a request fits; None: it is a question of somebody's."""
    if not request.messages:
        return None
    for beginnings in _beginnings():
        message = request.messages[beginnings.place]
        if not isinstance(message, dict) or message.get("role") not in beginnings.roles:
            continue
        text = _text_of(message).lstrip()
        # Nearly all requests are none of these, and are known by this look alone.
        if not (folded := text[: beginnings.longest].casefold()).startswith(beginnings.all):
            continue
        agent = next((value for name, value in headers if name == b"user-agent"), b"").decode("latin-1")
        most = request.options.get("max_completion_tokens", request.options.get("max_tokens"))
        for begins, entry in beginnings.entries:
            if folded.startswith(begins) and entry.is_it(text, agent, most):
                return entry
    return None


class _Beginnings(NamedTuple):
    """How the messages of one role begin that the table knows, their case folded."""

    roles: tuple[str, ...]
    """No set: what a client sends as a role may be a list."""
    place: int
    """The message that is looked at."""
    all: tuple[str, ...]
    entries: list[tuple[str, SideRequest]]
    longest: int


@cache
def _beginnings() -> Sequence[_Beginnings]:
    return (_beginnings_of("system", ("system", "developer"), 0), _beginnings_of("user", ("user",), -1))


def _beginnings_of(role: str, roles: tuple[str, ...], place: int) -> _Beginnings:
    entries = [(entry.begins.casefold(), entry) for entry in _table() if entry.role == role]
    longest = max((len(entry.begins) for _, entry in entries), default=0)
    return _Beginnings(roles, place, tuple(begins for begins, _ in entries), entries, longest)


@cache
def _table() -> tuple[SideRequest, ...]:
    text = files("toolway.engine").joinpath("side_requests.toml").read_text(encoding="utf-8")
    return tuple(
        SideRequest(**{**entry, "contains": tuple(entry.get("contains", ()))})
        for entry in tomllib.loads(text)["request"]
    )


def _text_of(message: JSON) -> str:
    """What a message says."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return next((text for text in texts if isinstance(text, str)), "")
