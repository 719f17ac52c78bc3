"""Which of our tools go into one request, beside the client's own, and how they get in and out of its body."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from toolway.schema.definitions import define
from toolway.tools import names
from toolway.tools.catalog import Snapshot
from toolway.tools.selection import Selection, is_selected
from toolway.types import JSON, Tool


class Offer:
    """Our tools in one request, from its first round to its last.

    A name that the client uses itself is the client's; `tool_choice: "none"` offers nothing; `allowed_tools` is
    a hard filter, and so is the `selection`. A client of the old `functions` gets nothing either: servers refuse
    `tools` beside them. With nothing offered every call is the client's affair.
    With `enforce_choice` a tool that `tool_choice` names is alone in round 1, for servers that would not mind it.
    Calls of a tool that `asks` wait for somebody's approval; `approved` names tools of calls that have it, which run
    whether these tools are offered again or not.
    """

    def __init__(
        self,
        body: JSON,
        snapshot: Snapshot,
        selection: Selection = (),
        *,
        enforce_choice: bool = False,
        asks: Callable[[Tool], bool] | None = None,
        approved: Collection[str] = (),
    ) -> None:
        self.snapshot = snapshot
        self.clients = frozenset(_names_in(body.get("tools")) | _names_in(body.get("functions")))
        choice = body.get("tool_choice")
        self.tools: Mapping[str, Tool] = snapshot.offered
        if choice == "none" or body.get("functions"):
            self.tools = {}
        elif (allowed := _allowed(choice)) is not None:
            self.tools = {name: tool for name, tool in self.tools.items() if name in allowed}
        if selection:
            self.tools = {n: tool for n, tool in self.tools.items() if is_selected(n, tool, selection)}
        if self.clients and self.tools:
            self.tools = {name: tool for name, tool in self.tools.items() if name not in self.clients}
        self._asks = asks
        self._approved = {name: snapshot.offered[name] for name in approved if name in snapshot.offered}
        self._clients_tools = body.get("tools")
        self._refitted = False
        self._added: dict[str, Any] = {}
        self._enforced = named_tool(choice) if enforce_choice else None

    def is_clients(self, name: str) -> bool:
        """Whether a call of this name goes to the client unexamined."""
        return not self.tools or name in self.clients

    def must_ask(self, name: str) -> bool:
        """Whether a call of this name, one of ours, needs an approval before it runs."""
        if self._asks is None:
            return False
        tool = self.find(name)
        return tool is not None and self._asks(tool)

    def find(self, name: str) -> Tool | None:
        """The tool that a model meant by `name`, if it is clear."""
        found = names.find(name, self.tools)
        return self._approved.get(name) if found is None else self.tools[found]

    def exact_name(self, name: str) -> str:
        """`name` as the model should have written it, fit to be repeated to the model server."""
        if name in self.clients:
            return name
        return names.find(name, self.tools) or names.legal(name)

    def put_into(self, body: JSON) -> JSON:
        """The request with our tools behind the client's; the same body if there are none."""
        if not self.tools:
            return body
        if not self._clients_tools and not self._added and len(self.tools) == len(self.snapshot.offered):
            return {**body, "tools": self.snapshot.all_definitions}
        ours = [self.definition(name) for name in self.tools]
        return {**body, "tools": [*(self._clients_tools or ()), *ours]}

    def is_in(self, body: JSON) -> bool:
        """Whether tools of ours stand in this request."""
        return bool(self.tools) and "tools" in body and body["tools"] is not self._clients_tools

    def refit(self, snapshot: Snapshot) -> bool:
        """Go on with other definitions of the same tools, and without those that are no longer offered.

        False when there is nothing new in `snapshot`.
        """
        if snapshot is self.snapshot:
            return False
        self.snapshot = snapshot
        self.tools = {
            name: tool for name, tool in self.tools.items() if name in snapshot.offered or name in self._added
        }
        self._refitted = True
        return True

    def renewed(self, body: JSON) -> JSON:
        """The request with our tools as they are now; the same body while they are what they were."""
        if not self._refitted or "tools" not in body or body["tools"] is self._clients_tools:
            return body
        renewed = self.put_into(body) if self.tools else self.withdraw_from(body)
        narrowed = self._enforced is not None and body.get("tool_choice") == "required"
        return self.for_first_round(renewed) if narrowed else renewed

    def definition(self, name: str) -> Any:
        """One of our tools as it stands in the request."""
        return self._added.get(name) or self.snapshot.definition(name)

    @property
    def clients_definitions(self) -> list[Any]:
        """The client's own tools, as it sent them."""
        return list(self._clients_tools or ())

    def add(self, tool: Tool) -> bool:
        """Offer one more tool, behind all others; False if that cannot be: it is there, or the name is taken."""
        if tool.name in self.tools or tool.name in self.clients or not self.tools:
            return False
        self._added[tool.name] = define({tool.name: tool}, self.snapshot.target).fragments[tool.name]
        self.tools = {**self.tools, tool.name: tool}
        return True

    def for_first_round(self, body: JSON) -> JSON:
        """The request with the tool alone that the client's `tool_choice` names, if that must be enforced."""
        if self._enforced is None:
            return body
        theirs = [tool for tool in self._clients_tools or () if _names_in([tool]) == {self._enforced}]
        if not theirs and self._enforced in self.tools:
            theirs = [self.definition(self._enforced)]
        return {**body, "tools": theirs, "tool_choice": "required"} if theirs else body

    def withdraw_from(self, body: JSON) -> JSON:
        """The request with the client's tools alone, for the last answer."""
        if self._clients_tools:
            return {**body, "tools": self._clients_tools}
        gone = ("tools", "tool_choice", "parallel_tool_calls")
        return {key: value for key, value in body.items() if key not in gone}


def for_next_round(body: JSON) -> JSON:
    """A forced call holds for the first round only; after it the model may answer."""
    choice = body.get("tool_choice")
    if choice == "required" or (isinstance(choice, dict) and choice.get("type") != "allowed_tools"):
        return {**body, "tool_choice": "auto"}
    if isinstance(choice, dict) and isinstance(allowed := choice.get("allowed_tools"), dict):
        return {**body, "tool_choice": {**choice, "allowed_tools": {**allowed, "mode": "auto"}}}
    return body


def named_tool(choice: Any) -> str | None:
    """The name in `{"type": "function", "function": {"name"}}`."""
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _allowed(choice: Any) -> set[str] | None:
    """The names in OpenAI's `{"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}`."""
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return None
    allowed = choice.get("allowed_tools")
    return _names_in(allowed.get("tools")) if isinstance(allowed, dict) else None


def _names_in(tools: Any) -> set[str]:
    """Names in a `tools` or `functions` list of any kind of entry."""
    found: set[str] = set()
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict):
            inner = next(
                (tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), dict)), tool
            )
            if isinstance(inner.get("name"), str):
                found.add(inner["name"])
    return found
