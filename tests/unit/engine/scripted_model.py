"""A model that follows a script and tools that are functions, for the loop without any HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from toolway.conversation.events import Emit, Event, EventStream, Outcome
from toolway.conversation.message import ChatRequest, Message
from toolway.engine.limits import Limits, LoopLimits
from toolway.engine.loop import Loop, run_tool_loop
from toolway.engine.request_tools import RequestTools
from toolway.engine.tool_results import Budget, ResultRules, ToolResults
from toolway.stores import Store
from toolway.stores.memory import MemoryEntries
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolCall, ToolResult
from toolway.upstream.model_info import ModelInfo

BUDGET = Budget(result=1000, round=100_000)
UNKNOWN = ModelInfo()

Behaviour = Callable[[JSON], Awaitable[ToolResult]]


class InMemorySource:
    """A tool source whose tools are Python functions."""

    kind = "memory"

    def __init__(self, label: str = "memory", /, **tools: Behaviour) -> None:
        self.label = label
        self._tools = tools
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        self.status = SourceStatus(
            state="ready",
            tools=tuple(
                Tool(name=name, server=label, description=f"does {name}", parameters=schema) for name in tools
            ),
        )

    async def run(self, changed: Callable[[], None]) -> None:
        changed()

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        return await self._tools[tool.name](arguments)


async def echo(arguments: JSON) -> ToolResult:
    return ToolResult(text=f"echo {orjson.dumps(arguments).decode()}")


def call(name: str = "echo", arguments: str = '{"city": "Paris"}', id: str = "call_1") -> ToolCall:
    return ToolCall(id=id, name=name, arguments=arguments)


def says(text: str | None = None, *calls: ToolCall, finish: str = "stop", **said: Any) -> Message:
    content = {} if text is None else {"content": text}
    return Message(fields={"role": "assistant", **content, **said}, tool_calls=calls, finish_reason=finish)


class ScriptedModel:
    """The messages of a model, in order; `requests` are the bodies that it was asked with."""

    def __init__(self, *messages: Message, forever: bool = False) -> None:
        self._messages = list(messages)
        self._forever = forever
        self.requests: list[JSON] = []

    async def answer(self, request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]) -> Message:
        self.requests.append(orjson.loads(orjson.dumps(request.body())))
        return self._messages[0] if self._forever else self._messages.pop(0)


async def run_loop(
    model: ScriptedModel,
    *sources: InMemorySource,
    max_rounds: int = 10,
    max_calls: int = 100,
    max_seconds: float = 60.0,
    max_repeats: int = 100,
    max_similar: int = 100,
    tool_timeout: float = 30.0,
    relays_progress: bool = False,
    budget: Budget = BUDGET,
    info: ModelInfo = UNKNOWN,
    sees: bool | None = None,
    keeps: bool = True,
    store: Store | None = None,
    enforce_choice: bool = False,
    event_stream: EventStream | None = None,
    **body: Any,
) -> tuple[Outcome, list[Any]]:
    """Run the loop over a script; the outcome and the events."""
    events: list[Any] = []
    stream = event_stream or EventStream()

    async def deliver(event: Event) -> None:
        events.append(event)

    stream.deliver = deliver

    async def ask() -> ModelInfo:
        return info

    limits = Limits(
        max_rounds=max_rounds,
        max_calls=max_calls,
        max_seconds=max_seconds,
        max_repeats=max_repeats,
        max_similar=max_similar,
    )
    rules = ResultRules(most=budget, keeps=keeps, sees=sees, max_image_bytes=1000)
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body}
    request = ChatRequest.of(body)
    snapshot = Snapshot(sources or (InMemorySource(echo=echo),))
    loop = Loop(
        tools=RequestTools(request, snapshot, enforce_choice=enforce_choice),
        limits=LoopLimits(limits),
        results=ToolResults(rules=rules, store=store or Store(MemoryEntries()), owner="me", ask=ask),
        events=stream,
        tool_timeout=tool_timeout,
        relays_progress=relays_progress,
    )
    return await run_tool_loop(request, call_model=model.answer, loop=loop), events
