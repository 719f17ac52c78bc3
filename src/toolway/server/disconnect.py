"""A client that leaves ends what is made for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import anyio
from starlette.types import Receive, Scope

EXTENSION = "toolway.departure"
"""Where `HttpProtocol` puts the Departure of a request's connection into `scope["extensions"]`."""


class Departure:
    """Tells those who ask to be told that one side of a connection leaves."""

    def __init__(self) -> None:
        self.happened = False
        self._told: list[Callable[[], object]] = []

    def tell(self, callback: Callable[[], object]) -> None:
        """Have `callback` called when it happens; at once if it has."""
        self._told.append(callback)
        if self.happened:
            callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Undo `tell`."""
        self._told.remove(callback)

    def happen(self) -> None:
        """It has come to that."""
        self.happened = True
        for callback in self._told:
            callback()


async def while_client_listens(
    scope: Scope, receive: Receive, produce: Callable[[], Awaitable[None]]
) -> None:
    """Run `produce`; cancel it when the client is gone. Call it when nobody else waits on `receive`.

    Our own server says when a client leaves, which costs a list entry. Under another one a task has to wait
    on `receive`, and that with its task group costs a fifth of a small request.
    """
    departure = scope.get("extensions", {}).get(EXTENSION)
    if departure is None:
        await _while_watched(receive, produce)
        return
    task = cast("asyncio.Task[None]", asyncio.current_task())
    departure.tell(task.cancel)
    try:
        await produce()
    except asyncio.CancelledError:
        if not departure.happened or task.uncancel():
            raise
    finally:
        departure.forget(task.cancel)


async def _while_watched(receive: Receive, produce: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await produce()
        group.cancel_scope.cancel()
