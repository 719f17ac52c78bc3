"""The languages in which people are asked, and which of them a user writes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path


@cache
def languages() -> Mapping[str, Mapping[str, str]]:
    """The words of questions and of answers in each language that is known, by its tag."""
    return tomllib.loads(Path(__file__).with_name("approval_questions.toml").read_text(encoding="utf-8"))


def language_of(texts: Sequence[str], accepted: str = "") -> str:
    """The language of what a user wrote, the newest text last, else the first that is `accepted` (Accept-Language).

    One short word tells nothing: then what the user wrote before is looked at too. Paths, names, code and JSON are in
    no language.
    """
    prose = [_prose(text[-500:]) for text in texts[-20:]]
    for many in (3, 20):
        if found := _language_in(" ".join(prose[-many:]).casefold()):
            return found
    return next((tag for tag in _tags(accepted) if tag in languages()), "en")


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
        for language, own in languages().items()
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
