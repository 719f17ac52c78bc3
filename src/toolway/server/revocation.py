"""Revocation of keys and ends of sessions: they end what was opened with them and is open for longer than a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolway.access.keys import KeyRing

LOOK_SECONDS = 15.0
"""So often it is looked whether something is still valid: keys expire, and sessions end in other processes."""

IsValid = Callable[[], Awaitable[bool]]
"""Whether who opened something might open it again now."""

Cancel = Callable[[], None]


async def run_while_valid(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, is_valid: IsValid, keys: KeyRing
) -> None:
    """Have `app` answer. Once an event stream is no longer valid, it tells nothing more and ends."""
    streams, is_over = anyio.Event(), False

    def end(cancel: Cancel) -> None:
        nonlocal is_over
        is_over = True
        cancel()

    async def watch(cancel: Cancel) -> None:
        await streams.wait()
        await _until_invalid(is_valid, keys)
        end(cancel)

    async def answer(cancel: Cancel) -> None:
        async def send_if_valid(message: Message) -> None:
            if message["type"] == "http.response.start":
                if _is_event_stream(message):
                    streams.set()
            elif streams.is_set() and not await is_valid():
                end(cancel)
                await anyio.sleep_forever()
            await send(message)

        await app(scope, receive, send_if_valid)

    await _run_beside(watch, answer)
    if is_over:
        await send({"type": "http.response.body", "body": b""})


async def close_when_invalid(
    work: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    is_valid: IsValid,
    keys: KeyRing,
) -> None:
    """Do the `work` of a WebSocket, and `close` that once it is no longer valid; by which the work ends."""

    async def watch(_: Cancel) -> None:
        await _until_invalid(is_valid, keys)
        with suppress(OSError, RuntimeError):  # it is closed already
            await close()

    await _run_beside(watch, lambda _: work())


async def _until_invalid(is_valid: IsValid, keys: KeyRing) -> None:
    while True:
        changed = keys.changed
        if not await is_valid():
            return
        with anyio.move_on_after(LOOK_SECONDS):
            await changed.wait()


async def _run_beside(
    watch: Callable[[Cancel], Coroutine[Any, Any, None]], work: Callable[[Cancel], Awaitable[None]]
) -> None:
    """Run both until the work has ended, or one of them cancels both. Raises what the work does."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:
        cancel = group.cancel_scope.cancel
        group.start_soon(watch, cancel)
        try:
            await work(cancel)
        except Exception as error:  # a task group would raise a group
            failures.append(error)
        cancel()
    for failure in failures:
        raise failure


def _is_event_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
