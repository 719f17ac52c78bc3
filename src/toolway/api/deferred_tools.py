"""Deferred tools of one request: out of the model's sight until a search that the dialect knows finds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from toolway.engine.tool_search import NOTHING_FITS
from toolway.search.index import ToolIndex
from toolway.tools.catalog import in_slices
from toolway.types import JSON, Tool, ToolResult

SERVER = "toolway"
"""The server that the tools by which others are searched belong to."""

MAX_FOUND = 5

_ALTERNATIVE = re.compile(r"\|")
_WORD = re.compile(r"\w+")


class DeferredTools:
    """Searchable `tools` by the names that the model calls them by.

    `load` shows the model some of them from the next round on; `text` is what it reads of them in the result.
    `others` is the name of the search that finds what this one does not, if there is one.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        load: Callable[[Sequence[str]], None],
        text: Callable[[Sequence[str]], str],
        others: str = "",
    ) -> None:
        self._tools = tools
        self._load = load
        self._text = text
        self._others = others
        self._found: dict[str, Sequence[str]] = {}
        self._index: ToolIndex | None = None

    async def by_words(self, _: Tool, arguments: JSON) -> ToolResult:
        """Run the search by words."""
        return self._result(await self.find(str(arguments["query"])))

    async def find(self, query: str) -> str:
        """Load those that fit by their words (BM25): what the model reads of them, or nothing.

        Their index is made by the first search: most requests search nothing.
        """
        if self._index is None:
            await in_slices(self._build())
        assert self._index is not None  # noqa: S101 - just made
        return self._loaded(self._index.search(query[:1000], self._tools.keys()))

    async def by_pattern(self, _: Tool, arguments: JSON) -> ToolResult:
        """Run the search by a pattern, of which the words count, in their order: a model's pattern may never end."""
        wanted = [_WORD.findall(part.lower()) for part in _ALTERNATIVE.split(str(arguments["pattern"])[:200])]
        texts = {name: f"{name} {tool.description}".lower() for name, tool in self._tools.items()}
        return self._result(
            self._loaded([n for n, text in texts.items() if any(_holds(text, words) for words in wanted)])
        )

    def found(self, result: ToolResult) -> Sequence[str]:
        """The names of the tools that a result shows."""
        return self._found.get(result.text, ())

    def _build(self) -> Iterator[None]:
        self._index = yield from ToolIndex.build_in_steps(self._tools)

    def _loaded(self, names: Sequence[str]) -> str:
        names = list(names)[:MAX_FOUND]
        if not names:
            return ""
        self._load(names)
        text = self._text(names)
        self._found[text] = names
        return text

    def _result(self, text: str) -> ToolResult:
        others = f" Some are found by {self._others} alone." if self._others else ""
        return ToolResult(text=text or NOTHING_FITS + others)


def search_tool(name: str, *, by_pattern: bool = False) -> Tool:
    """The tool by which the model searches, by words or by a pattern of words."""
    member, about = (
        ("pattern", "Words of a name or description, as a regular expression")
        if by_pattern
        else ("query", "What the tool does, in words")
    )
    return Tool(
        name=name,
        server=SERVER,
        description="Finds tools that are not in your list, by what they do; from then on they can be called.",
        parameters={
            "type": "object",
            "properties": {member: {"type": "string", "minLength": 1, "description": about}},
            "required": [member],
        },
    )


def searchable(function: JSON, schema: str = "parameters") -> Tool:
    """What a search reads of a client's function, whose arguments are described in its member `schema`."""
    description, parameters = function.get("description"), function.get(schema)
    return Tool(
        name=function["name"],
        server="",
        description=description if isinstance(description, str) else "",
        parameters=parameters if isinstance(parameters, dict) else {},
    )


def _holds(text: str, words: Sequence[str]) -> bool:
    """Whether these words stand in a text, in this order."""
    position = 0
    for word in words:
        position = text.find(word, position)
        if position < 0:
            return False
        position += len(word)
    return bool(words)
