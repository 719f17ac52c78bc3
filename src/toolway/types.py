"""The nouns that every other module shares: tools, calls, results, and the contract of a tool source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, dataclass_transform

_C = TypeVar("_C")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[_C]) -> type[_C]:
    """A keyword-only dataclass for a value that each request makes: frozen for the type checker alone.

    `frozen=True` triples what it costs to make one, and a request makes some thirty.
    """
    return dataclass(kw_only=True, unsafe_hash=True)(cls)


Header = tuple[bytes, bytes]
"""A header of HTTP as it stands in ASGI; our own names are lower case."""

JSON_TYPE: Header = (b"content-type", b"application/json")

JSON = dict[str, Any]
"""A JSON object from outside. It stays a dict, so that fields nobody here knows survive."""

State = Literal["starting", "ready", "failed", "needs auth", "stopped"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tool:
    """One tool of one server, under the name that its server gives it.

    `parameters` is a JSON Schema (2020-12) of type object; `handle` belongs to the source that made the
    tool and means nothing to anybody else. Tools are compared by identity: a refreshed list holds new ones.
    """

    name: str
    server: str
    description: str
    parameters: JSON
    available: bool = True
    timeout: float | None = None
    """Seconds one call may take; None: the setting for all tools."""
    annotations: JSON = field(default_factory=dict)
    """MCP's hints (`readOnlyHint`, `destructiveHint`, ...): what the server claims of the tool, and no proof."""
    extra: JSON = field(default_factory=dict)
    """What else MCP tells of a tool, in its words: title, outputSchema, icons, _meta."""
    path: tuple[str, ...] = ()
    """The names of the Toolways that it came through."""
    handle: Any = None


@record
class ToolCall:
    """A call as the model wrote it: `arguments` is the text between the quotes, whatever it holds.

    `extra` holds the members of the call that are nobody's here (Gemini's `extra_content`) and go back with it.
    """

    id: str
    name: str
    arguments: str
    extra: JSON = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in a tool's result; `data` is base64."""

    media_type: str
    data: str


Failure = Literal["tool", "arguments", "timeout", "denied"]
"""Why a result is an error: the tool says so or is away, it was called wrongly, it took too long, it may not run."""


@record
class ToolResult:
    """What the model reads after a call. A tool's trouble is a result with `is_error`, never an exception."""

    text: str
    is_error: bool = False
    images: tuple[Image, ...] = ()
    failure: Failure = "tool"
    """Of a result with `is_error`: whose fault it is."""
    rpc_error: JSON | None = field(default=None, compare=False, repr=False)
    """The error of JSON-RPC (`code`, `message`, `data`) with which an MCP server answered the call."""
    raw: Callable[[], JSON] | None = field(default=None, compare=False, repr=False)
    """Makes MCP's CallToolResult as its server wrote it (content, structuredContent, _meta); None: it wrote none."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a call under way; `total` is None when the tool does not know it."""

    progress: float
    total: float | None = None
    message: str | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class CallClient:
    """What the client that waits for a call can do meanwhile for the server that runs it, in MCP's words."""

    offers: JSON
    """Its capabilities `elicitation`, `sampling` and `roots`, those that it has."""
    ask: Callable[[JSON], Awaitable[JSON]]
    """Puts requests of the server to it, `{key: {"method", "params"}}`; its results by these keys, perhaps not all.

    Raises `ClientRequestFailed`.
    """
    log: Callable[[JSON], None]
    """Hands it the params of a `notifications/message`."""
    log_level: str | None = None
    """The least severe level that it wants to hear; None: it did not ask."""


class ClientRequestFailed(Exception):
    """The client of a call does not do what the server asks of it; the text says why."""


call_client: ContextVar[CallClient | None] = ContextVar("call_client", default=None)
"""The client of the call under way in this task; None: a model's calls have none that could be asked."""


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """What a source offers now, and how it fares. `error_at` is Unix time in seconds.

    A source that was ready and is lost keeps its last good tools here, with `available` False.
    """

    state: State = "starting"
    tools: tuple[Tool, ...] = ()
    protocol: str | None = None
    """What the server speaks, for people: "OpenAPI 3.1.0", "MCP 2025-11-25"."""
    offers: frozenset[str] = frozenset()
    """What it has besides tools, of MCP's capabilities: "prompts", "resources", "completions"."""
    context_changes: int = 0
    """How often it said that its prompts or resources changed."""
    announced: int = 0
    """How often `tools` changed because the server itself said so."""
    error: str | None = None
    error_at: float | None = None
    error_stage: str | None = None
    """Where it failed: "connect", "fetch", "parse", "initialize", "list tools", ..."""
    warnings: tuple[str, ...] = ()
    """What was left out or changed, one sentence each."""

    @property
    def is_untried(self) -> bool:
        """Whether nobody knows yet what this source is; one that is being restarted is known."""
        return self.state == "starting" and self.error is None

    @property
    def is_usable(self) -> bool:
        """Whether its tools can be called; a server that is started when it is called, is."""
        return self.state == "ready" or (self.state == "stopped" and not self.error)


STOPPED = "it was stopped in the console, whose page of this server starts it again"
"""Why nothing can be called of a source that was ended and is still configured."""


def last_error(status: SourceStatus) -> str:
    """The newest error of a source for people: when, in which stage, what; empty when there was none."""
    if status.error is None:
        return ""
    when = f"{datetime.fromtimestamp(status.error_at):%H:%M:%S}, " if status.error_at is not None else ""
    return f"{when}{status.error_stage or status.state}: {status.error}"


class ToolSource(Protocol):
    """One configured server. `tests/unit/tools/test_source_contract.py` holds every kind to these promises."""

    label: str
    """Its name in listings, logs and prefixes; unique among the configured sources."""
    kind: str

    @property
    def status(self) -> SourceStatus:
        """The newest status; reading it costs nothing."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Be this source until cancelled: connect, list, watch, reconnect with backoff.

        Calls `changed()` after each new status. Never raises for a server's fault. When cancelled, everything
        that it opened is closed before it returns.
        """

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run one of this source's tools. The caller checked the arguments and holds the deadline.

        Any failure is a `ToolResult` with `is_error`; the only exception is cancellation, on which the
        server is told (where its protocol can) and nothing is left open.
        """


class ContextSource(ToolSource, Protocol):
    """A source whose status `offers` something besides tools."""

    async def request(self, method: str, params: JSON) -> JSON:
        """The result of a request of MCP about prompts or resources; a list comes whole, whatever its pages.

        Raises:
            SourceError: The server cannot be reached, or refuses; then with the `rpc_code` that it gave.
        """


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Tools that match one of `patterns`, or the tools `names` (None: all) of the server `server`."""

    patterns: tuple[str, ...] = ()
    server: str | None = None
    names: frozenset[str] | None = None
    excluded: tuple[str, ...] = ()
    """Patterns of tools that it does not take, whatever else it says."""

    def takes(self, name: str, tool: Tool) -> bool:
        """Whether the tool that models see as `name` is among them."""
        if self.server is not None:
            return tool.server == self.server and (
                self.names is None or name in self.names or tool.name in self.names
            )
        return _matches(name, tool, self.patterns) and not _matches(name, tool, self.excluded)


def _matches(name: str, tool: Tool, patterns: Sequence[str]) -> bool:
    full = f"{tool.server}.{tool.name}"
    return any(fnmatchcase(name, pattern) or fnmatchcase(full, pattern) for pattern in patterns)


Selection = Sequence[Sequence[Choice]]
"""All that narrow the offer: a tool must be taken by one choice of each. Nothing in it narrows nothing."""


def is_selected(name: str, tool: Tool, selection: Selection) -> bool:
    """Whether a tool passes each part of the selection."""
    return all(any(choice.takes(name, tool) for choice in choices) for choices in selection)


def may_select(server: str, selection: Selection) -> bool:
    """Whether a server whose tools nobody knows yet may have some that pass."""
    return all(any(_may_take(choice, server) for choice in choices) for choices in selection)


def _may_take(choice: Choice, server: str) -> bool:
    if choice.server is not None:
        return choice.server == server
    # What ends with * and takes the beginning that all its tools have takes all of them.
    if any(pattern.endswith("*") and fnmatchcase(f"{server}.", pattern) for pattern in choice.excluded):
        return False
    return any(fnmatchcase(server, pattern.partition(".")[0]) for pattern in choice.patterns)


class Quota(NamedTuple):
    """How much all who share an `account` may use in so many seconds; 0 of them means: at the same time."""

    account: str
    unit: Literal["requests", "tool_calls", "tokens"]
    most: int
    seconds: int = 0


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who a key or a token stands for, and what may be done with it; what is left out is not narrowed."""

    id: str = ""
    """Under what is kept for it; the same after a key was rotated."""
    name: str = ""
    group: str = ""
    routes: frozenset[str] | None = None
    """The families of routes that it may ask."""
    selection: Selection = ()
    """Which tools there are for it."""
    models: Sequence[Sequence[str]] = ()
    """Patterns of models: one of each must match the name of a model that it may use."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Limits of the loop, by their names in the settings, that are lower than those."""
    quotas: Sequence[Quota] = ()
    tool_search: Literal["auto", "on", "off"] | None = None
    """Whether its tools are searched; None: as the settings say."""

    @cached_property
    def request_rates(self) -> Sequence[Quota]:
        """By what a request is judged when it begins."""
        found = [quota for quota in self.quotas if quota.seconds and quota.unit != "tool_calls"]
        return sorted(found, key=lambda quota: quota.unit, reverse=True)  # that for tokens is told first

    @cached_property
    def request_places(self) -> Sequence[Quota]:
        """How many requests may be under way."""
        return [quota for quota in self.quotas if quota.unit == "requests" and not quota.seconds]

    @cached_property
    def call_rates(self) -> Sequence[Quota]:
        """By what a call of a tool is judged."""
        return [quota for quota in self.quotas if quota.unit == "tool_calls" and quota.seconds]

    @cached_property
    def call_places(self) -> Sequence[Quota]:
        """How many calls of tools may be under way."""
        return [quota for quota in self.quotas if quota.unit == "tool_calls" and not quota.seconds]

    @cached_property
    def token_quotas(self) -> Sequence[Quota]:
        """From what tokens are taken."""
        return [quota for quota in self.quotas if quota.unit == "tokens"]

    def may_use_model(self, name: object) -> bool:
        """Whether it may ask for a model of this name; who may not use each must name one."""
        return all(
            isinstance(name, str) and any(fnmatchcase(name, pattern) for pattern in patterns)
            for patterns in self.models
        )


ANYBODY = Principal()
"""Whoever sends a request where no keys are configured."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sent a request. What is kept under `id` for one caller is never shown to another."""

    id: str
    """A digest of the credentials that came with the request."""
    name: str = ""
    """The name of the key, or of the person; empty when no keys are configured."""
    headers: Sequence[Header] = ()
    """What goes along to the model server."""
    retry_id: str = ""
    """Whose repeated requests are one and the same; without a credential that is one connection at most."""
    is_known: bool = True
    """Whether a credential came with the request; without one everybody has the same `id`."""
    option_headers: Sequence[Header] = ()
    """The headers X-Toolway-*, by which it asks something of Toolway itself."""
    query: bytes = b""
    """The query of the request's URL, which goes along too."""
    selection: Selection = ()
    """Which tools there are for this caller; no others exist for it, in no list, error or search."""
    principal: Principal = ANYBODY
    """Whose key or token came with the request; it has what else this caller may do."""

    @property
    def client(self) -> str:
        """What the program that sent the request says that it is, 80 characters of it at most."""
        agent = next((value for name, value in self.headers if name == b"user-agent"), b"")
        return agent[:80].decode("latin-1")
