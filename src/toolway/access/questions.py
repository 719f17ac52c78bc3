"""The question that plain chat asks about calls, in the user's language, and what is an answer to it."""

from __future__ import annotations

import json
import re
import secrets
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolway.access.approvals import Approval
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


def write_question(approvals: Sequence[Approval], code: str, language: str, redact: Redactor) -> str:
    """The question in Markdown: what would run with which arguments, and how to answer. `language` is one of ours."""
    words = _languages()[language]
    many = len(approvals) > 1
    lines = [words["many"].format(count=len(approvals)) if many else words["one"], ""]
    for number, approval in enumerate(approvals, 1):
        head = f"`{_inline(approval.name)}` ({_inline(approval.server)})"
        reason = f": {_inline(approval.reason)}" if approval.reason else ""
        lines += [
            f"{number}. {head}{reason}" if many else head + reason,
            *_fenced(approval, words, redact),
            "",
        ]
    minutes = max(1, round(min(approval.seconds for approval in approvals) / 60))
    lines += [words["how_many" if many else "how_one"], f"{words['until'].format(minutes=minutes)} {code}"]
    return "\n".join(lines)


def write_summary(approval: Approval, language: str, redact: Redactor) -> str:
    """What would run, and nothing about how to answer: for where the answer is a button."""
    words = _languages()[language]
    reason = f": {_inline(approval.reason)}" if approval.reason else ""
    head = f"`{_inline(approval.name)}` ({_inline(approval.server)}){reason}"
    return "\n".join([words["one"], "", head, *_fenced(approval, words, redact)])


def _inline(text: str) -> str:
    """A text that cannot be taken for anything but a part of its line."""
    return re.sub(r"[*`\[\]<>#|]", "", visible(text))[:200]


def _fenced(approval: Approval, words: Mapping[str, str], redact: Redactor) -> list[str]:
    shown = json.dumps(_shown(approval.arguments, words, redact), ensure_ascii=False, indent=2)
    lines = [visible(line) for line in redact(_cut(shown, MAX_SHOWN, words)).split("\n")]
    # A fence that is longer than any in the text, so that nothing in it ends it.
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}json", *lines, fence]


def _shown(value: Any, words: Mapping[str, str], redact: Redactor, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _shown(member, words, redact, key) for key, member in value.items()}
    if isinstance(value, list):
        return [_shown(member, words, redact, name) for member in value]
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


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer to a question: the numbers (from 0) of the calls that may run, and whether for the conversation."""

    approved: frozenset[int] = frozenset()
    always: bool = False


def read_reply(text: str, code: str, count: int) -> Reply | None:
    """What a user's message answers to a question about `count` calls; None when it is no answer, but something else.

    Only a message that is nothing but an answer is one, or a text that somebody pastes would be.
    """
    if len(text) > 100 or "?" in text or "？" in text:
        return None
    words = _plain(text)
    with_code = code.casefold() in words
    if with_code:
        words = " ".join(words.replace(code.casefold(), " ").split())
    known, every = _answers(), frozenset(range(count))
    if words in known["no"]:
        return Reply()
    if words in known["yes"] or (with_code and not words):
        return Reply(approved=every)
    if words in known["always"]:
        return Reply(approved=every, always=True)
    first, _, rest = words.partition(" ")
    numbers = _numbers(rest if first in known["yes"] else words, count)
    return Reply(approved=numbers) if numbers else None


def _numbers(words: str, count: int) -> frozenset[int]:
    """The numbers in a list of nothing but numbers of calls; none when it is anything else."""
    found = re.findall(r"\d+", words)
    if re.sub(r"\d+|[\s,;+&]|\band\b|\bund\b|\bet\b|\by\b|\be\b", "", words) or len(found) > count:
        return frozenset()
    numbers = frozenset(int(number) - 1 for number in found if len(number) < 4)
    return numbers if len(numbers) == len(found) and numbers <= frozenset(range(count)) else frozenset()


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(re.sub(r"[^\w\s',;+&👍✅👎❌-]", " ", text).strip(" ',;").split())


@cache
def _languages() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))


@cache
def _answers() -> Mapping[str, frozenset[str]]:
    """What may be answered, in all languages; what is a no in one of them is a yes in none."""
    found: dict[str, set[str]] = {kind: set() for kind in ("yes", "no", "always")}
    for words in _languages().values():
        for kind, answers in found.items():
            answers |= {_plain(word) for word in words[kind].split()}
    found["yes"] |= {
        "👍",
        "✅",
        "go ahead",
        "do it",
        "va bene",
        "d'accord",
        "bien sûr",
        "yes please",
        "ja bitte",
    }
    found["no"] |= {"👎", "❌", "do not", "no thanks", "nein danke"}
    found["always"].add("her zaman")
    found["yes"] -= found["no"]
    return {kind: frozenset(answers) for kind, answers in found.items()}


def language_of(texts: Sequence[str], accepted: str = "") -> str:
    """The language of what a user wrote, the newest text last, else the first that is `accepted` (Accept-Language)."""
    sample = " ".join(text[-500:] for text in texts[-3:]).casefold()
    for language, letters in _SCRIPTS.items():
        if len(re.findall(letters, sample)) * 3 > len(re.sub(r"\W", "", sample)) > 0:
            return language
    words = Counter(re.findall(r"[^\W\d]+(?:'[^\W\d]+)?", sample))
    hits = {
        language: sum(words[word] for word in set(own["words"].split()))
        for language, own in _languages().items()
    }
    best = max(hits, key=lambda language: hits[language])
    if hits[best] and list(hits.values()).count(hits[best]) == 1:
        return best
    return next((tag for tag in _tags(accepted) if tag in _languages()), "en")


_SCRIPTS = {
    "ja": "[\u3040-\u30ff]",
    "ko": "[\uac00-\ud7af]",
    "zh": "[\u4e00-\u9fff]",
    "ru": "[\u0400-\u04ff]",
}


def _tags(accepted: str) -> Iterator[str]:
    for part in accepted.split(","):
        yield part.split(";")[0].split("-")[0].strip().casefold()
