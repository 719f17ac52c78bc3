"""Deferred functions of a chat client: out of the model's sight until it finds them by a search of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolway.api.deferred_tools import DeferredTools, search_tool, searchable
from toolway.conversation.message import ChatRequest
from toolway.engine.conversation import Conversation
from toolway.engine.history import found_tools
from toolway.engine.request_tools import named_tool
from toolway.stores import EntryKind, Store
from toolway.types import JSON
from toolway.wire.lenient_json import dumps_text

FOUND = EntryKind("found functions", list[str])

_SEARCH = "tool_search"
_DEFER = "defer_loading"


def without_deferred(request: ChatRequest) -> tuple[ChatRequest, Mapping[str, JSON]]:
    """A request without the functions that have `defer_loading: true`, and these by name, as the model may see them.

    What stands beside them to have them searched, as OpenAI's `{"type": "tool_search"}`, is left out too.
    """
    deferred = {name: tool for tool in request.tools or () if (name := _deferred_name(tool))}
    if not deferred:
        return request, {}
    shown = [tool for tool in request.tools if not (_deferred_name(tool) or _is_search(tool))]
    return request.with_tools(shown) if shown else request.without("tools"), {
        name: _without_mark(tool) for name, tool in deferred.items()
    }


async def offer_deferred(conversation: Conversation, store: Store) -> None:
    """Let the model search the deferred functions of a conversation; those that it found before are there.

    Where tools of ours are searched, one search finds both. A call of one that it did not look up is the client's all
    the same.
    """
    tools, chat, owner = conversation.tools, conversation.chat, conversation.caller
    deferred = conversation.request.deferred
    choice = chat.options.get("tool_choice")
    if choice == "none":
        return
    known = [
        *await found_tools.find(store, owner, chat.messages, kind=FOUND),
        *found_tools.called_in(chat.messages),
        named_tool(choice) or "",
    ]
    loaded: dict[str, None] = {}

    def load(names: Sequence[str]) -> None:
        new = [name for name in names if name not in loaded]
        loaded.update(dict.fromkeys(new))
        tools.join_clients([deferred[name] for name in new])

    load([name for name in dict.fromkeys(known) if name in deferred])
    hidden = {name: searchable(tool["function"]) for name, tool in deferred.items() if name not in loaded}
    if not hidden:
        return
    searched = DeferredTools(
        hidden, load, lambda names: "\n".join(dumps_text(deferred[n]["function"]) for n in names)
    )

    async def find(query: str) -> str:
        text = await searched.find(query)
        await found_tools.keep(store, owner, chat.messages, list(loaded), kind=FOUND)
        return text

    name = _SEARCH
    while name in tools.tools or name in tools.clients:
        name = f"toolway_{name}"
    tools.bring_search(search_tool(name), find)


def _deferred_name(tool: Any) -> str | None:
    """The name of a deferred function; the mark stands beside it, or in it."""
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not (tool.get(_DEFER) is True or function.get(_DEFER) is True):
        return None
    name = function.get("name")
    return name if isinstance(name, str) else None


def _is_search(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind.rpartition(":")[2] == _SEARCH


def _without_mark(tool: JSON) -> JSON:
    function = {key: value for key, value in tool["function"].items() if key != _DEFER}
    return {**{key: value for key, value in tool.items() if key != _DEFER}, "function": function}
