"""A turn that survives a tool which the model server refuses: the tool is found, left out, and the turn repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio

from toolway.conversation.events import Chunks, HeadArrived
from toolway.conversation.message import Message
from toolway.engine.bisect_tools import find_culprits, is_about_tools, suspects
from toolway.engine.model_target import Backend
from toolway.engine.request_tools import Offer
from toolway.errors import UpstreamError, UpstreamStatus
from toolway.types import JSON, Emit
from toolway.upstream.model_call import Turn

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


def careful_turn(turn: Turn, *, offer: Offer, backend: Backend, probe: Turn) -> Turn:
    """`turn`, repeated without the tools that the model server refuses, as long as the client has seen nothing.

    `probe` is a whole turn of the same client. The client's own tools stay: when they are the fault, the refusal is
    raised as it came.
    """

    async def careful(body: JSON, emit: Emit, theirs: Callable[[str], bool]) -> Message:
        for _ in range(ATTEMPTS):
            watched = _Watched(emit, backend)
            body = offer.renewed(body)
            try:
                return await turn(body, watched, theirs)
            except UpstreamError as error:
                if isinstance(error, UpstreamStatus):
                    backend.notice(error.headers)
                if watched.spoke or not offer.is_in(body) or not is_about_tools(error):
                    raise
                if not await _mend(error, body, offer, backend, probe):
                    raise
        return await turn(offer.renewed(body), emit, theirs)

    return careful


class _Watched:
    """Passes events on and remembers whether the client has seen more than the beginning of an answer."""

    def __init__(self, emit: Emit, backend: Backend) -> None:
        self._emit = emit
        self._backend = backend
        self.spoke = False

    async def __call__(self, event: Any) -> None:
        if type(event) is Chunks:
            self.spoke = self.spoke or any(_says_something(chunk) for chunk, _ in event.items)
        elif type(event) is HeadArrived:
            self._backend.notice(event.headers)
        await self._emit(event)


def _says_something(chunk: JSON | str) -> bool:
    if isinstance(chunk, str):
        return True
    choices = chunk.get("choices") or ()
    return any(value for choice in choices for key, value in choice["delta"].items() if key != "role")


async def _mend(error: UpstreamError, body: JSON, offer: Offer, backend: Backend, probe: Turn) -> bool:
    """Make the offer one that the model server may take; False when nothing was found that could be changed."""
    async with backend.searching:
        if offer.refit(backend.fit(offer.snapshot)):
            return True  # another request found it meanwhile, or the server has just said what it is
        if backend.is_hopeless(offer.snapshot, _reason(error)):
            return False
        culprits = await _search(error, body, offer, probe)
        for name in culprits:
            backend.bar(name, offer.tools[name], _reason(error))
        if not culprits:
            backend.give_up(offer.snapshot, _reason(error))
            log.warning("the model server refuses the tools, but none of them alone: %s", _reason(error))
        return offer.refit(backend.fit(offer.snapshot))


async def _search(error: UpstreamError, body: JSON, offer: Offer, probe: Turn) -> list[str]:
    names = [name for name in offer.tools if name in offer.snapshot.offered]

    async def refuses(some: Any) -> bool:
        try:
            await probe(_probe_body(body, offer, some), _ignore, _everything)
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


def _probe_body(body: JSON, offer: Offer, names: Any) -> JSON:
    """The same request for one token, with a short question and these tools of ours."""
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    bare = {key: value for key, value in body.items() if key not in _OF_THE_ANSWER}
    if isinstance(bare.get("tool_choice"), dict):
        del bare["tool_choice"]
    tools = [*offer.clients_definitions, *(offer.definition(name) for name in names)]
    question = {"role": "user", "content": "Hello"}
    return {**bare, "messages": [question], limit: 1, "tools": tools or [_HARMLESS]}


async def _ignore(_: Any) -> None:
    return


def _everything(_: str) -> bool:
    return True


def _reason(error: UpstreamError) -> str:
    return " ".join(error.message.split())[:300]
