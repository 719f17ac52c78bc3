"""Revocation of keys and ends of sessions: they end what was opened with them and is open for longer than a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup
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
    is_stream = is_over = False

    def end(cancel: Cancel) -> None:
        nonlocal is_over
        is_over = True
        cancel()

    async def watch(cancel: Cancel) -> None:
        await _until_invalid(is_valid, keys)
        end(cancel)

    async def answer(group: TaskGroup) -> None:
        cancel = group.cancel_scope.cancel

        async def send_if_valid(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                if _is_event_stream(message):
                    is_stream = True
                    group.start_soon(watch, cancel)
            elif is_stream and not await is_valid():
                end(cancel)
                await anyio.sleep_forever()
            await send(message)

        await app(scope, receive, send_if_valid)

    await _run_beside_tasks(answer)
    if is_over:
        await send({"type": "http.response.body", "body": b""})


async def close_when_invalid(
    work: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    is_valid: IsValid,
    keys: KeyRing,
) -> None:
    """Do the `work` of a WebSocket, and `close` that once it is no longer valid; by which the work ends."""

    async def watch() -> None:
        await _until_invalid(is_valid, keys)
        with suppress(OSError, RuntimeError):  # it is closed already
            await close()

    async def work_while_watched(group: TaskGroup) -> None:
        group.start_soon(watch)
        await work()

    await _run_beside_tasks(work_while_watched)


async def _until_invalid(is_valid: IsValid, keys: KeyRing) -> None:
    while True:
        changed = keys.changed
        if not await is_valid():
            return
        with anyio.move_on_after(LOOK_SECONDS):
            await changed.wait()


async def _run_beside_tasks(work: Callable[[TaskGroup], Awaitable[None]]) -> None:
    """Run the work, and what it starts in the group until it has ended or that cancels it. Raises what it does."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:
        try:
            await work(group)
        except Exception as error:  # a task group would raise a group
            failures.append(error)
        group.cancel_scope.cancel()
    for failure in failures:
        raise failure


def _is_event_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
