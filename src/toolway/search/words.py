"""Text -> the stems by which it is found: names split, endings taken off, Chinese read as English; what is related."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files

_WORD = re.compile(
    r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+"
    r"|[^\W\d_A-Za-z\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]+"
)
_TOKEN = re.compile(r"[^\W_]+")
_IDEOGRAPHS = 0x3040
"""From here on words are not divided by spaces: two characters at a time are one."""

_STOP_WORDS = frozenset(
    "a an and are as at be by can do does each for from had has have how i if in into is it its me my no not of on or"
    " our per please such than that the their them then there these they this those to too use used using via was we"
    " were what when where which who will with you your some any other etc let".split()
)

_URL = re.compile(r"\b(?:https?://|www\.)\S+")
_PATH = re.compile(r"(?<![\w/])(?:~|\.{1,2}|[A-Za-z]:)?(?:[/\\][\w.+-]+)+|\b[\w-]+\.[a-z]{1,4}[0-9]?\b")
_FORMATS: Mapping[str, str] = {
    extension: meaning
    for extensions, meaning in {
        "md txt log ini toml yaml yml json xml bib": "text file",
        "csv tsv": "csv table file",
        "xls xlsx ods": "excel spreadsheet file",
        "doc docx odt rtf": "word document file",
        "ppt pptx odp": "powerpoint presentation file",
        "pdf": "pdf file",
        "png jpg jpeg gif webp svg bmp tiff": "image file",
        "mp4 mov avi mkv webm": "video file",
        "mp3 wav flac ogg m4a": "audio file",
        "zip tar gz 7z rar": "archive file",
        "py js ts c h cpp java go rs rb sh html css": "code file",
        "db sqlite sql": "database file",
    }.items()
    for extension in extensions.split()
}
_SUFFIXES = tuple(
    {
        "ization": "iz",
        "ational": "at",
        "ation": "at",
        "ition": "it",
        "ction": "ct",
        "ator": "at",
        "ment": "",
        "ness": "",
        "ful": "",
        "ally": "al",
        "ly": "",
    }.items()
)
_UNINFLECTED = frozenset({"news", "always", "series", "species", "lens", "https", "aws", "ios"})
_VOWEL = re.compile(r"[aeiouy]")


def words(text: str, most: int = 400) -> list[str]:
    """The stems of a text in their order, at most so many: `getUser_names` -> `get`, `user`, `nam`."""
    tokens = _TOKEN.findall(text[: most * 20])
    return [found for token in tokens for found in _stems_of(token)][:most]


@lru_cache(maxsize=100_000)
def _stems_of(token: str) -> tuple[str, ...]:
    """The stems of what stands between spaces and signs; none of a word that says nothing."""
    found: list[str] = []
    for word in _WORD.findall(token[:100]):
        if ord(word[0]) >= _IDEOGRAPHS:
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
            found += _in_english(word)
        elif (lower := word.lower()) not in _STOP_WORDS:
            found.append(stem(lower))
    return tuple(found)


def query_words(query: str) -> list[str]:
    """The stems of what somebody looks for; a path or a URL counts as the kind of thing that it names."""
    found = words(_PATH.sub(_kind_of_file, _URL.sub(" url website ", query)), 40)
    return [word for word in found if word not in _SAYS_NOTHING_IN_A_QUERY] or found


def _kind_of_file(match: re.Match[str]) -> str:
    name = match[0]
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    if extension in _FORMATS:
        return f" {_FORMATS[extension]} "
    return " file path " if name[0] in "/~\\" or name[1:2] == ":" else name


def stem(word: str) -> str:
    """An English word in lower case without its endings; the same for most forms of one word."""
    if len(word) < 4 or word in _UNINFLECTED or not word.isascii():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y" if len(word) > 4 else word[:-1]
    elif word.endswith(("sses", "xes", "ches", "shes", "zes")):
        word = word[:-2]
    elif word[-1] == "s" and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    word = _without_suffix(_without_ending(word))
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word[-1] == "y" else word


def _without_ending(word: str) -> str:
    for ending in ("ing", "ed"):
        bare = word.removesuffix(ending)
        if bare != word and len(bare) >= 3 and _VOWEL.search(bare):
            return bare[:-1] if bare[-1] == bare[-2] and bare[-1] not in "lsz" else bare
    return word


def _without_suffix(word: str) -> str:
    for suffix, kept in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix) + kept
    return word


def _in_english(text: str) -> list[str]:
    """What the known words of a Chinese text mean; of two that overlap the longer, else the first."""
    meanings, longest = _chinese()
    found: list[str] = []
    at = 0
    while at < len(text):
        for end in range(min(at + longest, len(text)), at, -1):
            if text[at:end] in meanings:
                found += meanings[text[at:end]]
                break
        else:
            end = at + 1
        at = end
    return found


@cache
def _chinese() -> tuple[Mapping[str, Sequence[str]], int]:
    """The English stems of Chinese words, and the length of the longest of these."""
    meanings: dict[str, Sequence[str]] = {}
    for line in _lines("chinese.txt"):
        chinese, _, english = line.partition(":")
        meanings |= dict.fromkeys(chinese.split(), tuple(map(stem, english.split())))
    return meanings, max(map(len, meanings))


def _lines(name: str) -> list[str]:
    """The lines of a list beside this module, without comments."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


_SAYS_NOTHING_IN_A_QUERY = frozenset(
    map(
        stem,
        "related relevant regarding concerning based according help want need proper multiple various several different"
        " specific more most also only just".split(),
    )
)
"""Stems that tell something in the name of a tool alone; how many are meant, as `all`, is not among them."""


@cache
def _thesaurus() -> Mapping[str, frozenset[str]]:
    related: dict[str, set[str]] = defaultdict(set)
    for line in _lines("thesaurus.txt"):
        group = [stem(word) for word in line.split()]
        for word in group:
            related[word].update(group)
    return {word: frozenset(group - {word}) for word, group in related.items()}


def related(word: str) -> frozenset[str]:
    """Stems that can mean the same as this one in the name or description of a tool."""
    return _thesaurus().get(word, frozenset())
