"""Cancellation of a request's work: signals for client disconnects and server stops, and what follows them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import anyio
from starlette.types import Receive, Scope

from toolway.errors import SERVER_STOPS, Stopping

DISCONNECT = "toolway.disconnect"
"""Where `HttpProtocol` puts the signal that is set when the client disconnects into `scope["extensions"]`."""

STOP = "toolway.stop"
"""Where it puts the signal that is set when the server stops and leaves requests no more time."""

SHUTDOWN = "toolway.shutdown"
"""Where it puts the signal that is set as soon as the server is told to stop, for what would never end by itself."""


class ConnectionSignal:
    """A signal of one connection, set once when its client disconnects or the server stops; calls who wants to know."""

    def __init__(self) -> None:
        self.is_set = False
        self._callbacks: list[Callable[[], object]] = []

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when it happens; at once if it has."""
        self._callbacks.append(callback)
        if self.is_set:
            callback()

    def remove_callback(self, callback: Callable[[], object]) -> None:
        """Undo `add_callback`."""
        self._callbacks.remove(callback)

    def set(self) -> None:
        """Say that it happened."""
        self.is_set = True
        for callback in self._callbacks:
            callback()


async def cancel_on_disconnect(
    scope: Scope, receive: Receive, produce: Callable[[], Awaitable[None]]
) -> None:
    """Run `produce`; cancel it when the client is gone. Call it when nobody else waits on `receive`.

    Our own server says when a client leaves, which costs a list entry. Under another one a task has to wait
    on `receive`, and that with its task group costs a fifth of a small request.
    """
    disconnect = scope.get("extensions", {}).get(DISCONNECT)
    if disconnect is None:
        await _while_watched(receive, produce)
        return
    task = cast("asyncio.Task[None]", asyncio.current_task())
    disconnect.add_callback(task.cancel)
    try:
        await produce()
    except asyncio.CancelledError:
        if not disconnect.is_set or task.uncancel():
            raise
    finally:
        disconnect.remove_callback(task.cancel)


async def _while_watched(receive: Receive, produce: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await produce()
        group.cancel_scope.cancel()


def stop_error() -> Stopping:
    """The error that a client is told whose request has no more time."""
    return Stopping("Toolway is being stopped; ask again when it runs.", code="server_stopping")


class error_at_stop:  # noqa: N801
    """Raise Stopping from the block when the server has to end before it: in time to tell the client."""

    # A class, since a contextmanager costs every request two microseconds.

    def __init__(self, scope: Scope, signal: str = STOP) -> None:
        self._stop: ConnectionSignal | None = scope.get("extensions", {}).get(signal)

    def __enter__(self) -> None:
        if self._stop is not None:
            self._cancel = partial(cast("asyncio.Task[None]", asyncio.current_task()).cancel, SERVER_STOPS)
            self._stop.add_callback(self._cancel)

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if self._stop is None:
            return
        self._stop.remove_callback(self._cancel)
        if raised is not None and issubclass(raised, asyncio.CancelledError) and self._stop.is_set:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            if not task.uncancel():
                raise stop_error() from None
