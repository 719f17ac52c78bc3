"""The question whether calls may run, in the language of the user, and what callers read while it has no answer."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from toolway.access.approvals import Approval
from toolway.access.language import languages
from toolway.settings.settings import ServerSettings, Settings
from toolway.telemetry.logging import MASK, Redactor, visible

ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
CODE_AT_END = re.compile(rf"([{ALPHABET}]{{4}}-[{ALPHABET}]{{4}})\W{{0,4}}$")
"""The code of a question; it stands at its end, so that a text without one is known at a glance."""

MAX_VALUE = 300
"""Characters of one value that are shown."""

MAX_SHOWN = 2000
"""Characters of the arguments of one call that are shown."""


def new_code() -> str:
    """A code that nobody guesses: 40 bits, which are good for one answer."""
    text = "".join(secrets.choice(ALPHABET) for _ in range(8))
    return f"{text[:4]}-{text[4:]}"


def code_at_end(text: str) -> str | None:
    """The code with which a text ends, if it may be a question of ours."""
    found = CODE_AT_END.search(text[-20:])
    return found[1] if found else None


def write_question(
    approvals: Sequence[Approval], code: str, language: str, redact: Redactor, *, is_asked_again: bool = False
) -> str:
    """The question in Markdown: what would run with which arguments, and how to answer. `language` is one of ours."""
    words = languages()[language]
    many = len(approvals) > 1
    lines = [words["unclear"], ""] if is_asked_again else []
    lines += [words["many"].format(count=len(approvals)) if many else words["one"], ""]
    for number, approval in enumerate(approvals, 1):
        head = f"`{_inline(approval.name)}` ({_inline(approval.server)})"
        reason = f": {_inline(approval.reason)}" if approval.reason else ""
        lines += [
            f"{number}. {head}{reason}" if many else head + reason,
            *_fenced(approval, words, redact),
            "",
        ]
    left = min(approval.created + approval.seconds for approval in approvals) - time.time()
    most = min(approval.seconds for approval in approvals)
    minutes = max(1, round(min(max(left, 0), most) / 60))
    lines += [words["how_many" if many else "how_one"], f"{words['until'].format(minutes=minutes)} {code}"]
    return "\n".join(lines)


def write_summary(approval: Approval, language: str, redact: Redactor) -> str:
    """What would run, and nothing about how to answer: for where the answer is a button."""
    words = languages()[language]
    reason = f": {_inline(approval.reason)}" if approval.reason else ""
    head = f"`{_inline(approval.name)}` ({_inline(approval.server)}){reason}"
    return "\n".join([words["one"], "", head, *_fenced(approval, words, redact)])


def _inline(text: str) -> str:
    """A text that is read as it is written, and for nothing but a part of its line, where Markdown is shown."""
    return re.sub(r"[\\*`~\[\]<>#|&]", r"\\\g<0>", visible(text)[:200])


def _fenced(approval: Approval, words: Mapping[str, str], redact: Redactor) -> list[str]:
    shown = json.dumps(_masked_value(approval.arguments, words, redact), ensure_ascii=False, indent=2)
    lines = [visible(line) for line in redact(_cut(shown, MAX_SHOWN, words)).split("\n")]
    # A fence that is longer than any in the text, so that nothing in it ends it.
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}json", *lines, fence]


def _masked_value(value: Any, words: Mapping[str, str], redact: Redactor, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked_value(member, words, redact, key) for key, member in value.items()}
    if isinstance(value, list):
        return [_masked_value(member, words, redact, name) for member in value]
    if isinstance(value, str):
        if _SECRET.search(name):
            return MASK
        return _cut(redact(value), MAX_VALUE, words)
    return value


_SECRET = re.compile(r"passw|secret|token|api_?key|credential|private_?key|authorization", re.IGNORECASE)


def _cut(text: str, most: int, words: Mapping[str, str]) -> str:
    """Head and tail of a long text: what is harmful may stand at either end."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    tail = most - head
    note = words["cut"].format(count=f"{len(text) - most:,}")
    return f"{text[:head]} [… {note} …] {text[-tail:]}"


def write_waiting(approval: Approval, settings: Settings, *, is_served: bool) -> str:
    """What a caller outside of a conversation reads while a person must approve its call.

    Half a sentence and what follows it, without the last full stop; nothing in it that cannot be done.
    `is_served`: this process listens, so that the console and the command line can answer. `toolway mcp` does not: what
    waits in its memory nobody else sees.
    """
    first = "a person must approve it first"
    minutes = max(1, round(approval.seconds / 60))
    again = f"When that is done, within {minutes} minutes, call it again with the same arguments"
    command = f"toolway approvals approve {approval.id}{_url_option(settings.server)}"
    if not settings.console.enabled:
        return (
            f"{first}, and nobody can be asked: the console and its commands are off (TOOLWAY_CONSOLE), and this "
            "client does not ask its user (MCP's elicitation)"
        )
    if is_served:
        return f"{first} ({command}). {again}"
    if settings.store.url != "memory:":
        return f"{first}, at a running `toolway serve` with the same TOOLWAY_STORE ({command}). {again}"
    return (
        f"{first}, and nobody can be asked: this client does not ask its user (MCP's elicitation), and what waits in "
        "the memory of `toolway mcp` nobody else sees. Use a client that asks, or give it and a running "
        "`toolway serve` the same TOOLWAY_STORE, where `toolway approvals` and the console answer"
    )


def _url_option(server: ServerSettings) -> str:
    """What the command needs where Toolway does not listen where it looks by itself."""
    usual = ServerSettings()
    return "" if (server.host, server.port) == (usual.host, usual.port) else f" --url {server.local_url()}"
