"""Tool search for MCP clients: a profile's tools behind `search_tools` and `call_tool`, in place of a long list."""

from __future__ import annotations

from collections.abc import Mapping

from toolway.engine.tool_search import SearchRules, ToolSearch, inner_call
from toolway.tools.direct import DirectTools
from toolway.tools.invoke import Gate, invoke
from toolway.types import JSON, OnProgress, Selection, Tool, ToolCall, ToolResult

SEARCH_TIMEOUT = 30.0
"""Seconds that a search may take; it takes longer than milliseconds while the index is made."""


class DirectSearch:
    """The search over what a caller may use. Any tool can still be called by its name."""

    def __init__(self, direct: DirectTools) -> None:
        self._direct = direct

    def tools(self, found: Mapping[str, Tool]) -> Mapping[str, Tool]:
        """What is listed in place of these tools."""
        search = _search_of(found)
        return {tool.name: tool for tool in (search.caller, search.finder)}

    async def call(
        self,
        name: str,
        arguments: str,
        selection: Selection,
        *,
        gate: Gate | None,
        on_progress: OnProgress | None = None,
    ) -> ToolResult | None:
        """The result of a search, or of the tool that is meant; None: there is no such tool for this caller."""
        found = await self._direct.tools(selection)
        search, call = _search_of(found), ToolCall(id="", name=name, arguments=arguments)
        finder, caller = search.names
        if name == finder:
            with self._direct.catalog.use() as snapshot:
                offered = {known: tool for known, tool in found.items() if known in snapshot.offered}

                async def run(_: Tool, asked: JSON, __: OnProgress | None = None) -> ToolResult:
                    return (await search.search(asked, snapshot, offered))[0]

                return await invoke(call, search.finder, run, tool_timeout=SEARCH_TIMEOUT)
        meant = inner_call(call) if name == caller else call
        if meant is call and name == caller:
            text = 'call_tool wants {"name": the name of a tool, "arguments": {...}}'
            return ToolResult(text=text, is_error=True)
        result = await self._direct.call(
            meant.name, meant.arguments, selection, gate=gate, on_progress=on_progress
        )
        if result is None and meant is not call:
            text = f"there is no tool named {meant.name[:100]!r}; {finder} finds those that there are"
            return ToolResult(text=text, is_error=True)
        return result


def _search_of(found: Mapping[str, Tool]) -> ToolSearch:
    return ToolSearch(SearchRules(way="call"), found)
