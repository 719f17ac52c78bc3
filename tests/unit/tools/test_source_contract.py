"""What every kind of tool source promises (`toolway.types.ToolSource`).

A new kind adds a context manager that yields a source of a real server, with the tools `echo` (returns its argument
`text`), `fail` (reports an error) and `hang` (never answers), and a way to stop the server.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.servers import running
from tests.unit.tools.mcp.support import SERVERS, alive
from tests.unit.tools.openapi.service import DEADLINE, Service, Watch, document, json_body, operation
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.mcp_server import StdioServerConfig
from toolway.settings.settings import ToolSettings
from toolway.tools.mcp import MCPSource, ReconnectPolicy
from toolway.tools.openapi import OpenAPISource
from toolway.types import Tool, ToolSource

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, kw_only=True)
class Case:
    """A source that does not run yet, and its server, which does."""

    source: ToolSource
    stop_server: Callable[[], None]


@asynccontextmanager
async def openapi() -> AsyncIterator[Case]:
    async def answer(request: Request) -> Response:
        match request.url.path:
            case "/echo":
                return JSONResponse((await request.json())["text"])
            case "/hang":
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        return Response("it failed", 500)

    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    paths = {
        "/echo": {"post": operation("echo", description="Say it again", requestBody=json_body(text))},
        "/fail": {"post": operation("fail")},
        "/hang": {"post": operation("hang")},
    }
    with ExitStack() as server:
        url = server.enter_context(running(Service(document(paths), answer)))
        source = OpenAPISource(Endpoint(label="the-label", url=url), ToolSettings(refresh_interval=0.05))
        yield Case(source=source, stop_server=server.close)


@asynccontextmanager
async def mcp() -> AsyncIterator[Case]:
    with TemporaryDirectory() as folder:
        program = Path(shutil.copy(SERVERS / "promising.py", folder))
        config = StdioServerConfig(
            label="the-label", type="stdio", command=sys.executable, args=(str(program),)
        )
        source = MCPSource(config, policy=ReconnectPolicy(first_delay=0.01, longest_delay=0.05))

        def stop() -> None:
            program.unlink()
            pid = int(program.with_name("pid").read_text())
            os.kill(pid, signal.SIGKILL)
            while alive(pid):
                pass

        yield Case(source=source, stop_server=stop)


@pytest.fixture(params=[openapi, mcp], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@asynccontextmanager
async def ready(kind: Any) -> AsyncIterator[tuple[Watch, Case]]:
    async with kind() as case, anyio.create_task_group() as tasks:
        watch = Watch(case.source)
        tasks.start_soon(case.source.run, watch.changed)
        await watch.until(lambda status: status.state == "ready")
        yield watch, case
        tasks.cancel_scope.cancel()


async def test_a_source_that_has_not_run_is_starting_and_has_no_tools(kind: Any) -> None:
    async with kind() as case:
        assert case.source.status.state == "starting"
        assert case.source.status.tools == ()
        assert case.source.label == "the-label"
        assert case.source.kind


async def test_a_ready_source_lists_its_tools_whole(kind: Any) -> None:
    async with ready(kind) as (watch, case):
        status = case.source.status
        assert status.error is None and status.protocol
        assert sorted(watch.tools) == ["echo", "fail", "hang"]
        for tool in status.tools:
            assert isinstance(tool, Tool) and tool.available and tool.server
            assert tool.parameters["type"] == "object"
            assert isinstance(tool.parameters["properties"], dict)
        assert watch.tools["echo"].description == "Say it again"
        assert watch.tools["echo"].parameters["required"] == ["text"]


async def test_a_status_stays_the_same_object_while_nothing_happens(kind: Any) -> None:
    async with ready(kind) as (watch, case):
        status, changes = case.source.status, watch.changes
        for _ in range(3):
            assert not (await watch.call("echo", text="x")).is_error
        assert case.source.status is status
        assert watch.changes == changes


async def test_a_call_returns_what_the_server_says(kind: Any) -> None:
    async with ready(kind) as (watch, _):
        result = await watch.call("echo", text="grüß dich")
        assert not result.is_error
        assert "grüß dich" in result.text


async def test_a_tools_own_error_is_a_result(kind: Any) -> None:
    async with ready(kind) as (watch, _):
        result = await watch.call("fail")
        assert result.is_error
        assert "it failed" in result.text


async def test_calls_run_side_by_side(kind: Any) -> None:
    async with ready(kind) as (watch, _), anyio.create_task_group() as tasks:
        tasks.start_soon(watch.source.call, watch.tools["hang"], {})
        assert not (await watch.call("echo", text="x")).is_error
        tasks.cancel_scope.cancel()


async def test_a_cancelled_call_ends_at_once(kind: Any) -> None:
    async with ready(kind) as (watch, _):
        with anyio.fail_after(DEADLINE), anyio.move_on_after(0.05) as scope:
            await watch.source.call(watch.tools["hang"], {})
        assert scope.cancelled_caught
        assert not (await watch.call("echo", text="x")).is_error


async def test_a_call_of_a_lost_server_is_a_result_without_its_address(kind: Any) -> None:
    async with ready(kind) as (watch, case):
        tool = watch.tools["echo"]
        await anyio.to_thread.run_sync(case.stop_server)
        with anyio.fail_after(DEADLINE):
            result = await case.source.call(tool, {"text": "x"})
        assert result.is_error and result.text
        assert "127.0.0.1" not in result.text


async def test_a_lost_server_keeps_its_last_good_tools_as_unavailable(kind: Any) -> None:
    async with ready(kind) as (watch, case):
        await anyio.to_thread.run_sync(case.stop_server)
        status = await watch.until(lambda status: status.state not in ("ready", "starting"))
        assert {tool.name: tool.available for tool in status.tools} == dict.fromkeys(watch.tools, False)
        assert status.error and status.error_at and status.error_stage


async def test_a_cancelled_source_ends(kind: Any) -> None:
    async with kind() as case:
        watch = Watch(case.source)
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(case.source.run, watch.changed)
                await watch.settled()
                tasks.cancel_scope.cancel()
