"""What a search finds: recall at five definitions, reach with the neighbours' names, milliseconds, tokens."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import orjson
from bench.toolsearch.catalogue import catalogue, queries

from toolway.engine.tool_search import SearchRules, ToolSearch
from toolway.engine.tool_vectors import LocalEmbedder, text_of
from toolway.schema.compile import define
from toolway.search.index import ToolIndex
from toolway.search.ranking import fuse_with_meaning, nearest, top_hits
from toolway.types import Tool

Row = tuple[str, str]


Case = tuple[set[str], Sequence[str]]
"""Names of tools, and the queries of a task that should find them."""

Rank = Callable[[str], Sequence[str]]

OWN_TASKS = {
    "tasks.txt": "tasks of our own",
    "tasks-unseen.txt": "tasks of our own, written later",
    "tasks-languages.txt": "queries in other languages",
    "tasks-no-word.txt": "queries that share no word with the tool",
}


def of_public_set(folder: Path, *, with_embeddings: bool = False) -> list[Row]:
    """The tools and tasks of `folder`: one query for each step, in the words of the person who did it."""
    tools = json.loads((folder / "tools.json").read_text())["tools"]
    tasks = json.loads((folder / "tasks.json").read_text())
    index = ToolIndex.build({f"{tool['server']}/{tool['name']}": _tool(tool) for tool in tools})
    known = {tool.name for tool in index.tools.values()}
    public = [({name for name in task["tools"] if name in known}, task["steps"]) for task in tasks]
    meant = _meant(index) if with_embeddings else None
    rows: list[Row] = []
    for name, what in {"": "tasks of the public set", **OWN_TASKS}.items():
        cases = _own_tasks(name) if name else public
        rows += [
            (f"{len(index.names)} public tools, {len(cases)} {what}", ""),
            *_both_rates(index, cases, meant),
        ]
    return rows


def _meant(index: ToolIndex) -> Rank:
    """Both rankings as one: by words, and by vectors of the local model."""
    embedder = LocalEmbedder()
    tools = list(index.tools.values())
    texts = [text_of(tool) for tool in tools]
    vectors = dict(zip(index.names, anyio.run(embedder.embed, texts), strict=True))

    def rank(query: str) -> Sequence[str]:
        (vector,) = anyio.run(partial(embedder.embed, [query], is_query=True))
        return fuse_with_meaning(index, query, index.search(query), nearest(vector, vectors))

    return rank


def _own_tasks(name: str) -> list[Case]:
    text = (Path(__file__).parent / name).read_text()
    lines = [line.partition("|") for line in text.splitlines() if not line.startswith("#")]
    return [(set(tools.split()), [step.strip() for step in steps.split(";")]) for steps, _, tools in lines]


def of_own_set(*, with_embeddings: bool = False) -> list[Row]:
    """The made-up company: one query for each of its nouns, said as its tool does or in other words."""
    index = ToolIndex.build(catalogue())
    meant = _meant(index) if with_embeddings else None
    rows = []
    for in_other_words, how in ((False, "the noun of the tool"), (True, "other words for all of it")):
        asked = queries(in_other_words=in_other_words)
        cases = [({index.tools[query.tool].name}, [query.words]) for query in asked]
        rows += [
            (f"own set: {len(index.names)} tools, {len(cases)} queries, {how}", ""),
            *_both_rates(index, cases, meant),
        ]
    return rows


def of_speed(count: int = 10_000) -> list[Row]:
    """The own set again and again until there are so many tools."""
    some = catalogue()
    copies = -(-count // len(some))
    many = {
        f"{copy}/{name}": Tool(
            name=tool.name,
            server=f"{tool.server}{copy}",
            description=tool.description,
            parameters=tool.parameters,
        )
        for copy in range(copies)
        for name, tool in some.items()
    }
    many = dict(list(many.items())[:count])
    began = time.process_time()
    index = ToolIndex.build(many)
    built = time.process_time() - began
    times = []
    for query in queries(in_other_words=True):
        began = time.process_time()
        index.search(query.words)
        times.append(1000 * (time.process_time() - began))
    return [
        (f"index of {count:,} tools, s of CPU", f"{built:.2f}"),
        ("search in it, ms of CPU (median)", f"{statistics.median(times):.2f}"),
        ("search in it, ms of CPU (95 of 100)", f"{sorted(times)[int(len(times) * 0.95)]:.2f}"),
    ]


def of_tokens(count: int = 600) -> list[Row]:
    """What a conversation with one search costs, against all definitions; a quarter of a token a byte."""
    tools = dict(list(catalogue().items())[:count])
    everything = len(orjson.dumps(define(tools, "openai").all)) // 4
    search = ToolSearch(SearchRules(), tools)
    own = len(orjson.dumps(define({t.name: t for t in (search.finder, search.caller)}, "openai").all)) // 4
    return [
        (f"definitions of {count} tools, tokens", f"{everything:,}"),
        ("search_tools and call_tool, tokens", f"{own:,}"),
        ("share", f"{100 * own / everything:.1f} %"),
    ]


def _both_rates(index: ToolIndex, cases: Sequence[Case], meant: Rank | None) -> list[Row]:
    """The rates by words, and by both rankings where there are two."""
    both = _rates(index, cases, meant) if meant else ()
    return [*_rates(index, cases), *((f"{label}, with embeddings", rate) for label, rate in both)]


def _rates(index: ToolIndex, cases: Sequence[Case], rank: Rank | None = None) -> list[Row]:
    rank = rank or index.search
    everything = set(index.names)
    total = whole = reached = names = searches = 0
    for needed, words in cases:
        results = [top_hits(index, rank(query), everything) for query in words]
        shown = {index.tools[name].name for result in results for name in result.shown}
        named = {index.tools[n].name for result in results for ns in result.neighbours.values() for n in ns}
        total += len(needed)
        whole += len(needed & shown)
        reached += len(needed & (shown | named))
        names += sum(len(ns) for result in results for ns in result.neighbours.values())
        searches += len(results)
    return [
        ("recall at 5 definitions", f"{whole / total:.3f}"),
        (f"reach with {names / searches:.0f} names of neighbours", f"{reached / total:.3f}"),
    ]


def _tool(entry: dict[str, object]) -> Tool:
    return Tool(
        name=str(entry["name"]),
        server=str(entry["server"]),
        description=str(entry["description"]),
        parameters=entry["inputSchema"],  # type: ignore[arg-type]
    )
