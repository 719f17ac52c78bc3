"""A BM25 index of tools: server, name, description and parameters, each field with its weight."""

from __future__ import annotations

import heapq
import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from toolway.search.words import query_words, related, words
from toolway.types import Tool

WEIGHTS = {"name": 3.0, "server": 1.0, "summary": 0.5, "description": 0.7, "parameters": 0.4, "about": 0.3}
LENGTHS = {"name": 3, "server": 2, "summary": 10, "description": 30, "parameters": 5, "about": 25}
"""Words that a field has on average. Fixed, so that what is known of one tool does not depend on the others."""

SATURATION = 1.2
LENGTH_NORM = 0.3
"""BM25's k1 and b."""

RELATED = 0.4
"""What a word that can mean the same counts, against the word itself."""

TELLING = 0.1
FEW = 10
"""Of all tools, and how many always; a word of more tells nothing where it only can mean what was asked for."""

NAME_COVERED = 1.5
"""What is added for a name all of whose words are asked for."""

ENOUGH = 1000
"""Tools that say the rarest words of a query: who says only its common ones is not looked at then."""

CANDIDATES = 100
"""Tools whose names are looked at."""

MAX_REMEMBERED = 1_000_000
"""Entries of postings that are kept for words that were asked for: 8 bytes each."""

_MAX_PROPERTIES = 200
"""Properties that are read of one schema."""

_TermWeights = tuple[dict[str, float], frozenset[str]]
_known: WeakKeyDictionary[Tool, _TermWeights] = WeakKeyDictionary()


class ToolIndex:
    """The tools `named`, searchable by words. Made by `build` or step by step; it never changes."""

    def __init__(self, named: Mapping[str, Tool]) -> None:
        self.tools = dict(named)
        self.names = list(self.tools)
        self._postings: dict[str, tuple[array[int], array[float]]] = {}
        self._name_stems: list[frozenset[str]] = []
        self._concepts: dict[str, tuple[array[int], array[float]]] = {}
        self._room = MAX_REMEMBERED
        self._servers: defaultdict[str, list[str]] = defaultdict(list)

    @classmethod
    def build(cls, named: Mapping[str, Tool]) -> ToolIndex:
        """The index, made at once."""
        steps = cls.build_in_steps(named)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                made: ToolIndex = end.value
                return made

    @classmethod
    def build_in_steps(cls, named: Mapping[str, Tool]) -> Generator[None, None, ToolIndex]:
        """The index, made in steps of well under a millisecond; what is known of a tool is not made again."""
        index = cls(named)
        postings: defaultdict[str, tuple[array[int], array[float]]] = defaultdict(
            lambda: (array("I"), array("f"))
        )
        for number, tool in enumerate(index.tools.values()):
            weights, stems = _weights_of(tool)
            index._name_stems.append(stems)
            for word, weight in weights.items():
                numbers, found = postings[word]
                numbers.append(number)
                found.append(weight)
            yield
        index._postings = dict(postings)
        return index

    def of_server(self, server: str) -> Sequence[str]:
        """The names of the tools of one server."""
        if not self._servers:
            for name, tool in self.tools.items():
                self._servers[tool.server].append(name)
        return self._servers.get(server, ())

    def search(self, query: str, among: Collection[str] | None = None, most: int = 60) -> list[str]:
        """The names of the tools that fit a query, the best first; only those `among`, if that is given."""
        stems = list(dict.fromkeys(query_words(query)))
        concepts = sorted((self._concept(word) for word in stems), key=lambda concept: len(concept[0]))
        scores = [0.0] * len(self.names)
        seen: set[int] = set()
        for numbers, weights in concepts:
            for number, weight in zip(numbers, weights, strict=True):
                scores[number] += weight
            if len(seen) < ENOUGH:
                seen.update(numbers if among is None else (n for n in numbers if self.names[n] in among))
        found = heapq.nlargest(max(most, CANDIDATES), seen, key=scores.__getitem__)
        asked = frozenset(stems)
        final = {number: scores[number] + self._bonus(number, asked) for number in found}
        ranked = sorted(found, key=lambda number: (-final[number], self.names[number]))
        return [self.names[number] for number in ranked[:most]]

    def coverage(self, query: str, name: str) -> float:
        """How much of a query a tool says, from 0 to 1; a word counts as it is rare.

        A word that no tool says counts half of the rarest: it may be a name.
        """
        number, matched, whole = self.names.index(name), 0.0, 0.0
        for word in dict.fromkeys(query_words(query)):
            numbers, weights = self._concept(word)
            matched += weights[numbers.index(number)] if number in numbers else 0.0
            whole += self._rarity(word) if numbers else self._rarity(word) / 2
        return matched / whole if whole else 0.0

    def _concept(self, word: str) -> tuple[array[int], array[float]]:
        """The tools that say a word, or one that can mean the same, and what each gets for it."""
        if word not in self._concepts:
            best: dict[int, float] = {}
            meant = word if word in self._postings or related(word) else self._correct(word)
            most = max(FEW, len(self.names) * TELLING)
            for other in (meant, *sorted(related(meant))):
                numbers, weights = self._postings.get(other, _NOTHING)
                if other != meant and len(numbers) > most:
                    continue
                share = self._rarity(other) * (1.0 if other == meant else RELATED)
                for number, weight in zip(numbers, weights, strict=True):
                    if (score := share * weight) > best.get(number, 0.0):
                        best[number] = score
            self._room -= len(best)
            if self._room < 0:
                self._concepts.clear()
                self._room = MAX_REMEMBERED
            self._concepts[word] = array("I", best), array("f", best.values())
        return self._concepts[word]

    def _correct(self, word: str) -> str:
        """The word of some tool that an unknown one is a misspelling of, or itself."""
        if len(word) < 5 or not word.isalpha():
            return word
        letters = set(word)
        same = [
            w
            for w in self._postings
            if w[0] == word[0] and abs(len(w) - len(word)) <= 2 and len(letters.symmetric_difference(w)) <= 3
        ]
        return next(iter(get_close_matches(word, same, n=1, cutoff=0.8)), word)

    def _rarity(self, word: str) -> float:
        """BM25's inverse document frequency."""
        count = len(self._postings.get(word, _NOTHING)[0])
        return math.log(1 + (len(self.names) - count + 0.5) / (count + 0.5))

    def _bonus(self, number: int, asked: frozenset[str]) -> float:
        whole = covered = 0.0
        for word in self._name_stems[number]:
            rarity = self._rarity(word)
            whole += rarity
            if word in asked:
                covered += rarity
            elif not asked.isdisjoint(related(word)):
                covered += RELATED * rarity
        return NAME_COVERED * covered / whole if whole else 0.0


_NOTHING: tuple[array[int], array[float]] = (array("I"), array("f"))


def _weights_of(tool: Tool) -> _TermWeights:
    """What each word of a tool counts, saturated, and the words of its name."""
    if (known := _known.get(tool)) is None:
        name = words(tool.name, 30)
        counts: defaultdict[str, float] = defaultdict(float)
        for field, stems in _fields(tool, name):
            each = WEIGHTS[field] / (1 - LENGTH_NORM + LENGTH_NORM * len(stems) / LENGTHS[field])
            for word in stems:
                counts[word] += each
        weights = {word: count / (SATURATION + count) for word, count in counts.items()}
        known = _known[tool] = (weights, frozenset(name))
    return known


def _fields(tool: Tool, name: list[str]) -> Iterator[tuple[str, list[str]]]:
    description = tool.description.strip()
    names, texts = _properties(tool.parameters)
    yield "name", name
    yield "server", words(tool.server, 10)
    summary = description.partition("\n")[0].partition(". ")[0]
    first = words(summary, 60)
    yield "summary", first
    yield "description", first + words(description[len(summary) :])
    yield "parameters", words(" ".join(names), 100)
    yield "about", words(" ".join(texts), 200)


def _properties(schema: Any) -> tuple[list[str], list[str]]:
    """The names of the properties in a schema, and what is said of them; of a large one those at its top."""
    names: list[str] = []
    texts: list[str] = []
    level = [schema]
    while level and len(names) < _MAX_PROPERTIES:
        below: list[Any] = []
        for node in level:
            properties = node.get("properties") if isinstance(node, dict) else None
            if not isinstance(properties, dict):
                continue
            names += map(str, islice(properties, _MAX_PROPERTIES))
            for value in islice(properties.values(), _MAX_PROPERTIES):
                if isinstance(value, dict):
                    texts.append(str(value.get("description") or "")[:500])
                    if "enum" in value:
                        texts.append(str(value["enum"])[:500])
                    below += value, value.get("items")
        level = below[:_MAX_PROPERTIES]
    return names, texts
