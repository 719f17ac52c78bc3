"""A user's reply to the question whether calls may run: what is an answer, in any language, and what is none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from toolway.access.approval_question import ALPHABET
from toolway.access.language import languages


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
    for words in (*languages().values(), _MORE):
        for kind in ("yes", "no", "all", "always", "courtesy"):
            for word in words.get(kind, "").split():
                found.setdefault(_plain(word), set()).add(kind)
    return {word: frozenset(_what_counts(kinds)) for word, kinds in found.items()}


def _what_counts(kinds: set[str]) -> set[str]:
    if "no" in kinds:
        return {"no"}
    return kinds - {"courtesy"} or kinds
