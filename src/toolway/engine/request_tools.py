"""The tools of one request: ours, as its model server takes them, beside the client's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import orjson

from toolway.conversation.message import ChatRequest
from toolway.engine.tool_search import NOTHING_FITS, SearchRules, ToolSearch, first_sentences, inner_call
from toolway.schema.compile import define_alone, need_search
from toolway.tools import names
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, OnProgress, Selection, Tool, ToolCall, ToolResult, is_selected
from toolway.wire.lenient_json import dumps, loads
from toolway.wire.token_estimate import estimate_tokens

RENEWAL_WAIT = 2.0
"""Seconds in which definitions of tools that joined must be made; later they are for the next request."""

Fit = Callable[[Snapshot], Snapshot]

Run = Callable[[Tool, JSON], Awaitable[ToolResult]]
"""Runs a tool of the dialect's own, whose arguments were checked."""

Find = Callable[[str], Awaitable[str]]
"""Shows the model functions of its client that fit a query from the next round on: their definitions, or nothing."""

BESIDE_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
"""Members of a request that servers refuse when no tool stands in it."""


CHOOSE_TOOLS = frozenset({"tools", "tool_choice", "functions", "function_call"})
"""Members of a request by which a client says which tools there are, or which of them is called."""


def _unchanged(snapshot: Snapshot) -> Snapshot:
    return snapshot


class RequestTools:
    """Our tools in one request, from its first round to its last, beside the client's own.

    A name that the client uses itself is the client's; `tool_choice: "none"` offers nothing; `allowed_tools` is
    a hard filter, and so is the `selection`. A client of the old `functions` gets nothing either: servers refuse
    `tools` beside them. A call that nobody declared never reaches the client, also when none of ours is left, unless
    it cannot be known what was declared.
    `fit` makes of the tools what the model server takes. With `enforce_choice` a tool that `tool_choice` names is
    alone in round 1, for servers that would not mind it.
    With `search_rules` tools are searched in place of being offered, once `begin_search` is called: all that is
    permitted is `reachable` then, and a call of it runs.
    Calls of a tool that `asks` wait for somebody's approval; `approved` names tools of calls that have it, which run
    whether these tools are offered again or not.
    """

    search: ToolSearch | None = None
    """The search that stands for most of the tools; None when all are offered."""
    search_rules: SearchRules | None = None
    """How tools may be searched; None: not at all."""
    keeps_definitions = False
    """Whether definitions of which none may be called stand where there would be none: some model servers read no
    conversation with calls in it otherwise.
    """
    _is_withdrawn = False

    def __init__(
        self,
        request: ChatRequest,
        snapshot: Snapshot,
        selection: Selection = (),
        *,
        fit: Fit = _unchanged,
        enforce_choice: bool = False,
        asks: Callable[[Tool], bool] | None = None,
        approved: Collection[str] = (),
    ) -> None:
        self.snapshot = fit(snapshot)
        self.reachable: Mapping[str, Tool] = {}
        functions = request.options.get("functions")
        self.clients = frozenset(_names_in(request.tools) | _names_in(functions))
        self._choice = request.options.get("tool_choice")
        offered = self.snapshot.offered
        self._offers_nothing = self._choice == "none" or bool(functions)
        self._allowed = _allowed(self._choice)
        self._selection = selection
        self.tools = self._permitted(offered)
        self._fit = fit
        self._asks = asks
        self._approved = {name: offered[name] for name in approved if name in offered} if approved else {}
        self._clients_tools = request.tools
        self._joined: dict[str, None] = {}
        self._called: set[Tool] = set()
        self._added: dict[str, Any] = {}
        self._runs: dict[Tool, Run] = {}
        """How tools are run that the dialect brought."""
        self._clients_search: tuple[Tool, Find] | None = None
        self._shortened: dict[str, orjson.Fragment] = {}
        self._enforced = named_tool(self._choice) if enforce_choice else None
        self._leaves_calls_alone = bool(functions) or (
            not snapshot.sources and not all(_names_in([tool]) for tool in request.tools or ())
        )

    def _permitted(self, tools: Mapping[str, Tool]) -> Mapping[str, Tool]:
        """Those that this request may use."""
        if self._offers_nothing:
            return {}
        if (allowed := self._allowed) is not None:
            tools = {name: tool for name, tool in tools.items() if name in allowed}
        if selection := self._selection:
            tools = {name: tool for name, tool in tools.items() if is_selected(name, tool, selection)}
        if self.clients and tools:
            tools = {name: tool for name, tool in tools.items() if name not in self.clients}
        return tools

    def is_clients(self, name: str) -> bool:
        """Whether a call of this name goes to the client unexamined."""
        return name in self.clients or self._leaves_calls_alone

    def approve(self, names: Collection[str]) -> None:
        """Let calls of these tools run that were approved, whether they are offered again or not."""
        self._approved |= {
            name: self.snapshot.offered[name] for name in names if name in self.snapshot.offered
        }

    @property
    def may_ask(self) -> bool:
        """Whether there are calls that need an approval by what the client asks for."""
        return self._asks is not None

    def must_ask(self, name: str) -> bool:
        """Whether a call of this name, one of ours, needs an approval before it runs."""
        if self._asks is None:
            return False
        tool = self.find(name)
        return tool is not None and tool.name not in self._added and self._asks(tool)

    def find(self, name: str) -> Tool | None:
        """The tool that a model meant by `name`, if it is clear."""
        if (tool := self.tools.get(name)) is not None:
            return tool
        if found := names.find(name, self.tools):
            return self.tools[found]
        if self.reachable and (found := names.find(name, self.reachable)):
            return self.reachable[found]
        if (found := self._listed(name)) is not None:
            return self.tools.get(found) or self.reachable[found]
        return self._approved.get(name)

    def _listed(self, name: str) -> str | None:
        """The name under which there is the tool that is `name` for clients of /mcp: its server's stands before it."""
        found = self.snapshot.listed_name(name)
        return found if found in self.tools or found in self.reachable else None

    def is_away(self, name: str) -> bool:
        """Whether `name` means a tool of ours whose server is away now."""
        found = names.find(name, self.snapshot.tools)
        return found is not None and not self.snapshot.tools[found].available

    def exact_name(self, name: str) -> str:
        """`name` as the model should have written it, fit to be repeated to the model server."""
        if name in self.tools or name in self.clients:
            return name
        found = names.find(name, self.tools) or names.find(name, self.reachable) or self._listed(name)
        return found or names.legal(name)

    def put_into(self, request: ChatRequest) -> ChatRequest:
        """The request with the tools, and the choice among them, of the round that comes next.

        Where there are none, nothing that only stands beside tools is left: servers refuse it.
        """
        if tools := self._tools_of_round():
            request = request.with_tools(tools)
            is_same = request.options.get("tool_choice") in (None, self._choice)
            return request if is_same else request.with_options(tool_choice=self._choice)
        if self._leaves_calls_alone:
            return request
        if self.keeps_definitions and (stubs := _stubs(request.messages)):
            kept = self._definitions() if self.tools else stubs
            return request.with_tools(kept).with_options(tool_choice="none")
        return request.without(*BESIDE_TOOLS)

    def _tools_of_round(self) -> Any:
        if self._is_withdrawn or not self.tools:
            return self._clients_tools
        return (self._enforced and self._enforced_definition()) or self._definitions()

    def _definitions(self) -> Any:
        is_changed = self._clients_tools or self._added or self._joined or self._shortened
        if not is_changed and len(self.tools) == len(self.snapshot.offered):
            return self.snapshot.all_definitions
        return [*(self._clients_tools or ()), *(self.definition(name) for name in self.tools)]

    def _enforced_definition(self) -> list[Any]:
        """The tool that the client's `tool_choice` names, to be alone in the request, if that must be enforced."""
        name = self._enforced
        if name is None:
            return []
        found = [tool for tool in self._clients_tools or () if _names_in([tool]) == {name}]
        if not found and name in self.tools:
            found = [self.definition(name)]
        if found:
            self._choice = "required"
        return found

    @property
    def are_offered(self) -> bool:
        """Whether tools of ours stand in the request of this round."""
        return bool(self.tools) and not self._is_withdrawn

    def begin_next_round(self) -> None:
        """A forced call holds for the first round only; after it the model may answer."""
        self._enforced = None
        choice = self._choice
        if choice == "required" or (isinstance(choice, dict) and choice.get("type") != "allowed_tools"):
            self._choice = "auto"
        elif isinstance(choice, dict) and isinstance(allowed := choice.get("allowed_tools"), dict):
            self._choice = {**choice, "allowed_tools": {**allowed, "mode": "auto"}}

    def withdraw(self) -> None:
        """From now on the client's tools stand alone, for the last answer."""
        self._is_withdrawn = True

    def may_keep_definitions(self, request: ChatRequest) -> bool:
        """Whether `keeps_definitions` makes a difference for the round under way."""
        return not self._leaves_calls_alone and not self._tools_of_round() and bool(_stubs(request.messages))

    def refit(self) -> bool:
        """Go on with the definitions that the model server takes by now, without the tools that it refuses.

        False when nothing has changed.
        """
        snapshot = self._fit(self.snapshot)
        if snapshot is self.snapshot:
            return False
        self.snapshot = snapshot
        self._keep_offered()
        if not self.tools:
            self.withdraw()
        return True

    def _keep_offered(self) -> None:
        if self.search:
            self.reachable = self._permitted(self.snapshot.offered)
        offered = {name: self.snapshot.offered.get(name, tool) for name, tool in self.tools.items()}
        self.tools = {
            name: tool
            for name, tool in offered.items()
            if name in self.snapshot.offered or name in self._added
        }

    async def renew(self, calls: Iterable[ToolCall]) -> None:
        """After these calls, go on with the tools that their servers have now, if those said that they changed.

        New ones join behind all others, so that the prompt keeps its beginning; those that went are offered no more.
        """
        called = {tool: call.name for call in calls if (tool := self.find(call.name))}
        self._called.update(called)
        if self.search and self.search.rules.way == "append":
            self.join(name for name in called.values() if name in self.reachable)
        if not (changed := self.snapshot.changed(self._called)):
            return
        before = self.snapshot.tools
        with anyio.move_on_after(RENEWAL_WAIT):
            self.snapshot = self._fit(await self.snapshot.renewed(changed))
            self._keep_offered()
            self.join(name for name in self.snapshot.offered if name not in before)

    def join(self, names: Iterable[str]) -> list[str]:
        """Offer these tools of the snapshot too, behind all others, as far as this request may use them; which are."""
        offered = self.snapshot.offered
        asked = {name: offered[name] for name in names if name in offered and name not in self.tools}
        new = self._permitted(asked)
        self._joined |= dict.fromkeys(new)
        self.tools = {**self.tools, **new}
        return list(new)

    @property
    def need_search(self) -> bool:
        """Whether these tools are more than the model can read beside a conversation, or its server takes."""
        rules = self.search_rules
        if rules is None or self.search or not self.are_offered:
            return False
        return need_search(self.count, estimate_tokens(self.size), rules.context, rules.most_tools)

    @property
    def size(self) -> int:
        """The bytes of the definitions of our tools."""
        sizes = self.snapshot.sizes
        if len(self.tools) == len(sizes):
            return self.snapshot.size
        return sum(sizes.get(name, 0) for name in self.tools)

    def begin_search(self, found: Iterable[str] = (), context: int | None = None) -> None:
        """Offer the search in place of the tools, and those that are always offered or were `found` before.

        `context` are the tokens that the model can read, if that is known better than the rules say.
        """
        if (rules := self.search_rules) is None or self.search or not self.are_offered:
            return
        brought = {name: tool for name, tool in self.tools.items() if tool in self._runs}
        self._leave_out(brought)
        self.reachable = self.tools
        rules = replace(rules, context=context or rules.context)
        self.search = ToolSearch(rules, self.reachable, self.clients, self.snapshot)
        always, choice = rules.always, named_tool(self._choice)
        named = self.reachable.keys() & {choice}
        self.tools = (
            {
                name: tool
                for name, tool in self.reachable.items()
                if name in named or is_selected(name, tool, always)
            }
            if always
            else {name: self.reachable[name] for name in named}
        )
        self._is_withdrawn = False
        for tool in (self.search.finder, self.search.caller):
            self._define_own(tool)
        self.tools = {**self.tools, **brought}
        if self._clients_search:
            self._leave_out([self._clients_search[0].name])
        self.join(found)

    def resolve(self, call: ToolCall) -> ToolCall:
        """The call that is meant: of a call through `call_tool` the one that it holds."""
        tool = self.find(call.name)
        if tool is not None and (self.search is None or tool is not self.search.caller):
            return call
        inner = inner_call(replace(call, name=tool.name) if tool else call)
        return call if self.is_clients(inner.name) else inner

    @property
    def search_name(self) -> str:
        """The name of the search that stands for most of our tools, if there is one."""
        return self.search.names[0] if self.search else ""

    def is_search(self, tool: Tool) -> bool:
        """Whether it is one of the two tools by which others are found and called."""
        return self.search is not None and tool in (self.search.finder, self.search.caller)

    async def run(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one of these tools, or the search, whose arguments were checked."""
        if run := self._runs.get(tool):
            return await run(tool, arguments)
        if self.search is None or not self.is_search(tool):
            return await self.snapshot.run(tool, arguments, on_progress)
        if tool is self.search.caller:
            shown = await self._find_clients(str(arguments.get("name", "")))
            text = f"{tool.name} runs no tool of that name; call it directly"
            return ToolResult(text=f"{text}:\n{shown}" if shown else text, is_error=True)
        result, names = await self.search.search(arguments, self.snapshot, self.reachable)
        if self.search.rules.way == "append":
            self.join(names)
        if shown := await self._find_clients(str(arguments["query"])):
            text = f"Found, and called by name, not with {self.search.caller.name}:\n{shown}"
            return ToolResult(text=f"{result.text}\n{text}" if names else text)
        if not names and (others := [other.name for other in self._runs if other.name in self.tools]):
            return ToolResult(text=f"{result.text} Some are found by {' and '.join(others)} alone.")
        return result

    async def _find_clients(self, query: str) -> str:
        return await self._clients_search[1](query) if self._clients_search else ""

    @property
    def found(self) -> list[str]:
        """The names of the tools that joined this request, in their order."""
        return [name for name in self._joined if name in self.tools]

    def definition(self, name: str) -> Any:
        """One of our tools as it stands in the request."""
        return self._shortened.get(name) or self._added.get(name) or self.snapshot.definition(name)

    @property
    def count(self) -> int:
        """How many tools stand in the request of this round."""
        return len(self._clients_tools or ()) + (len(self.tools) if self.are_offered else 0)

    def keep_first(self, most: int) -> list[str]:
        """Have at most so many tools in a request: the client's, then ours by rank. The names left out."""
        room = max(0, most - len(self._clients_tools or ()))
        return self._leave_out(self._by_rank()[room:])

    def _by_rank(self) -> list[str]:
        """Our tools, those first that this request needs most: what joined it was wanted."""
        first = {**self._added, **self._joined}
        return [*(name for name in first if name in self.tools), *(n for n in self.tools if n not in first)]

    def shorten(self, excess: int, *, keep: int = 0) -> list[str] | None:
        """Take about so many bytes out of our definitions, but `keep` so many; None when there is nothing to take.

        Descriptions give way first, those of the largest definitions before others: of each its first sentence stays.
        Then tools are left out, the last ones first; their names are returned.
        """
        removed, sizes = 0, {name: len(dumps(self.definition(name))) for name in self.tools}
        excess = min(excess, sum(sizes.values()) - keep)
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            if removed < excess and name not in self._shortened:
                short = dumps(first_sentences(loads(dumps(self.definition(name)))))
                self._shortened[name] = orjson.Fragment(short)
                removed += sizes[name] - len(short)
                sizes[name] = len(short)
        left: list[str] = []
        for name in reversed(self._by_rank()):
            if removed < excess:
                left.append(name)
                removed += sizes[name]
        self._leave_out(left)
        return left if removed > 0 else None

    def _leave_out(self, left: Collection[str]) -> list[str]:
        if not left:
            return []
        self.tools = {name: tool for name, tool in self.tools.items() if name not in left}
        return list(left)

    @property
    def clients_definitions(self) -> list[Any]:
        """The client's own tools, as it sent them."""
        return list(self._clients_tools or ())

    def add(self, tool: Tool) -> bool:
        """Offer one more tool, behind all others; False if that cannot be: it is there, or the name is taken."""
        if tool.name in self.tools or tool.name in self.clients or not self.are_offered:
            return False
        self._define_own(tool)
        return True

    def hold_back(self, names: Collection[str]) -> None:
        """Offer these tools only when they `join`; where all are searched anyway, they are found there."""
        if not self.search:
            self._leave_out(names)

    def bring(self, tool: Tool, run: Run) -> None:
        """Offer a tool that the dialect runs."""
        self._define_own(tool)
        self._runs[tool] = run

    def bring_search(self, tool: Tool, find: Find) -> None:
        """Offer a search of the client's functions; where our tools are searched, that search finds them too."""
        self._clients_search = tool, find

        async def run(_: Tool, arguments: JSON) -> ToolResult:
            return ToolResult(text=await find(str(arguments["query"])) or NOTHING_FITS)

        if not self.search:
            self.bring(tool, run)

    def join_clients(self, functions: Sequence[JSON]) -> None:
        """Show the model more of the client's own tools from the next round on."""
        self._clients_tools = [*(self._clients_tools or ()), *functions]
        self.clients |= _names_in(functions)

    def know_clients(self, names: Iterable[str]) -> None:
        """A call of one of these is the client's too, though the model does not see them; no tool of ours has it."""
        new = self.clients.union(names) - self.clients
        self.clients |= new
        self._leave_out(new & self.tools.keys())
        if hidden := new & self.reachable.keys():
            self.reachable = {name: tool for name, tool in self.reachable.items() if name not in hidden}

    def _define_own(self, tool: Tool) -> None:
        self._added[tool.name] = define_alone(tool, self.snapshot.target)
        self.tools = {**self.tools, tool.name: tool}


def _stubs(messages: Sequence[Any]) -> list[JSON]:
    """Definitions of the tools that were called in a conversation, of which nothing but the names is known."""
    found: dict[str, JSON] = {}
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            name = function.get("name") if isinstance(function, dict) else None
            if isinstance(name, str):
                parameters = {"type": "object", "properties": {}}
                definition = {"name": name, "description": "Not available now.", "parameters": parameters}
                found[name] = {"type": "function", "function": definition}
    return list(found.values())


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
    if not tools or not isinstance(tools, list):
        return found
    for tool in tools:
        if isinstance(tool, dict):
            inner = next(
                (tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), dict)), tool
            )
            if isinstance(inner.get("name"), str):
                found.add(inner["name"])
    return found
