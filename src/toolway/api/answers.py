"""The answer of one conversation to its client, whole or as a stream of events, and what is said when it fails.

Every dialect answers this way: it hands in what is its own, the words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from toolway.conversation.events import CallBegan, Event, HeadArrived
from toolway.engine.conversation import Conversation
from toolway.errors import ToolwayError
from toolway.server.asgi import (
    ClientGone,
    EventStreamResponse,
    relayed,
    send_json,
    stream_events,
)
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import send_error, send_failure
from toolway.types import Header
from toolway.wire import sse


async def answer_stream(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    conversation: Conversation,
    produce: Callable[[EventStreamResponse], Awaitable[bytes]],
    fail: Callable[[ToolwayError], Awaitable[bytes]],
    keep_alive: float,
    pulse: bytes = sse.KEEP_ALIVE,
) -> None:
    """Answer with events. `produce` writes them but for the last ones, which it returns.

    What it raises before the stream has started is an error status; after that, `fail` returns the last events.
    """

    async def run(stream: EventStreamResponse) -> None:
        try:
            with error_at_stop(scope):
                last = await produce(stream)
        except Exception as raised:
            error = conversation.failed(raised)
            if not stream.started:
                await send_error(scope, send, error)
                return
            last = await fail(error)
        await stream.end(last)

    await stream_events(scope, receive, send, run, keep_alive=keep_alive, pulse=pulse)


async def start_stream(stream: EventStreamResponse, event: Event, headers: tuple[Header, ...] = ()) -> None:
    """Start a stream, with its `headers`, at the first event that says that it will not be an error status.

    That is the head of the model server's answer, or a call that was approved and runs before the model is asked.
    """
    if not stream.started and isinstance(event, (HeadArrived, CallBegan)):
        await stream.start([*headers, *relayed(event.headers if isinstance(event, HeadArrived) else ())])


async def answer_whole(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    conversation: Conversation,
    produce: Callable[[], Awaitable[Any]],
    headers: tuple[Header, ...] = (),
) -> None:
    """Answer with the JSON that `produce` returns, and the model server's `headers` beside these."""

    async def run() -> None:
        try:
            with error_at_stop(scope):
                body = await produce()
        except Exception as raised:
            error = conversation.failed(raised)
            await send_failure(scope, send, error, tools_ran=conversation.events.tools_ran)
            return
        await send_json(send, 200, body, [*headers, *relayed(conversation.events.head or ())])

    await cancel_on_disconnect(scope, receive, run)


async def answer_errors(scope: Scope, send: Send, answer: Awaitable[None]) -> None:
    """Await an answer; what goes wrong before it begins is told in the envelope of the request's API."""
    try:
        await answer
    except ToolwayError as error:
        await send_error(scope, send, error)
    except ClientGone:
        return
