"""Counts the tokens that model calls take, for callers who may use so many in a day."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from toolway.conversation.events import Chunks, Emit, Event
from toolway.conversation.message import ChatRequest, Message
from toolway.errors import UpstreamError
from toolway.types import Principal
from toolway.upstream.model_call import ModelCall
from toolway.wire.lenient_json import dumps
from toolway.wire.token_estimate import estimate_tokens


def with_token_count(call_model: ModelCall, spend: Callable[[int], None]) -> ModelCall:
    """`call_model`, after which `spend` is told how many tokens it took; estimated when the model server does not say.

    A call that is given up has taken its prompt, and a token for each piece that came. One that is refused took none.
    """

    async def ask(request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]) -> Message:
        pieces = 0

        async def count(event: Event) -> None:
            nonlocal pieces
            if type(event) is Chunks:
                pieces += len(event.items)
            await emit(event)

        try:
            message = await call_model(_with_usage(request), count, is_clients)
        except UpstreamError:
            spend(tokens_of(request, None, pieces) if pieces else 0)
            raise
        except BaseException:
            spend(tokens_of(request, None, pieces))
            raise
        spend(tokens_of(request, message, pieces))
        return message

    return ask


def are_counted(principal: Principal) -> bool:
    """Whether a principal may use so many tokens and no more."""
    return bool(principal.token_quotas)


def tokens_of(request: ChatRequest, message: Message | None, pieces: int = 0) -> int:
    """What a model call took, of whose answer so many pieces came; without a message it was given up."""
    if message is None:
        return _estimate(request) + pieces
    return tokens_in(message.usage) or _estimate(request) + max(pieces, _size(message.fields))


def tokens_in(usage: Any) -> int:
    """The tokens of a usage object, whose members may be missing or odd; 0: it tells of none."""
    if not isinstance(usage, dict):
        return 0
    if type(total := usage.get("total_tokens")) is int and total > 0:
        return total
    names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
    return sum(value for name in names if type(value := usage.get(name)) is int and value > 0)


def _with_usage(request: ChatRequest) -> ChatRequest:
    """The request, of whose stream the model server is asked to say what it took."""
    if not request.is_streamed or request.options.get("stream_options"):
        return request
    return request.with_options(stream_options={"include_usage": True})


def _estimate(request: ChatRequest) -> int:
    return _size(request.body())


def _size(value: Any) -> int:
    return estimate_tokens(len(dumps(value)))
