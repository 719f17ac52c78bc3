"""Tool search in one request: the tools `search_tools` and `call_tool`, behind which all that is not offered stands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from toolway.conversation.tool_calls import read_arguments
from toolway.search.ranking import SHOWN_TOOLS, Hits, fuse_with_meaning, top_hits
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, Selection, Tool, ToolCall, ToolResult, record
from toolway.wire.lenient_json import dumps, dumps_text, loads
from toolway.wire.token_estimate import MIN_BYTES_PER_TOKEN

Way = Literal["append", "call"]
"""How a found tool becomes callable: its definition joins the request's tools, or only `call_tool` runs it."""

NOTHING_FITS = "No tool fits. Try other words for what it does, or go on without it."

RankByMeaning = Callable[[str, Mapping[str, Tool]], Awaitable[Sequence[str]]]
"""The names of the tools that fit a query, the best first; as far as is known."""

CATALOGUE_CHARS = 6_000
RESULT_CHARS = 24_000
"""The most of the catalogue and of one result; a small context has less."""

_CATALOGUE_SHARE = 0.12
_RESULT_SHARE = 0.2
"""Of a context."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")

_MAX_SHOWN = 10
_MAX_QUERY = 1_000


@record
class SearchRules:
    """How tools are searched in a request. Those that one of `always` takes are offered all the same."""

    way: Way = "call"
    context: int | None = None
    """Tokens that the model can read, if that is known."""
    most_tools: int | None = None
    """Tools that the model server takes in one request, if that is known."""
    always: Selection = ()
    by_meaning: RankByMeaning | None = None
    """A second ranking, by embeddings, which is fused with that by words."""

    def of_model(self, way: Way, context: int | None) -> SearchRules:
        """The same for a model that reads so much, and is shown in this way what it finds."""
        return replace(self, way=way, context=context)

    @property
    def catalogue_chars(self) -> int:
        """How long the catalogue in the description may be."""
        return _within(CATALOGUE_CHARS, self.context, _CATALOGUE_SHARE)

    @property
    def result_chars(self) -> int:
        """How long the result of one search may be."""
        return _within(RESULT_CHARS, self.context, _RESULT_SHARE)


def _within(most: int, context: int | None, share: float) -> int:
    return most if context is None else min(most, int(context * MIN_BYTES_PER_TOKEN * share))


_kept: WeakKeyDictionary[Snapshot, dict[tuple[str, str, int], tuple[Tool, Tool]]] = WeakKeyDictionary()
"""The search and call tools for all tools of a snapshot, by their names and the room for the catalogue."""


class ToolSearch:
    """The two tools of one request, for all those `reachable`; `clients` are names that they may not have either.

    They are made once for all requests that may use everything in a `snapshot`.
    """

    def __init__(
        self,
        rules: SearchRules,
        reachable: Mapping[str, Tool],
        clients: Collection[str] = (),
        snapshot: Snapshot | None = None,
    ) -> None:
        self.rules = rules
        self.names = _free("search_tools", reachable, clients), _free("call_tool", reachable, clients)
        """Those of the two tools."""
        self._reachable = reachable
        self._kept = _kept.setdefault(snapshot, {}) if snapshot and reachable is snapshot.offered else {}

    @property
    def finder(self) -> Tool:
        """The tool that searches; its description holds the catalogue."""
        return self._both[0]

    @property
    def caller(self) -> Tool:
        """The tool that calls others."""
        return self._both[1]

    @property
    def _both(self) -> tuple[Tool, Tool]:
        finder, caller = self.names
        room = self.rules.catalogue_chars
        if (key := (finder, caller, room)) not in self._kept:
            self._kept[key] = _finder(finder, catalogue(self._reachable, room)), _caller(caller, finder)
        return self._kept[key]

    async def search(
        self, arguments: JSON, snapshot: Snapshot, reachable: Mapping[str, Tool]
    ) -> tuple[ToolResult, Sequence[str]]:
        """What the model reads of one search, and the names of the tools that it shows."""
        query, shown = str(arguments["query"])[:_MAX_QUERY], int(arguments.get("limit") or SHOWN_TOOLS)
        index = await snapshot.index()
        ranked = index.search(query, reachable)
        if self.rules.by_meaning and (meant := await self.rules.by_meaning(query, reachable)):
            ranked = fuse_with_meaning(index, query, ranked, meant)
        result = top_hits(index, ranked, reachable, min(max(shown, 1), _MAX_SHOWN))
        if not result.shown:
            text = f"No tool fits {query!r}. Try other words for what it does, or go on without it."
            return ToolResult(text=text), ()
        names, text = self._describe(result, snapshot)
        return ToolResult(text=text), names

    def _describe(self, result: Hits, snapshot: Snapshot) -> tuple[Sequence[str], str]:
        """As many definitions as there is room for, whole or short, and behind them the names of others."""
        room = self.rules.result_chars * 3 // 4
        parts: list[str] = []
        names: list[str] = []
        for number, name in enumerate(result.shown):
            definition = _function(snapshot, name)
            left = (room - sum(map(len, parts))) // (len(result.shown) - number)
            text = dumps_text(definition)
            if len(text) > left:
                text = dumps_text(first_sentences(definition))
            if len(text) > max(left, room // 3):
                text = dumps_text({"name": name, "description": str(definition.get("description", ""))[:200]})
            parts.append(text)
            names.append(name)
        how = (
            f"Call them by their names, or with {self.caller.name}."
            if self.rules.way == "append"
            else (f"Run them with {self.caller.name}: name and arguments.")
        )
        head = f"{len(names)} tool{'s'[: len(names) != 1]} found, the best first. {how}"
        return names, "\n".join([head, *parts, *_neighbours(result, self.rules.result_chars // 4)])


def inner_call(call: ToolCall) -> ToolCall:
    """The call that a call of `call_tool` stands for; any other call, and one that names no tool, is itself."""
    given = read_arguments(call.arguments) if _CALL_TOOL.fullmatch(call.name) else None
    name = next((given[key] for key in _NAMES if isinstance(given.get(key), str)), None) if given else None
    if not given or not name:
        return call
    arguments = next((given[key] for key in _ARGUMENTS if key in given), None)
    if arguments is None:
        arguments = {key: value for key, value in given.items() if key not in _NAMES}
    text = arguments if isinstance(arguments, str) else dumps_text(arguments)
    return replace(call, name=name, arguments=text or "{}")


_CALL_TOOL = re.compile(r"(?:toolway_)*call_tool")
_NAMES = ("name", "tool_name", "tool", "function")
_ARGUMENTS = ("arguments", "args", "parameters", "params", "input")
"""What models call the arguments of `call_tool`; one that writes neither writes those of the tool beside its name."""


def catalogue(tools: Mapping[str, Tool], room: int) -> str:
    """The servers, with as many names of their tools as there is room for, each server with its share."""
    by_server: defaultdict[str, list[str]] = defaultdict(list)
    for name, tool in tools.items():
        by_server[tool.server].append(name)
    heads = {server: f"{server} ({len(names)})" for server, names in sorted(by_server.items())}
    listed: dict[str, list[str]] = {}
    for server, head in heads.items():
        if room < len(head) + 30:
            break
        room -= len(head) + 8
        listed[server] = []
    for number in range(max(map(len, by_server.values()), default=0)):
        for server, shown in listed.items():
            names = by_server[server]
            if number < len(names) and len(names[number]) + 2 <= room:
                shown.append(names[number])
                room -= len(names[number]) + 2
    lines = [_line(heads[server], names, len(by_server[server])) for server, names in listed.items()]
    if more := len(heads) - len(listed):
        lines.append(f"... and {more} more server{'s'[: more != 1]}")
    return "\n".join(lines)


def _line(head: str, names: Sequence[str], count: int) -> str:
    return f"{head}: {', '.join(names)}{', ...' if len(names) < count else ''}" if names else head


def _finder(name: str, listed: str) -> Tool:
    return Tool(
        name=name,
        server="toolway",
        description=(
            "Finds tools that are not in your list, by what they do; the result has their definitions. Search in "
            "English, one step at a time, before you say that you cannot do something. The servers and tools:\n"
            + listed
        ),
        parameters={
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What the tool does, or its name", "minLength": 1},
                "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_SHOWN, "description": "How many"},
            },
            "required": ["query"],
        },
    )


def _caller(name: str, finder: str) -> Tool:
    return Tool(
        name=name,
        server="toolway",
        description=f"Runs a tool that {finder} found or named. A tool in your list is called directly.",
        parameters={
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "The exact name of the tool"},
                "arguments": {"type": "object", "description": "Its arguments, as its definition says"},
            },
            "required": ["name", "arguments"],
        },
    )


def _free(name: str, *taken: Collection[str]) -> str:
    while any(name in names for names in taken):
        name = f"toolway_{name}"
    return name


def _function(snapshot: Snapshot, name: str) -> JSON:
    definition: JSON = loads(dumps(snapshot.definition(name)))
    function: JSON = definition["function"]
    return {key: value for key, value in function.items() if key != "strict"}


def _neighbours(result: Hits, room: int) -> list[str]:
    lines: list[str] = []
    for server, names in result.neighbours.items():
        kept: list[str] = []
        for name in names:
            if (room := room - len(name) - 2) < 0:
                break
            kept.append(name)
        if kept:
            lines.append(f"{server}: {', '.join(kept)}")
    return ["Other tools, search for their names to see how they are called:", *lines] if lines else []


def first_sentences(value: Any) -> Any:
    """A definition whose descriptions are their first sentences."""
    if isinstance(value, list):
        return [first_sentences(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _SENTENCE_END.split(part.strip(), maxsplit=1)[0][:200]
        if key == "description" and isinstance(part, str)
        else first_sentences(part)
        for key, part in value.items()
    }
