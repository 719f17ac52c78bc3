"""Retries of a model call that the model server refused because of what Toolway added to the request.

The client did not send the tools, the results and the images: a refusal because of them is ours to mend, as long
as the client has seen nothing of the answer. What the client sent is never changed. A model server that is busy
(429, 503) after tools ran is waited for here too.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from toolway.conversation.message import TEXT_FIELDS, ChatRequest, Message
from toolway.engine.limits import LoopLimits
from toolway.engine.model_capabilities import LEFT_FREE, ModelCapabilities, Room
from toolway.engine.request_tools import RequestTools
from toolway.engine.tool_results import LEAST, ToolResults
from toolway.errors import UpstreamError
from toolway.schema.compile import ALWAYS_FIT, SEARCH_SHARE, definition_tokens, why_too_many
from toolway.types import JSON
from toolway.upstream.refusals import (
    excess_of,
    is_of_own_output,
    is_overflow,
    is_refusal,
    most_tools,
    own_output,
    seconds_to_wait,
    sizes_in,
    text_of_error,
    with_hint,
)
from toolway.wire.lenient_json import dumps
from toolway.wire.token_estimate import BYTES_PER_TOKEN, MIN_BYTES_PER_TOKEN, estimate_tokens

log = logging.getLogger("toolway.chat")

MAX_CHANGES = 12
"""Other ways that are tried in one round, waiting not counted."""

MAX_EMPTY = 3
"""How often an empty answer behind long results is asked for again."""

_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between two tries when the model server does not say when to come back."""


def fit_tools(request: ChatRequest, tools: RequestTools, capabilities: ModelCapabilities) -> ChatRequest:
    """The request with those of our tools, and as much of their definitions, as the model is known to take."""
    if capabilities.most_tools and tools.are_offered and tools.count > capabilities.most_tools:
        tools.keep_first(capabilities.most_tools)
    sent = tools.put_into(request)
    room = capabilities.room
    if room is None or not tools.are_offered:
        return sent
    if room.until < time.monotonic():
        capabilities.room = None
        return sent
    size = _prompt_size(sent)
    excess = room.excess(size, room.target)
    if size <= room.limit or (left := tools.shorten(excess, keep=int(room.limit * LEFT_FREE))) is None:
        return sent
    _tell_of_short_definitions(left, room, capabilities)
    return tools.put_into(request)


async def fit_results(
    request: ChatRequest, tools: RequestTools, results: ToolResults, capabilities: ModelCapabilities
) -> ChatRequest:
    """The request with our results shortened, the oldest first, where its server would forget the question instead."""
    room = capabilities.room
    if room is None or not room.is_silent or not results.own:
        return request
    begin = results.begin_of_last(request.messages)
    # Other than definitions, results are anything: code, tables, foreign words.
    target = room.target * MIN_BYTES_PER_TOKEN / BYTES_PER_TOKEN
    while (size := _prompt_size(tools.put_into(request))) > target:
        older, newest = request.messages[:begin], request.messages[begin:]
        if shorter := await results.shrink(older, room.excess(size, target)):
            shorter += newest
        elif (shorter := await results.shrink(request.messages, math.ceil(size - target))) is None:
            break
        request = request.with_messages(shorter)
        if not capabilities.outgrown:
            capabilities.outgrown = True
            log.warning(
                "a conversation outgrows the %s tokens that the model reads, and its server would forget the "
                "beginning: earlier results are shortened; give the model a larger context",
                f"{room.context:,}",
            )
    return request


def _tell_of_short_definitions(left: Sequence[str], room: Room, capabilities: ModelCapabilities) -> None:
    """Log what became of the tools, once for each that is left out."""
    if capabilities.left_out is not None and capabilities.left_out.issuperset(left):
        return
    capabilities.left_out = (capabilities.left_out or frozenset()).union(left)
    log.warning(
        "the model has room for about %s tokens: its tools are described in their first sentences%s; choose tools with "
        "include or a profile, have them searched with TOOLWAY_TOOL_SEARCH=auto, or give the model a larger context",
        f"{room.context:,}",
        f", and these are left out: {', '.join(left)}" if left else "",
    )


def _prompt_size(request: ChatRequest) -> int:
    """Bytes of what the model reads: texts, calls and definitions, without images."""
    size = len(dumps(request.tools)) if request.tools else 0
    for message in request.messages:
        if isinstance(message, dict):
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            size += sum(len(text.encode(errors="replace")) for text in texts if isinstance(text, str))
            size += len(dumps(message.get("tool_calls") or ""))
    return size


_Change = Callable[[ChatRequest, UpstreamError, ChatRequest], Awaitable[ChatRequest | None]]


class Recovery:
    """What is tried in one round. `retry_wait` are the seconds that it may wait for the model server, 0 in round 1."""

    def __init__(
        self,
        *,
        tools: RequestTools,
        results: ToolResults,
        capabilities: ModelCapabilities,
        limits: LoopLimits,
        retry_wait: float = 0.0,
        optional: frozenset[str] = frozenset(),
    ) -> None:
        self._tools = tools
        self._results = results
        self._capabilities = capabilities
        self._limits = limits
        self._retry_wait = retry_wait
        self._optional = optional
        self._changes = self._waits = self._empty = self._unreadable = 0
        self._has_switched = False
        self._definitions: tuple[int, int] | None = None
        """How many tools were refused as too long, and their tokens."""
        self._note: Sequence[JSON] = ()
        self._learned: dict[str, Any] = {}

    async def changed(
        self, request: ChatRequest, error: UpstreamError, sent: ChatRequest
    ) -> ChatRequest | None:
        """The request to ask with after this error; `sent` is what was refused. None when nothing is left to try."""
        if (seconds := seconds_to_wait(error)) is not None:
            return request if await self._wait(seconds, error) else None
        ways: Sequence[_Change] = (
            self._tell_the_model,
            self._leave_options_out,
            self._search_tools,
            self._leave_tools_out,
            self._shorten_results,
            self._shorten_definitions,
            self._hide_images,
            self._keep_definitions,
        )
        for way in ways:
            if self._changes < MAX_CHANGES and (changed := await way(request, error, sent)) is not None:
                self._changes += 1
                return changed
            self._learned = {}
        return None

    async def changed_for_silence(self, request: ChatRequest, message: Message) -> ChatRequest | None:
        """The request to ask with after an answer that is empty, right behind long results; None: it stands."""
        if message.tool_calls or any(message.fields.get(member) for member in TEXT_FIELDS):
            return None
        if self._empty >= MAX_EMPTY or self._results.size_of_last(request.messages) < LEAST:
            return None
        self._empty += 1
        shorter = await self._results.shrink(request.messages, len(dumps(request.messages)) // 2)
        return None if shorter is None else request.with_messages(shorter)

    def succeeded(self) -> None:
        """The model server took the request: what was changed last is what it wanted."""
        for name, value in self._learned.items():
            setattr(self._capabilities, name, value)

    def with_note(self, sent: ChatRequest) -> ChatRequest:
        """The request, and behind it what the model must be told this once."""
        return sent.with_messages([*sent.messages, *self._note]) if self._note else sent

    async def _wait(self, seconds: float, error: UpstreamError) -> bool:
        """Wait as the model server says, if that can be borne; one that names no time is asked a few times."""
        pause = max(seconds, 0.25) if seconds else _PAUSES[min(self._waits, len(_PAUSES) - 1)]
        is_over = (
            not seconds and self._waits >= len(_PAUSES) and error.status != 503
        )  # a model may load for long
        if is_over or pause > min(self._retry_wait, self._limits.seconds_left):
            return False
        log.info("tools have run, so the model server is asked again in %.1f s: %s", pause, error.message)
        self._waits += 1
        self._retry_wait -= pause
        await anyio.sleep(pause)
        return True

    async def _tell_the_model(
        self, request: ChatRequest, error: UpstreamError, _: ChatRequest
    ) -> ChatRequest | None:
        """What the model wrote could not be read: once more, then it is told."""
        if not self._tools.are_offered or not is_of_own_output(error) or self._unreadable > 1:
            return None
        self._unreadable += 1
        if self._unreadable > 1:
            written = own_output(error) or "(a tool call that could not be read)"
            note = "The last tool call could not be read. Call one of the tools with a JSON object, or answer in words."
            self._note = ({"role": "assistant", "content": written}, {"role": "user", "content": note})
        return request

    async def _leave_options_out(
        self, request: ChatRequest, error: UpstreamError, _: ChatRequest
    ) -> ChatRequest | None:
        """An option that the model server does not know, or not with this value, and the request can do without."""
        if not self._optional or not (is_refusal(error) or is_overflow(error)):
            return None
        words = text_of_error(error)
        left = [
            name for name in self._optional if name in request.options and re.search(rf"\b{name}\b", words)
        ]
        if not left:
            return None
        log.info("left out, since the model server refuses it: %s", ", ".join(left))
        if not is_overflow(error):  # too many tokens for this conversation may be few enough for the next
            self._learned = {"refused_options": self._capabilities.refused_options.union(left)}
        return request.without(*left)

    async def _shorten_results(
        self, request: ChatRequest, error: UpstreamError, sent: ChatRequest
    ) -> ChatRequest | None:
        if not self._results.own or not is_overflow(error):
            return None
        whole = sent.body() if sizes_in(error)[0] else request.messages
        shorter = await self._results.shrink(request.messages, int(excess_of(error) * len(dumps(whole))))
        return None if shorter is None else request.with_messages(shorter)

    async def _search_tools(
        self, request: ChatRequest, error: UpstreamError, sent: ChatRequest
    ) -> ChatRequest | None:
        """Tools that are too many or too long for the model are searched in place of being offered."""
        tools, count = self._tools, self._tools.count
        if tools.search_rules is None or tools.search or not tools.are_offered:
            return None
        if (most := most_tools(error, count)) is not None:
            why, self._learned = f"the model server takes {most:,}", {"most_tools": most}
            tools.begin_search()
        elif is_overflow(error) and error.code != "upstream_cut" and self._fill_the_context(error, sent):
            room, context = _room_by(error, _prompt_size(sent)), sizes_in(error)[1]
            of_what = f" of {context:,}" if context else ""
            why, self._learned = f"about {estimate_tokens(tools.size):,}{of_what} tokens", {"room": room}
            tools.begin_search(context=context or room.context)
        else:
            return None
        self._capabilities.searches = True
        log.warning("%d tools are too many (%s): the model searches them from now on", count, why)
        return request

    def _fill_the_context(self, error: UpstreamError, sent: ChatRequest) -> bool:
        """Whether our definitions are the larger part of what is too long."""
        if estimate_tokens(self._tools.size) <= ALWAYS_FIT:
            return False
        context = sizes_in(error)[1]
        room = context * SEARCH_SHARE if context else estimate_tokens(len(dumps(sent.body()))) * SEARCH_SHARE
        return estimate_tokens(self._tools.size) > room

    async def _leave_tools_out(
        self, request: ChatRequest, error: UpstreamError, _: ChatRequest
    ) -> ChatRequest | None:
        """More tools than the model server takes in one request (OpenAI: 128)."""
        count = self._tools.count
        if not self._tools.are_offered or (most := most_tools(error, count)) is None:
            return None
        if not (left := self._tools.keep_first(most)):
            return None
        log.warning(
            "the model server takes %d tools and there are %d; choose with include, exclude or a profile. Left out: %s",
            most,
            count,
            ", ".join(left),
        )
        self._learned = {"most_tools": most}
        return request

    async def _shorten_definitions(
        self, request: ChatRequest, error: UpstreamError, sent: ChatRequest
    ) -> ChatRequest | None:
        """The definitions of our tools fill the context: shorter ones, then fewer."""
        if not self._tools.are_offered or error.code == "upstream_cut" or not is_overflow(error):
            return None
        self._definitions = self._definitions or (
            self._tools.count,
            definition_tokens(len(dumps(sent.tools))),
        )
        excess = int(excess_of(error) * len(dumps(sent.body())))
        if (left := self._tools.shorten(excess)) is None:
            return None
        if left:
            log.warning(
                "left out, since the definitions of all tools are too long for the model: %s", ", ".join(left)
            )
        self._learned = {"room": _room_by(error, _prompt_size(sent))}
        return request

    def explained(self, error: UpstreamError) -> UpstreamError:
        """The error for the client: what the model server said, and what our tools have to do with it."""
        if self._definitions is None or self._tools.search or not is_overflow(error):
            return error
        count, tokens = self._definitions
        why = why_too_many(count, tokens, sizes_in(error)[1] or None)
        return with_hint(error, f"({why})") if why else error

    async def _hide_images(
        self, request: ChatRequest, error: UpstreamError, _: ChatRequest
    ) -> ChatRequest | None:
        """Some servers take no user message behind tool results (Mistral), others no images at all."""
        if not is_refusal(error) or (hidden := self._results.without_images(request.messages)) is None:
            return None
        log.warning("the model server refuses the pictures of tool results: %s", error.message)
        self._learned = {"takes_images": False}
        return request.with_messages(hidden)

    async def _keep_definitions(
        self, request: ChatRequest, error: UpstreamError, sent: ChatRequest
    ) -> ChatRequest | None:
        """Some servers read no conversation with calls in it when no tools are defined (Anthropic's, Bedrock)."""
        if self._has_switched or not is_refusal(error) or not self._tools.may_keep_definitions(sent):
            return None
        self._has_switched = True
        self._tools.keeps_definitions = not self._tools.keeps_definitions
        self._learned = {"needs_definitions": self._tools.keeps_definitions}
        return request


def _room_by(error: UpstreamError, size: int) -> Room:
    """The room that is left by a refusal of a prompt of so many bytes."""
    prompt, context = sizes_in(error)
    if prompt and context:
        return Room.of(size * context / prompt)
    fits = size * (1 - excess_of(error))
    return Room.of(fits, fits)
