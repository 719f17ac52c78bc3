"""Servers that crash, hang and loop: no call waits for the dead, and no process outlives its purpose."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support.paths import ROOT
from tests.unit.tools.mcp.support import TIMEOUT, Watched, alive, bad, running, until
from toolway.tools.mcp import ReconnectPolicy
from toolway.types import ToolResult


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


async def during_a_call(server: Watched, act: Callable[[], Any]) -> ToolResult:
    """Start a call that never ends, and act when the server works on it."""
    started = anyio.Event()
    results: list[ToolResult] = []

    async def call() -> None:
        results.append(await server.call("hold", on_progress=lambda _: started.set()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        with anyio.fail_after(TIMEOUT):
            await started.wait()
        act()
    return results[0]


async def pid_of(server: Watched, tool: str = "pid") -> int:
    return int((await server.call(tool)).text)


@pytest.mark.timeout(400)
async def test_a_hundred_kills_during_calls_hang_nothing_and_leave_nothing() -> None:
    pids = []
    async with running(bad(era="legacy")) as server:
        await server.ready()
        for _ in range(100):
            pids.append(await pid_of(server))
            result = await during_a_call(server, lambda: os.kill(pids[-1], signal.SIGKILL))
            assert result.is_error
            assert "was ended by SIGKILL" in result.text or "ended during the call" in result.text
            assert server.source.status.tools[0].available, "the tools stay while the server comes back"
        assert (await server.call("ok")).text == "fine"
        pids.append(await pid_of(server))
    assert len(set(pids)) == 101
    await until(lambda: not any(map(alive, pids)))


async def test_a_killed_server_takes_its_children_along() -> None:
    async with running(bad()) as server:
        await server.ready()
        pid, child = await pid_of(server), await pid_of(server, "child")
        await during_a_call(server, lambda: os.kill(pid, signal.SIGKILL))
        await until(lambda: not alive(child))


@pytest.mark.parametrize("fault", ["", "ignores_sigterm"])
async def test_a_removed_server_is_gone_with_its_children(fault: str) -> None:
    async with running(bad(fault)) as server:
        await server.ready()
        pids = [await pid_of(server), await pid_of(server, "child")]
    await until(lambda: not any(map(alive, pids)) and not Path(f"/proc/{pids[0]}").exists())
    assert server.source.status.state == "stopped"
    assert not any(tool.available for tool in server.source.status.tools)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("fault", ["", "ignores_sigterm"])
async def test_a_killed_toolway_leaves_no_process(fault: str, loop: str) -> None:
    host = await anyio.open_process(
        [sys.executable, "-m", "tests.unit.tools.mcp.host", fault, loop], cwd=ROOT, stderr=None
    )
    async with host:
        assert host.stdout is not None
        line = await BufferedByteReceiveStream(host.stdout).receive_until(b"\n", 100)
        pids = [int(word) for word in line.split()]
        assert all(map(alive, pids))
        host.kill()
    await until(lambda: not any(map(alive, pids)))


async def test_calls_in_flight_end_when_the_source_is_stopped() -> None:
    async with running(bad()) as server:
        await server.ready()
        results = []
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                server.stop()

            async def call() -> None:
                results.append(await server.call("hold", on_progress=lambda _: tasks.start_soon(stop)))

            tasks.start_soon(call)
        assert results[0].is_error


async def test_a_call_while_the_server_comes_back_waits_for_it() -> None:
    async with running(bad(), policy=ReconnectPolicy(first_delay=0.5)) as server:
        await server.ready()
        assert (await server.call("exit")).is_error
        await server.until(lambda status: status.state == "starting")
        assert (await server.call("ok")).text == "fine"


async def test_the_error_of_a_crash_holds_nothing_that_was_written_for_another_call() -> None:
    said: list[str] = []
    async with running(bad(), policy=ReconnectPolicy(restart_wait=0.0), on_line=said.append) as server:
        await server.ready()
        await server.call("whisper")
        await until(lambda: "of the call before" in said)
        result = await server.call("exit")
        assert "It last wrote: about to fail" in result.text
        assert "of the call before" not in result.text
        if server.source.status.state == "starting":
            assert "last wrote" not in (await server.call("ok")).text
        status = await server.until(lambda status: status.error is not None)
        assert status.error
        assert "of the call before" in status.error, "who runs the server reads all"


async def test_calls_side_by_side_read_nothing_of_each_other_when_the_server_crashes() -> None:
    async with running(bad(era="legacy")) as server:
        await server.ready()
        results: list[ToolResult] = []

        async with anyio.create_task_group() as tasks:

            async def crash() -> None:
                results.append(await server.call("exit"))

            async def call() -> None:
                results.append(await server.call("hold", on_progress=lambda _: tasks.start_soon(crash)))

            tasks.start_soon(call)
        assert [("ended" in result.text, "last wrote" in result.text) for result in results] == [
            (True, False),
            (True, False),
        ]


async def test_the_error_of_a_crash_says_what_the_server_last_wrote() -> None:
    async with running(bad()) as server:
        await server.ready()
        result = await server.call("exit")
        assert result.is_error
        assert "ended during the call" in result.text
        status = await server.until(lambda status: status.error is not None)
        assert status.error == "the server ended with exit status 9. It last wrote: about to fail"
        assert status.error_at is not None


@pytest.mark.parametrize("tool", ["partial", "close_output"])
async def test_a_server_that_stops_talking_is_started_again(tool: str) -> None:
    async with running(bad()) as server:
        await server.ready()
        assert (await server.call(tool)).is_error
        assert (await server.call("ok")).text == "fine"


async def test_a_restart_loop_ends_as_failed_with_the_last_words() -> None:
    async with running(bad("dies_when_listed")) as server:
        status = await server.until(lambda status: status.state == "failed")
        assert "my database is gone" in (status.error or "")
        assert not any(tool.available for tool in status.tools)
        result = await server.call("ok")
        assert result.is_error
        assert "my database is gone" in result.text


async def test_a_server_that_crashed_too_often_comes_back_by_itself() -> None:
    async with running(bad()) as server:
        await server.ready()
        while server.source.status.state != "failed":
            assert (await server.call("exit")).is_error
            await server.until(lambda status: status.state != "ready")
            if server.source.status.state == "starting":
                await server.until(lambda status: status.state in ("ready", "failed"))
        assert not any(tool.available for tool in server.source.status.tools)
        status = await server.ready()
        assert all(tool.available for tool in status.tools)
        assert (await server.call("ok")).text == "fine"


async def test_servers_start_side_by_side(tmp_path: Path) -> None:
    number = 6
    servers = [bad(f"meet:{tmp_path}:{number}", label=f"s{n}") for n in range(number)]
    async with anyio.create_task_group() as tasks:

        async def start(config: Any) -> None:
            async with running(config) as server:
                await server.ready()

        for config in servers:
            tasks.start_soon(start, config)


async def test_a_lazy_server_is_there_only_while_it_is_used() -> None:
    async with running(bad(lazy=True, idle_timeout=1.0)) as server:
        status = await server.until(lambda status: status.state == "stopped")
        assert status.tools[0].available, "its tools are known, and offered"
        first = await pid_of(server)
        assert await pid_of(server) == first
        await server.until(lambda status: status.state == "stopped")
        await until(lambda: not alive(first))
        assert await pid_of(server) != first


async def test_a_lazy_server_is_not_ended_during_a_call() -> None:
    async with running(bad(lazy=True, idle_timeout=0.1)) as server:
        await server.until(lambda status: status.state == "stopped")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(during_a_call, server, lambda: None)
            pid = await pid_of(server)
            with anyio.move_on_after(0.5):
                await server.until(lambda status: status.state != "ready")
            assert await pid_of(server) == pid
            tasks.cancel_scope.cancel()
