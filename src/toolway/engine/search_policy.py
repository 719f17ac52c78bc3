"""Whether the tools of a request are searched, and how: by settings and request, and by what the model server takes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from toolway.engine.history import found_tools
from toolway.engine.model_capabilities import ModelCapabilities, Room
from toolway.engine.request_tools import RequestTools
from toolway.engine.tool_search import SearchRules, Way
from toolway.engine.tool_vectors import ToolVectors
from toolway.schema.compile import ALWAYS_FIT, need_search
from toolway.settings.profiles import SearchMode
from toolway.settings.settings import ToolSettings
from toolway.stores import Store
from toolway.types import Caller, Choice, Selection
from toolway.upstream.model_info import ModelInfo
from toolway.wire.token_estimate import BYTES_PER_TOKEN, estimate_tokens

log = logging.getLogger("toolway.search")


class KnownSearch(NamedTuple):
    """How the tools of a request are searched, if they are; `context` is that of `SearchRules`."""

    way: Way | None = None
    """None: all of them are offered."""
    context: int | None = None


NO_SEARCH = KnownSearch()


class SearchPolicy:
    """The settings for tool search, asked anew for each request."""

    def __init__(
        self, settings: ToolSettings, store: Store | None = None, vectors: ToolVectors | None = None
    ) -> None:
        self._mode: SearchMode = settings.tool_search
        self._way = settings.tool_search_way
        self._store = store
        always = settings.tool_search_always
        self._rules = SearchRules(
            way="append" if self._way == "auto" else self._way,
            always=[[Choice(patterns=always)]] if always else (),
            by_meaning=vectors.rank if vectors else None,
        )

    async def apply(
        self,
        tools: RequestTools,
        mode: SearchMode | None,
        *,
        always: Selection = (),
        capabilities: ModelCapabilities,
        most_tools: int | None,
        info: Callable[[], Awaitable[ModelInfo]],
        caller: Caller | None = None,
        messages: Sequence[Any] = (),
    ) -> None:
        """Begin the search if there must be one; tools that fit are left alone, and nobody is asked about them.

        Tools that one of `always` takes are offered too, and what the `caller` found before in this conversation, up
        to these `messages`.
        """
        mode = mode or self._mode
        if not tools.are_offered:
            return
        if mode == "off":
            await _shorten_what_cannot_fit(tools, capabilities, info)
            return
        most = capabilities.most_tools or most_tools
        rules = replace(self._rules, most_tools=most) if most else self._rules
        tools.search_rules = rules = replace(rules, always=_either(rules.always, always)) if always else rules
        if mode == "auto" and not (most and tools.count > most) and estimate_tokens(tools.size) <= ALWAYS_FIT:
            return
        known = await info()
        room = capabilities.room.context if capabilities.room else None
        contexts = [context for context in (room, known.context) if context]
        tools.search_rules = rules.of_model(
            self._chosen_way(capabilities, known), min(contexts, default=None)
        )
        if mode == "on" or tools.need_search:
            if mode == "auto" and not capabilities.searches:
                capabilities.searches = True
                _tell_why(tools, tools.search_rules)
            tools.begin_search(await self._found_before(tools, caller, messages))

    def known(
        self,
        count: int,
        size: int,
        *,
        capabilities: ModelCapabilities,
        most_tools: int | None,
        info: ModelInfo | None,
    ) -> KnownSearch | None:
        """What `apply` does with so many tools of so many bytes, as the settings say; None: that is not known.

        `info` is what is known of the model, if anything is. Of its `capabilities` the room is not looked at.
        """
        tokens, mode = estimate_tokens(size), self._mode
        most = capabilities.most_tools or most_tools
        if mode != "on" and tokens <= ALWAYS_FIT and (mode == "off" or count <= (most or count)):
            return NO_SEARCH
        if info is None:
            return None
        if mode == "off":
            return NO_SEARCH if tokens <= (info.context or tokens) else None
        if mode == "auto" and not need_search(count, tokens, info.context, most):
            return NO_SEARCH
        if mode == "auto" and not capabilities.searches:
            return None  # `apply` tells why it searches
        return KnownSearch(way=self._chosen_way(capabilities, info), context=info.context)

    def begin(self, tools: RequestTools, search: KnownSearch) -> None:
        """Begin such a search in a request for which nothing was found before."""
        tools.search_rules = self._rules.of_model(search.way or self._rules.way, search.context)
        tools.begin_search()

    async def keep(self, tools: RequestTools, caller: Caller, messages: Sequence[Any]) -> None:
        """Remember what joined this request, for the next one of the same conversation."""
        if self._store and tools.search and tools.search.rules.way == "append" and tools.found:
            await found_tools.keep(self._store, caller, messages, tools.found)

    def _chosen_way(self, capabilities: ModelCapabilities, info: ModelInfo) -> Way:
        """A list of tools that grows costs the cache of all that stands behind it in the prompt."""
        if self._way != "auto":
            return self._way
        return "call" if capabilities.caches_prompts or info.caches_prompts else "append"

    async def _found_before(
        self, tools: RequestTools, caller: Caller | None, messages: Sequence[Any]
    ) -> list[str]:
        rules = tools.search_rules
        if caller is None or self._store is None or rules is None or rules.way == "call":
            return []
        kept = await found_tools.find(self._store, caller, messages)
        return list(dict.fromkeys([*kept, *found_tools.called_in(messages)]))


async def _shorten_what_cannot_fit(
    tools: RequestTools, capabilities: ModelCapabilities, info: Callable[[], Awaitable[ModelInfo]]
) -> None:
    """Definitions that alone are longer than a context that is known are not sent to be refused."""
    if capabilities.room is None and (tokens := estimate_tokens(tools.size)) > ALWAYS_FIT:
        context = (await info()).context
        if context and tokens > context:
            capabilities.room = Room.of(context * BYTES_PER_TOKEN)


def _tell_why(tools: RequestTools, rules: SearchRules) -> None:
    """Log once for each model that its tools are searched."""
    of_what = f" of {rules.context:,}" if rules.context else ""
    most = f", and its server takes {rules.most_tools:,}" if rules.most_tools else ""
    log.warning(
        "%d tools take about %s%s tokens%s: the model searches them (TOOLWAY_TOOL_SEARCH)",
        tools.count,
        f"{estimate_tokens(tools.size):,}",
        of_what,
        most,
    )


def _either(one: Selection, other: Selection) -> Selection:
    """The tools that the one or the other takes."""
    return [[choice for choices in (*one, *other) for choice in choices]]
