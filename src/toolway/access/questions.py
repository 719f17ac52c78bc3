"""The question that plain chat asks about calls, in the user's language, what is an answer to it, what others read."""

from __future__ import annotations

import json
import re
import secrets
import time
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from toolway.access.approvals import Approval
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
    words = _languages()[language]
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
    words = _languages()[language]
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


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer to a question: the numbers (from 0) of the calls that may run, and whether for the conversation.

    One that is not `is_clear` was meant as an answer, but it is not certain which.
    """

    approved: frozenset[int] = frozenset()
    always: bool = False
    is_clear: bool = True


UNCLEAR = Reply(is_clear=False)


def read_reply(text: str, code: str, count: int) -> Reply | None:
    """What a user's message answers to a question about `count` calls; None when it is no answer, but something else.

    Only a message that is nothing but an answer is one, or a text that somebody pastes would be. Nothing is guessed of
    words that answer one thing and another, numbers that no call has, a question mark or another code.
    """
    if len(text) > 100:
        return None
    words, has_code = _without_code(_plain(text), code)
    kinds = _kinds(words)
    if kinds is None:
        return UNCLEAR if _OTHER_CODE.fullmatch(words) else None
    return UNCLEAR if _DOUBT.search(text) else _answer(kinds, re.findall(r"\d+", words), has_code, count)


def _answer(kinds: frozenset[str], numbers: Sequence[str], has_code: bool, count: int) -> Reply:
    wants = kinds - {"courtesy"}
    if numbers:
        approved = _approved(numbers, count)
        return Reply(approved=approved) if approved and wants <= {"yes"} else UNCLEAR
    if "no" in wants:
        return Reply() if wants == {"no"} else UNCLEAR
    if wants or has_code:
        return Reply(approved=frozenset(range(count)), always="always" in wants)
    return UNCLEAR


_DOUBT = re.compile(r"[?？؟]|\d\.\d")
_OTHER_CODE = re.compile(rf"[{ALPHABET.lower()}]{{4}}-[{ALPHABET.lower()}]{{4}}")


def _without_code(words: str, code: str) -> tuple[str, bool]:
    """The words without the code of the question, with or without its hyphen, and whether it was there."""
    pattern = r"[\s-]?".join(map(re.escape, code.casefold().split("-")))
    rest, found = re.subn(rf"(?<!\w){pattern}(?!\w)", " ", words)
    return " ".join(rest.split()), bool(found)


def _kinds(words: str) -> frozenset[str] | None:
    """What the words of a message answer, besides numbers; None when one of them belongs into no answer."""
    found: set[str] = set()
    for word in re.split(r"[\s,;+&]+", words):
        if not word or word.isdecimal():
            continue
        if (kinds := _vocabulary().get(word)) is None:
            return None
        found |= kinds
    return frozenset(found)


def _approved(numbers: Sequence[str], count: int) -> frozenset[int]:
    """The calls of these numbers, which are written from 1; none when one is no call's, or is there twice."""
    found = frozenset(int(number) - 1 for number in numbers if len(number) < 4)
    return found if len(found) == len(numbers) and found <= frozenset(range(count)) else frozenset()


def _plain(text: str) -> str:
    """A text without case, marks and dashes that look different and mean the same; multi-word answers are one word."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text)
    text = " ".join(re.sub(r"[^\w\s',;+&👍✅👎❌-]", " ", text).strip(" ',;").split())
    return _PHRASES.sub(lambda phrase: phrase[0].replace(" ", "_"), text)


@cache
def _languages() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))


_PHRASES = re.compile(r"\b(?:do it|va bene|bien sûr|per favore|her zaman|all of them)\b")
_MORE = {
    "yes": "👍 ✅ do_it va_bene d'accord bien_sûr",
    "no": "👎 ❌",
    "all": "all_of_them",
    "always": "her_zaman",
    "courtesy": "per_favore and und et y e en i и ve",
}


@cache
def _vocabulary() -> Mapping[str, frozenset[str]]:
    """Each word that may stand in an answer, in all languages, and what it answers: yes, no, all, always, or nothing.

    What is a no in one of them is nothing else in any.
    """
    found: dict[str, set[str]] = {}
    for words in (*_languages().values(), _MORE):
        for kind in ("yes", "no", "all", "always", "courtesy"):
            for word in words.get(kind, "").split():
                found.setdefault(_plain(word), set()).add(kind)
    return {word: frozenset(_what_counts(kinds)) for word, kinds in found.items()}


def _what_counts(kinds: set[str]) -> set[str]:
    if "no" in kinds:
        return {"no"}
    return kinds - {"courtesy"} or kinds


def language_of(texts: Sequence[str], accepted: str = "") -> str:
    """The language of what a user wrote, the newest text last, else the first that is `accepted` (Accept-Language).

    One short word tells nothing: then what the user wrote before is looked at too. Paths, names, code and JSON are in
    no language.
    """
    prose = [_prose(text[-500:]) for text in texts[-20:]]
    for many in (3, 20):
        if found := _language_in(" ".join(prose[-many:]).casefold()):
            return found
    return next((tag for tag in _tags(accepted) if tag in _languages()), "en")


def _prose(text: str) -> str:
    """A text, which may be the end of a longer one, without code, JSON, paths, addresses and names with a `_`."""
    text, was_found = _CODE.sub(" ", text), 1
    while was_found:
        text, was_found = _IN_BRACKETS.subn(" ", text)
    text = text[max(text.rfind("}"), text.rfind("]")) + 1 :]
    return _NO_WORD.sub(" ", re.split(r"[{\[]", text, maxsplit=1)[0])


_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`", re.DOTALL)
_IN_BRACKETS = re.compile(r"\{[^{}\[\]]*\}|\[[^{}\[\]]*\]")
_NO_WORD = re.compile(r"[!-~]*[/\\_=@][!-~]*")
"""Characters of ASCII without a space among them, one of which is in no word."""

_WORD = re.compile(r"(?<![\w.])[^\W\d]+(?:'[^\W\d]+)?(?!\w|\.\w)")
"""A word that is no part of a name like `ja.txt` or `ja0`."""


def _language_in(sample: str) -> str:
    """The language of a text by its letters, or by two common words or a longer one; empty when that is not certain."""
    for language, letters in _SCRIPTS.items():
        if len(re.findall(letters, sample)) * 3 > len(re.sub(r"\W", "", sample)) > 0:
            return language
    words = set(_WORD.findall(sample))
    hits = {
        language: sum(1 + (len(word) > 3) for word in words.intersection(own["words"].split()))
        for language, own in _languages().items()
    }
    best, second = sorted(hits, key=lambda language: hits[language], reverse=True)[:2]
    return best if hits[best] >= 2 and hits[best] > hits[second] else ""


_SCRIPTS = {
    "ja": "[\u3040-\u30ff]",
    "ko": "[\uac00-\ud7af]",
    "zh": "[\u4e00-\u9fff]",
    "ru": "[\u0400-\u04ff]",
}


def _tags(accepted: str) -> Iterator[str]:
    for part in accepted.split(","):
        yield part.split(";")[0].split("-")[0].strip().casefold()


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
