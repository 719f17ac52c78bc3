"""OpenAI's tool search: deferred functions that the model sees once a search, ours or the client's, has found them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolway.api.responses.items.request import ClientTool, ResponseRequest, as_function, tool_as_shown
from toolway.types import JSON
from toolway.wire.lenient_json import dumps_text, loads

NAME = "tool_search"

_QUERY: JSON = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What the tool does, in words"}},
    "required": ["query"],
}
_ABOUT = "Finds tools that are not in your list, by what they do; from then on they can be called."


@dataclass(frozen=True, kw_only=True)
class Search:
    """The tool search of a request: by which `name` the model calls it, and whether its client runs it."""

    name: str
    is_clients: bool

    @classmethod
    def of(cls, request: ResponseRequest, taken: Collection[str]) -> Search | None:
        """The search that a request declares, under a name that no tool has."""
        if (entry := request.search) is None:
            return None
        name = NAME
        while name in taken or name in request.client_tools:
            name = f"toolway_{name}"
        return cls(name=name, is_clients=entry.get("execution") == "client")

    def hide(self, request: ResponseRequest, body: JSON, loaded: Mapping[str, JSON]) -> tuple[JSON, JSON]:
        """The chat body without the functions that were not found yet, and these by name.

        What was `loaded` stands behind all others, in its order, so that the prompt keeps its beginning.
        """
        functions = {tool["function"]["name"]: tool for tool in body.get("tools", ())}
        choice = body.get("tool_choice")
        named = choice["function"]["name"] if isinstance(choice, dict) and "function" in choice else None
        hidden = {name: functions[name] for name in request.deferred & functions.keys() - {*loaded, named}}
        shown = [tool for name, tool in functions.items() if name not in hidden and name not in loaded]
        tools = [*shown, *(functions.get(name, tool) for name, tool in loaded.items())]
        if self.is_clients and choice != "none":
            entry = request.search or {}
            about, parameters = entry.get("description") or _ABOUT, entry.get("parameters") or _QUERY
            function = {"name": self.name, "description": about, "parameters": parameters}
            tools.append({"type": "function", "function": function})
        rest = {key: value for key, value in body.items() if key != "tools"}
        return ({**rest, "tools": tools} if tools else rest), hidden

    def declared_in(self, request: ResponseRequest) -> ResponseRequest:
        """The request in which the search is one of the client's tools, if the client runs it."""
        if not self.is_clients:
            return request
        own = ClientTool(name=self.name, is_search=True)
        return replace(request, client_tools={**request.client_tools, self.name: own})

    def loaded_in(self, messages: Sequence[Any]) -> dict[str, JSON]:
        """The functions that searches found in a conversation, by name."""
        calls = {
            call["id"]
            for message in messages
            for call in message.get("tool_calls") or ()
            if call["function"]["name"] == self.name
        }
        texts = [m["content"] for m in messages if m["role"] == "tool" and m["tool_call_id"] in calls]
        found = [_function(line) for text in texts if isinstance(text, str) for line in text.splitlines()]
        return {
            function["name"]: {"type": "function", "function": function} for function in found if function
        }


def found_text(tools: Sequence[JSON], name_of: Callable[[str, Any], str]) -> str:
    """What the model reads of tools that were found: a function a line; `name_of(name, namespace)` is what it calls."""
    lines = []
    for tool in tools:
        space = tool["name"] if tool.get("type") == "namespace" else None
        for each in tool["tools"] if space else [tool]:
            if each.get("type") in ("function", "custom"):
                function = as_function(each, name_of(each["name"], space))["function"]
                lines.append(dumps_text({key: value for key, value in function.items() if key != "strict"}))
    return "\n".join(lines) or "No tool fits. Try other words for what it does, or go on without it."


def declarations(request: ResponseRequest, found: Sequence[str]) -> list[JSON]:
    """The client's declarations of the tools that were found, by the names that the model calls them by."""
    wanted = [request.client_tools[name] for name in found if name in request.client_tools]
    spaces = list(dict.fromkeys(own.namespace for own in wanted))
    shown: list[JSON] = []
    for space in spaces:
        names = [own.name for own in wanted if own.namespace == space]
        entry = next((t for t in request.tools if t["type"] == "namespace" and t["name"] == space), None)
        known = {t["name"]: t for t in (entry["tools"] if entry else request.tools) if "name" in t}
        inner = [known[name] for name in names]
        shown += [tool_as_shown({**entry, "tools": inner})] if entry else map(tool_as_shown, inner)
    return shown


def _function(line: str) -> JSON | None:
    try:
        function = loads(line.encode())
    except ValueError:
        return None
    return function if isinstance(function, dict) and isinstance(function.get("name"), str) else None
