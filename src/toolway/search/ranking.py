"""Rankings of tools: by meaning, several as one, and what a search brings of one: some tools whole, more names."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from toolway.search.index import ToolIndex

SHOWN_TOOLS = 5
"""Tools whose definitions a search brings, unless it asks for another number."""

NEIGHBOURS = 60
"""Names that it brings beside them."""

MAX_SERVERS = 8
SERVER_OFFSET = 10
"""The same as RANK_OFFSET for the ranking of servers, by the ranks of their tools."""

RANK_OFFSET = 20
"""Of reciprocal rank fusion: how little the first place is worth more than the next ones."""

MEANING_WEIGHT = 0.1
MEANING_WEIGHT_ALONE = 1.0
"""What a place in a ranking by meaning counts against one by words, and where no tool says the words of a query."""

MIN_COVERAGE = 0.2
"""The coverage of a query by the best tool from which its words are taken to be said."""

_RANKED = 60

MAX_COMPARED = 300
"""Vectors that are compared number by number; of more these are the ones whose signs agree most."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """`shown` are names, the best first; `neighbours` those of other tools of the servers that fit, by server."""

    shown: tuple[str, ...]
    neighbours: Mapping[str, Sequence[str]]


def fuse(*rankings: tuple[Sequence[str], float]) -> list[str]:
    """Several rankings, each with its weight, as one: reciprocal rank fusion."""
    scores: defaultdict[str, float] = defaultdict(float)
    for names, weight in rankings:
        for rank, name in enumerate(names, 1):
            scores[name] += weight / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda name: -scores[name])


def fuse_with_meaning(
    index: ToolIndex, query: str, by_words: Sequence[str], by_meaning: Sequence[str]
) -> list[str]:
    """Both rankings as one, in which meaning decides only where words do not."""
    is_covered = bool(by_words) and index.coverage(query, by_words[0]) >= MIN_COVERAGE
    return fuse((by_words, 1.0), (by_meaning, MEANING_WEIGHT if is_covered else MEANING_WEIGHT_ALONE))


def top_hits(
    index: ToolIndex,
    ranked: Sequence[str],
    among: Collection[str],
    shown: int = SHOWN_TOOLS,
) -> Hits:
    """The first of a ranking whole; of several that have one name at several servers, the best alone."""
    first: dict[str, str] = {}
    for name in ranked:
        first.setdefault(index.tools[name].name, name)
    best = tuple(list(first.values())[:shown])
    neighbours: dict[str, list[str]] = {}
    room, rank = NEIGHBOURS, {name: number for number, name in enumerate(ranked)}
    for server in _servers(index, ranked):
        others = [name for name in index.of_server(server) if name in among and name not in best]
        kept = sorted(others, key=lambda name: rank.get(name, len(rank)))[:room]
        if kept:
            neighbours[server] = kept
            room -= len(kept)
    return Hits(shown=best, neighbours=neighbours)


def _servers(index: ToolIndex, ranked: Sequence[str]) -> list[str]:
    """The servers that fit best, by the ranks of their tools."""
    scores: defaultdict[str, float] = defaultdict(float)
    for rank, name in enumerate(ranked[:_RANKED], 1):
        scores[index.tools[name].server] += 1 / (SERVER_OFFSET + rank)
    return sorted(scores, key=lambda server: -scores[server])[:MAX_SERVERS]


class Vector:
    """A vector of length 1. Raises ValueError for numbers that make none."""

    __slots__ = ("signs", "values")

    def __init__(self, values: Sequence[float]) -> None:
        length = math.hypot(*values)
        if not values or not math.isfinite(length) or not length:
            raise ValueError("these numbers make no vector")
        self.values = array("f", [value / length for value in values])
        self.signs = int("".join("1" if value > 0 else "0" for value in values), 2)

    def similarity(self, other: Vector) -> float:
        """The cosine of the angle between two vectors of as many dimensions."""
        return float(sum(map(mul, self.values, other.values)))


def nearest(query: Vector, vectors: Mapping[str, Vector], most: int = 60) -> list[str]:
    """The names of the vectors nearest to `query`, the nearest first; those of other dimensions are passed over."""
    known = {name: v for name, v in vectors.items() if len(v.values) == len(query.values)}
    names = sorted(known, key=lambda name: ((known[name].signs ^ query.signs).bit_count(), name))[
        :MAX_COMPARED
    ]
    return sorted(names, key=lambda name: (-query.similarity(known[name]), name))[:most]
