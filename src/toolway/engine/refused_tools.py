"""Tools that the model server refuses: found by bisection, left out, and the model call is repeated without them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace

import anyio

from toolway.conversation.events import Emit, EventStream, emit_to_nobody
from toolway.conversation.message import ChatRequest, Message
from toolway.engine.model_target import ModelTarget
from toolway.engine.request_tools import RequestTools
from toolway.errors import UpstreamError, UpstreamStatus
from toolway.upstream.model_call import IsClients, ModelCall
from toolway.upstream.refusals import is_of_own_output, is_overflow, most_tools

_ABOUT_TOOLS = re.compile(
    r"grammar|schema|function|\btools?\b|parameters|propert(y|ies)|\bpattern\b|generate parser", re.IGNORECASE
)
_ABOUT_SOMETHING_ELSE = re.compile(
    r"context|too (long|many tokens)|max_?tokens|rate.?limit|quota|billing|overloaded|"
    r"tool[ _-]?calls?\b|tool_call_id|tool_choice|role|response_format|"
    r"(does not|doesn't|not) support (tool|function)|no such model|model .{0,80}not (found|exist)|api.?key",
    re.IGNORECASE,
)
_STATUSES = frozenset({400, 422, 500})

Refuses = Callable[[Sequence[str]], Awaitable[bool]]
"""Whether the model server refuses a request that holds just these tools of ours."""


def is_about_tools(error: UpstreamError) -> bool:
    """Whether a refusal can be the fault of a tool's definition: by its status and its words."""
    if isinstance(error, UpstreamStatus):
        text = error.body.decode(errors="replace")
        if error.status not in _STATUSES:
            return False
    else:
        text = error.message
        if type(error) is not UpstreamError or (error.code or "").startswith("upstream_"):
            return False
    if is_of_own_output(error) or is_overflow(error):
        return False
    return bool(_ABOUT_TOOLS.search(text)) and not _ABOUT_SOMETHING_ELSE.search(text)


def suspects(error: UpstreamError, names: Sequence[str]) -> list[str]:
    """The tools that a refusal names, or counts: "Invalid schema for function 'x'", "tools[3]"."""
    text = error.body.decode(errors="replace") if isinstance(error, UpstreamStatus) else error.message
    words = set(re.findall(r"[A-Za-z0-9_-]+", text))
    return [name for name in names if name in words and len(name) > 3]


def most_probes(count: int) -> int:
    """How often `find_culprits` asks at most."""
    return 2 * math.ceil(math.log2(max(count, 2))) + 6


async def find_culprits(names: Sequence[str], refuses: Refuses, suspected: Collection[str] = ()) -> list[str]:
    """The tools without which the rest is taken, each proven alone; those found so far when asking gets too much.

    `refuses(())` is asked first: what is refused without any of ours is not ours to mend.
    """
    search = _Bisection(refuses, most_probes(len(names)))
    try:
        return await search.run(list(names), [name for name in names if name in suspected])
    except _NoProbesLeft:
        return search.found


class _NoProbesLeft(Exception):
    pass


class _Bisection:
    def __init__(self, refuses: Refuses, probes: int) -> None:
        self.found: list[str] = []
        self._refuses = refuses
        self._left = probes

    async def run(self, names: list[str], suspected: list[str]) -> list[str]:
        if await self._ask([]):
            return []
        for name in suspected[:2]:
            if await self._ask([name]):
                self.found.append(name)
        rest = [name for name in names if name not in self.found]
        while rest and (not self.found or await self._ask(rest)):
            culprit = await self._bisect(rest)
            if culprit is None:
                break
            self.found.append(culprit)
            rest.remove(culprit)
        return self.found

    async def _bisect(self, names: list[str]) -> str | None:
        """One culprit among names that are refused together; None when they are taken one by one."""
        proven = False
        while len(names) > 1:
            half = names[: len(names) // 2]
            proven = await self._ask(half)
            names = half if proven else names[len(half) :]
        return names[0] if proven or await self._ask(names) else None

    async def _ask(self, names: Sequence[str]) -> bool:
        if not self._left:
            raise _NoProbesLeft
        self._left -= 1
        return await self._refuses(names)


log = logging.getLogger("toolway.backend")

SEARCH_SECONDS = 60.0
"""A refusal comes at once; a request that is accepted costs the reading of its prompt."""
ATTEMPTS = 3
"""Repeats of one model call; each needs another reason than the one before."""

_HARMLESS = {
    "type": "function",
    "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}},
}
_ANSWER_OPTIONS = ("stream", "stream_options", "n", "response_format", "logprobs", "top_logprobs")


def without_refused_tools(
    call_model: ModelCall,
    *,
    tools: RequestTools,
    target: ModelTarget,
    probe: Callable[[], ModelCall],
    events: EventStream,
) -> ModelCall:
    """`call_model`, repeated without tools that the model server refuses, as long as the client has seen nothing.

    `probe` makes such a call for a whole answer. The client's own tools stay: when they are the fault, the refusal is
    raised as it came.
    """

    async def ask(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
        for _ in range(ATTEMPTS):
            try:
                return await call_model(request, emit, is_clients)
            except UpstreamError as error:
                if isinstance(error, UpstreamStatus):
                    target.learn_from(error.headers)
                is_count = most_tools(error, tools.count) is not None
                if events.saw_text or not tools.are_offered or is_count or not is_about_tools(error):
                    raise
                if not await _leave_out(error, request, tools, target, probe()):
                    raise
            request = tools.put_into(request)
        return await call_model(request, emit, is_clients)

    return ask


async def _leave_out(
    error: UpstreamError, request: ChatRequest, tools: RequestTools, target: ModelTarget, probe: ModelCall
) -> bool:
    """Make the tools ones that the model server may take; False when nothing was found that could be changed."""
    async with target.searching:
        if tools.refit():
            return True  # another request found it meanwhile, or the server has just said what it is
        if target.is_hopeless(tools.snapshot, _reason(error)):
            return False
        culprits = await _search(error, request, tools, probe)
        for name in culprits:
            target.bar(name, tools.tools[name], _reason(error))
        if not culprits:
            target.give_up(tools.snapshot, _reason(error))
            log.warning("the model server refuses the tools, but none of them alone: %s", _reason(error))
        return tools.refit()


async def _search(
    error: UpstreamError, request: ChatRequest, tools: RequestTools, probe: ModelCall
) -> list[str]:
    names = [name for name in tools.tools if name in tools.snapshot.offered]

    async def refuses(some: Sequence[str]) -> bool:
        try:
            await probe(_probe_request(request, tools, some), emit_to_nobody, _everything)
        except UpstreamError as refusal:
            if is_about_tools(refusal):
                return True
            raise
        return False

    with anyio.move_on_after(SEARCH_SECONDS):
        try:
            return await find_culprits(names, refuses, suspects(error, names))
        except UpstreamError:  # the model server has other troubles now
            return []
    return []


def _probe_request(request: ChatRequest, tools: RequestTools, names: Sequence[str]) -> ChatRequest:
    """The same request for one token, with a short question and these tools of ours."""
    limit = "max_completion_tokens" if "max_completion_tokens" in request.options else "max_tokens"
    bare = request.without(*_ANSWER_OPTIONS).with_options(**{limit: 1})
    if isinstance(bare.options.get("tool_choice"), dict):
        bare = bare.without("tool_choice")
    definitions = [*tools.clients_definitions, *(tools.definition(name) for name in names)]
    question = {"role": "user", "content": "Hello"}
    return replace(bare, messages=[question], tools=definitions or [_HARMLESS])


def _everything(_: str) -> bool:
    return True


def _reason(error: UpstreamError) -> str:
    return " ".join(error.message.split())[:300]
