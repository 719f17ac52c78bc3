"""Tools that the model server rejects: they are found, left out, and the turn is repeated without them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import anyio

from toolway.conversation.events import Emit, Event
from toolway.conversation.message import Message
from toolway.conversation.request import ChatRequest
from toolway.engine.bisect_tools import find_culprits, is_about_tools, suspects
from toolway.engine.event_stream import EventStream
from toolway.engine.model_target import ModelTarget
from toolway.engine.request_tools import RequestTools
from toolway.errors import UpstreamError, UpstreamStatus
from toolway.upstream.model_call import IsClients, Turn

log = logging.getLogger("toolway.backend")

SEARCH_SECONDS = 60.0
"""A refusal comes at once; a request that is accepted costs the reading of its prompt."""
ATTEMPTS = 3
"""Repeats of one turn; each needs another reason than the one before."""

_HARMLESS = {
    "type": "function",
    "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}},
}
_OF_THE_ANSWER = ("stream", "stream_options", "n", "response_format", "logprobs", "top_logprobs")


def without_rejected_tools(
    turn: Turn, *, tools: RequestTools, target: ModelTarget, probe: Turn, events: EventStream
) -> Turn:
    """`turn`, repeated without the tools that the model server rejects, as long as the client has seen nothing.

    `probe` is a whole turn of the same client. The client's own tools stay: when they are the fault, the refusal is
    raised as it came.
    """

    async def ask(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
        for _ in range(ATTEMPTS):
            try:
                return await turn(request, emit, is_clients)
            except UpstreamError as error:
                if isinstance(error, UpstreamStatus):
                    target.learn_from(error.headers)
                if events.saw_text or not tools.are_offered or not is_about_tools(error):
                    raise
                if not await _leave_out(error, request, tools, target, probe):
                    raise
            request = tools.put_into(request)
        return await turn(request, emit, is_clients)

    return ask


async def _leave_out(
    error: UpstreamError, request: ChatRequest, tools: RequestTools, target: ModelTarget, probe: Turn
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


async def _search(error: UpstreamError, request: ChatRequest, tools: RequestTools, probe: Turn) -> list[str]:
    names = [name for name in tools.tools if name in tools.snapshot.offered]

    async def refuses(some: Sequence[str]) -> bool:
        try:
            await probe(_probe_request(request, tools, some), _to_nobody, _everything)
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
    bare = request.without(*_OF_THE_ANSWER).with_options(**{limit: 1})
    if isinstance(bare.options.get("tool_choice"), dict):
        bare = bare.without("tool_choice")
    definitions = [*tools.clients_definitions, *(tools.definition(name) for name in names)]
    question = {"role": "user", "content": "Hello"}
    return replace(bare, messages=[question], tools=definitions or [_HARMLESS])


async def _to_nobody(_: Event) -> None:
    return


def _everything(_: str) -> bool:
    return True


def _reason(error: UpstreamError) -> str:
    return " ".join(error.message.split())[:300]
