"""What a search brings: the tools that are shown whole, and the names of those beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from toolway.search.index import ToolIndex

SHOWN = 5
"""Tools whose definitions a search brings, unless it asks for another number."""

NEIGHBOURS = 60
"""Names that it brings beside them."""

MAX_SERVERS = 8
SERVER_OFFSET = 10
"""The same as RANK_OFFSET for the ranking of servers, by the ranks of their tools."""

RANK_OFFSET = 20
"""Of reciprocal rank fusion: how little the first place is worth more than the next ones."""

MEANING = 0.1
MEANING_OF_THE_UNSAID = 1.0
"""What a place in a ranking by meaning counts against one by words, and where no tool says the words of a query."""

SAID = 0.2
"""The coverage of a query by the best tool from which its words are taken to be said."""

_RANKED = 60


@dataclass(frozen=True, kw_only=True)
class Found:
    """`shown` are names, the best first; `neighbours` those of other tools of the servers that fit, by server."""

    shown: tuple[str, ...]
    neighbours: Mapping[str, Sequence[str]]


def fused(*rankings: tuple[Sequence[str], float]) -> list[str]:
    """Several rankings, each with its weight, as one: reciprocal rank fusion."""
    scores: defaultdict[str, float] = defaultdict(float)
    for names, weight in rankings:
        for rank, name in enumerate(names, 1):
            scores[name] += weight / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda name: -scores[name])


def with_meaning(
    index: ToolIndex, query: str, by_words: Sequence[str], by_meaning: Sequence[str]
) -> list[str]:
    """Both rankings as one, in which meaning decides only where words do not."""
    is_said = bool(by_words) and index.coverage(query, by_words[0]) >= SAID
    return fused((by_words, 1.0), (by_meaning, MEANING if is_said else MEANING_OF_THE_UNSAID))


def found(
    index: ToolIndex,
    ranked: Sequence[str],
    among: Collection[str],
    shown: int = SHOWN,
    names: int = NEIGHBOURS,
) -> Found:
    """The first of a ranking whole; of several that have one name at several servers, the best alone."""
    first: dict[str, str] = {}
    for name in ranked:
        first.setdefault(index.tools[name].name, name)
    best = tuple(list(first.values())[:shown])
    neighbours: dict[str, list[str]] = {}
    room, rank = names, {name: number for number, name in enumerate(ranked)}
    for server in _servers(index, ranked):
        others = [name for name in index.of_server(server) if name in among and name not in best]
        kept = sorted(others, key=lambda name: rank.get(name, len(rank)))[:room]
        if kept:
            neighbours[server] = kept
            room -= len(kept)
    return Found(shown=best, neighbours=neighbours)


def _servers(index: ToolIndex, ranked: Sequence[str]) -> list[str]:
    """The servers that fit best, by the ranks of their tools."""
    scores: defaultdict[str, float] = defaultdict(float)
    for rank, name in enumerate(ranked[:_RANKED], 1):
        scores[index.tools[name].server] += 1 / (SERVER_OFFSET + rank)
    return sorted(scores, key=lambda server: -scores[server])[:MAX_SERVERS]
