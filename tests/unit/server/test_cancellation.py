"""What is made for a client ends when the client leaves, and for no other reason."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from toolway.server.cancellation import DISCONNECT, ConnectionSignal, cancel_on_disconnect


class Making:
    """Something that takes for ever."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.cancelled = False

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def scope_with(disconnect: ConnectionSignal) -> Any:
    return {"extensions": {DISCONNECT: disconnect}}


async def never() -> Any:
    await anyio.sleep_forever()


async def test_it_ends_when_the_server_says_so() -> None:
    disconnect, making = ConnectionSignal(), Making()
    async with anyio.create_task_group() as group:
        group.start_soon(cancel_on_disconnect, scope_with(disconnect), never, making)
        await making.begun.wait()
        disconnect.set()
    assert making.cancelled
    await anyio.lowlevel.checkpoint()


async def test_it_does_not_begin_for_a_client_that_has_left() -> None:
    disconnect, making = ConnectionSignal(), Making()
    disconnect.set()
    await cancel_on_disconnect(scope_with(disconnect), never, making)
    assert making.cancelled
    await anyio.lowlevel.checkpoint()


async def test_under_another_server_it_ends_at_the_disconnect() -> None:
    making = Making()

    async def receive() -> Any:
        await making.begun.wait()
        return {"type": "http.disconnect"}

    await cancel_on_disconnect({}, receive, making)
    assert making.cancelled


@pytest.mark.parametrize("scope", [{}, scope_with(ConnectionSignal())])
async def test_another_cancellation_goes_its_way(scope: Any) -> None:
    making = Making()
    task = asyncio.get_running_loop().create_task(cancel_on_disconnect(scope, never, making))
    await making.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_departure_and_another_cancellation_at_once_is_a_cancellation() -> None:
    disconnect, making = ConnectionSignal(), Making()
    task = asyncio.get_running_loop().create_task(cancel_on_disconnect(scope_with(disconnect), never, making))
    await making.begun.wait()
    task.cancel()
    disconnect.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_leaves_later_is_nobodys_affair() -> None:
    disconnect = ConnectionSignal()

    async def produce() -> None:
        pass

    await cancel_on_disconnect(scope_with(disconnect), never, produce)
    disconnect.set()
    await anyio.lowlevel.checkpoint()


async def test_an_error_of_the_making_is_raised() -> None:
    async def produce() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await cancel_on_disconnect(scope_with(ConnectionSignal()), never, produce)
