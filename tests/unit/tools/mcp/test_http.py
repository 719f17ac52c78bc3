"""MCP servers over streamable HTTP: both eras, and faults that must stay with the call that met them."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import pytest
import uvicorn
from mcp.server.subscriptions import ToolsListChanged

from tests.support.proxy import forward_proxy
from tests.support.servers import running as serving
from tests.support.servers import running_server as serving_config
from tests.unit.tools.mcp.servers import good as good_server
from tests.unit.tools.mcp.servers.bad_http import bad_http
from tests.unit.tools.mcp.support import TIMEOUT, Watched, running, until
from toolway.settings.mcp_server import RemoteServerConfig
from toolway.tools.mcp import ConnectOptions, ReconnectPolicy
from toolway.types import ToolResult


def at(url: str, **more: Any) -> RemoteServerConfig:
    return RemoteServerConfig(**{"label": "web", "type": "http", "url": url, **more})


@asynccontextmanager
async def talking_to_bad(**how: Any) -> AsyncIterator[tuple[Watched, Any]]:
    async with bad_http(**how) as server, running(at(server.url)) as source:
        await source.ready()
        yield source, server


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("json_response", [True, False])
async def test_a_good_server_answers(era: str, json_response: bool) -> None:
    with serving(good_server.app(json_response=json_response)) as base:
        async with running(at(f"{base}/mcp", era=era)) as server:
            status = await server.ready()
            assert status.protocol == ("MCP 2026-07-28" if era == "modern" else "MCP 2025-11-25")
            assert (await server.call("echo", {"value": [1, "a"]})).text == "[1, 'a']"
            assert (await server.call("fail")).is_error


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_changed_list_is_read_again(era: str) -> None:
    with serving(good_server.app()) as base:
        async with running(at(f"{base}/mcp", era=era)) as server:
            await server.ready()
            grown = (await server.call("grow")).text
            await server.until(lambda status: grown in [tool.name for tool in status.tools])


async def announce(loop: asyncio.AbstractEventLoop) -> None:
    """Say again and again that the tools of the good server changed: the first time perhaps nobody listens yet."""
    while True:
        asyncio.run_coroutine_threadsafe(good_server.BUS.publish(ToolsListChanged()), loop)
        await anyio.sleep(0.1)


async def test_a_result_waits_for_news_of_changed_tools_no_longer_than_until_they_come() -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    config = uvicorn.Config(good_server.app(), log_config=None, ws="none", timeout_graceful_shutdown=1)
    policy = ReconnectPolicy(news_wait=math.inf)

    async def announce_after_the_result() -> None:
        await until(lambda: "slept" in good_server.EVENTS)
        await announce(loops[0])

    good_server.EVENTS.clear()
    with serving_config(config, on_start=loops.append) as base:
        async with (
            running(at(f"{base}/mcp", era="modern"), policy=policy) as server,
            anyio.create_task_group() as tasks,
        ):
            await server.ready()
            tasks.start_soon(announce_after_the_result)
            assert (await server.call("slow", {"seconds": 0})).text == "slept"
            tasks.cancel_scope.cancel()


@dataclass
class SecondListHeld:
    """An MCP server over HTTP whose second list of tools is made, or sent, when it is released."""

    held: Literal["request", "answer"]
    app: Any = field(default_factory=good_server.app)
    asked: int = 0
    answered: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-method", b"tools/list") not in scope.get("headers", ()):
            await self.app(scope, receive, send)
            return
        self.asked += 1
        is_held = self.asked == 2

        async def held(message: Any) -> None:
            if is_held:
                await until(self.released.is_set)
            await send(message)

        if is_held and self.held == "request":
            await until(self.released.is_set)
        await self.app(scope, receive, held)
        self.answered += 1


async def test_a_list_that_comes_late_does_not_replace_a_newer_one() -> None:
    """The owner lists again once it listens; a call that changes the tools does so beside it."""
    lists = SecondListHeld("answer")
    with serving(lists) as base:
        async with running(at(f"{base}/mcp", era="modern")) as server:
            await server.ready()
            await until(lambda: lists.asked == 2)
            grown = (await server.call("grow")).text
            await server.until(lambda status: grown in [tool.name for tool in status.tools])
            known = len(server.seen)
            lists.released.set()
            await until(lambda: lists.answered == 4)
            for status in [*server.seen[known:], server.source.status]:
                assert grown in [tool.name for tool in status.tools]


async def test_news_of_tools_that_a_list_had_already_are_told_all_the_same() -> None:
    """A request under way joins new tools at the news of them."""
    lists = SecondListHeld("request")
    loops: list[asyncio.AbstractEventLoop] = []
    config = uvicorn.Config(lists, log_config=None, ws="none", timeout_graceful_shutdown=1)
    with serving_config(config, on_start=loops.append) as base:
        async with (
            running(at(f"{base}/mcp", era="modern")) as server,
            anyio.create_task_group() as tasks,
        ):
            before = await server.ready()
            await until(lambda: lists.asked == 2)
            good_server.TOOLS.append(name := f"grown{len(good_server.TOOLS)}")
            lists.released.set()
            status = await server.until(lambda status: name in [tool.name for tool in status.tools])
            assert status.announced == before.announced
            tasks.start_soon(announce, loops[0])
            await server.until(lambda status: status.announced > before.announced)
            tasks.cancel_scope.cancel()


async def test_a_cancelled_call_closes_its_stream() -> None:
    async with talking_to_bad(modern=True) as (source, server):
        with anyio.move_on_after(0.2):
            await source.call("hang")
        with anyio.fail_after(TIMEOUT):
            await server.hung_up.wait()
        assert (await source.call("ok")).text == "fine"


async def test_an_old_server_is_told_of_a_cancelled_call() -> None:
    async with talking_to_bad() as (source, server):
        with anyio.move_on_after(0.2):
            await source.call("hang")
        with anyio.fail_after(TIMEOUT):
            while "notifications/cancelled" not in [method for method, _ in server.seen]:
                await anyio.lowlevel.checkpoint()


async def test_one_dropped_connection_fails_one_call() -> None:
    async with talking_to_bad() as (source, server):
        results: dict[str, ToolResult] = {}

        async def call(tool: str, key: str) -> None:
            results[key] = await source.call(tool)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "slow", "a")
            tasks.start_soon(call, "slow", "b")
            await call("drop", "c")
            server.released.set()
        assert results["c"].is_error
        assert "closed the connection" in results["c"].text
        assert (results["a"].text, results["b"].text) == ("fine", "fine")
        assert source.source.status.state == "ready"
        assert (await source.call("ok")).text == "fine"


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("s400", "HTTP 400 Bad Request"),
        ("s403", "wants other credentials (HTTP 403)"),
        ("s404", "HTTP 404 Not Found"),
        ("s429", "HTTP 429 Too Many Requests, to be tried again after 1"),
        ("s500", "HTTP 500 Internal Server Error"),
        ("s503", "HTTP 503 Service Unavailable"),
        ("redirect", "elsewhere not followed"),
        ("bad_json", "the server's answer is not JSON-RPC: {not json"),
        ("html", "a web page"),
        ("empty", "the server's answer is empty"),
        ("null_id", "no session (code -32001)"),
        ("foreign_error", "no session (code -32001)"),
        ("foreign_result", "under another id"),
        ("deep", "nested too deeply"),
        ("accepted", "202"),
        ("sse_truncated", "ended without a response"),
        ("sse_bad_json", "the server's answer is not JSON-RPC: {oops"),
        ("rpc_error", "oops (code -32603)"),
    ],
)
async def test_a_fault_is_told_and_stays_with_its_call(tool: str, said: str) -> None:
    async with talking_to_bad() as (source, _):
        result = await source.call(tool)
        assert result.is_error
        assert said in result.text
        assert (await source.call("ok")).text == "fine"


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("bad_result", "not a list"),
        ("unknown_content", '{"type":"video","data":"AA==","mimeType":"video/mp4"}\n\nt'),
        ("nulls", "t"),
        ("plain", "fine"),
        ("no_type", "fine"),
        ("array", "fine"),
        ("unannounced", "fine"),
        ("surrogate", "a\ufffdb"),
    ],
)
async def test_what_a_sloppy_server_meant_is_read(tool: str, said: str) -> None:
    async with talking_to_bad() as (source, _):
        result = await source.call(tool)
        assert (result.text, result.is_error) == (said, False)


async def test_a_server_that_floods_with_questions_is_left_and_found_again() -> None:
    async with talking_to_bad() as (source, _):
        assert (await source.call("flood")).is_error
        assert (await source.call("ok")).text == "fine"


@pytest.mark.parametrize(("tool", "size"), [("sse_big", 1_500_000), ("json_big", 20_000_000)])
async def test_a_large_result_arrives(tool: str, size: int) -> None:
    async with talking_to_bad() as (source, _):
        assert len((await source.call(tool)).text) == size


@pytest.mark.parametrize("tool", ["sse_big", "json_big"])
async def test_a_result_over_the_limit_fails_its_call(tool: str) -> None:
    async with bad_http() as server, running(at(server.url), max_result_bytes=1_000_000) as source:
        await source.ready()
        assert (await source.call(tool)).is_error
        assert (await source.call("ok")).text == "fine"


async def test_a_server_that_asks_back_is_declined() -> None:
    async with talking_to_bad(modern=True) as (source, _):
        assert json.loads((await source.call("input")).text) == [{"q": {"action": "decline"}}, "s1"]


async def test_a_forgotten_session_is_made_again_and_the_call_repeated() -> None:
    async with talking_to_bad(with_sessions=True) as (source, server):
        assert (await source.call("ok")).text == "fine"
        server.sessions.clear()
        assert (await source.call("ok")).text == "fine"
        assert server.made == 2
        assert source.source.status.state == "ready"


@pytest.mark.parametrize("modern", [False, True])
async def test_a_server_that_was_restarted_is_found_again_and_the_call_repeated(modern: bool) -> None:
    async with bad_http(modern=modern) as first, running(at(first.url)) as source:
        await source.ready()
        port = int(first.url.split(":")[2].split("/")[0])
        assert (await source.call("ok")).text == "fine"
        async with first_gone(first), bad_http(port, modern=modern):
            assert (await source.call("ok")).text == "fine"


@asynccontextmanager
async def first_gone(server: Any) -> AsyncIterator[None]:
    await server.stop()
    yield


async def test_a_server_is_reached_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bad_http() as server:
        port = urlsplit(server.url).port or 0
        async with forward_proxy({"mcp.corp.test": port}, user="me:p", connect_only=False) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            url = server.url.replace(f"127.0.0.1:{port}", "mcp.corp.test")
            async with running(at(url)) as source:
                await source.ready()
                assert (await source.call("ok")).text == "fine"
    assert any(b"http://mcp.corp.test/" in line for line in proxy.requests)


async def test_a_server_whose_name_is_unknown_is_said_to_be_that() -> None:
    async with running(at("http://no-such-host.invalid/mcp")) as source:
        await source.until(lambda status: bool(status.error))
        assert "its host name is unknown" in str(source.source.status.error)


async def test_a_server_that_is_down_fails_and_comes_back() -> None:
    async with (
        bad_http() as server,
        running(at(server.url), policy=ReconnectPolicy(first_delay=0.02, longest_delay=0.1)) as source,
    ):
        await source.ready()
        await server.stop()
        result = await source.call("ok")
        assert result.is_error
        assert "the server cannot be reached: it refuses connections" in result.text
        status = source.source.status
        assert (status.state, status.tools[0].available) == ("failed", False)
        async with bad_http(int(server.url.split(":")[2].split("/")[0])):
            await source.ready()
            assert source.source.status.tools[0].available
            assert (await source.call("ok")).text == "fine"


async def test_a_wrong_token_is_a_state_with_a_hint() -> None:
    async with bad_http(token="right") as server:
        async with running(at(server.url, headers={"Authorization": "Bearer wrong"})) as source:
            status = await source.until(lambda status: status.state == "needs auth")
            assert '"Authorization": "Bearer ..."' in (status.error or "")
        async with running(at(server.url, headers={"Authorization": "Bearer right"})) as source:
            await source.ready()


async def test_a_token_that_expires_is_a_state_until_it_is_good_again() -> None:
    async with talking_to_bad() as (source, server):
        server.token = "new"
        result = await source.call("s401")
        assert result.is_error
        status = await source.until(lambda status: status.state == "needs auth")
        assert not any(tool.available for tool in status.tools)
        assert (await source.call("ok")).is_error
        server.token = None
        await source.ready()
        assert (await source.call("ok")).text == "fine"


def test_clients_share_one_tls_context() -> None:
    from toolway.tools.mcp.http import http_client

    http_client({}, ConnectOptions())
    began = time.process_time()
    for _ in range(30):
        http_client({}, ConnectOptions())
    assert time.process_time() - began < 1, "a context of its own for each costs 70 ms"


async def test_a_modern_server_is_told_what_we_can_do_in_each_request() -> None:
    async def sampler(params: Any) -> Any:
        return {}

    async with bad_http(modern=True) as server:
        async with running(at(server.url), sampler=sampler) as source:
            await source.ready()
            await source.call("ok")
        async with running(at(server.url)) as source:
            await source.ready()
            await source.call("ok")
    calls = [body["params"]["_meta"] for method, body in server.bodies if method == "tools/call"]
    key = "io.modelcontextprotocol/clientCapabilities"
    assert [meta[key] for meta in calls] == [{"sampling": {}}, {}]


async def test_a_server_that_names_its_version_gets_a_second_handshake() -> None:
    async with talking_to_bad(only_version="2025-03-26") as (source, server):
        assert source.source.status.protocol == "MCP 2025-03-26"
        assert (await source.call("ok")).text == "fine"
    asked = [body["params"]["protocolVersion"] for method, body in server.bodies if method == "initialize"]
    assert asked == ["2025-11-25", "2025-03-26"]


async def test_a_url_without_its_path_is_told_in_words() -> None:
    async with bad_http(only_at="/mcp") as server:
        base = server.url.removesuffix("/mcp")
        for kind in ("http", "auto"):
            async with running(at(f"{base}/", type=kind)) as source:
                status = await source.until(lambda status: status.state == "failed")
                assert status.error == (
                    "the server answered HTTP 404 Not Found: 404 page not found; "
                    f"nothing speaks MCP at this URL, and most servers do at {base}/mcp"
                )


async def test_the_first_refusal_is_the_one_that_is_shown() -> None:
    async with bad_http(only_version="1.0") as server, running(at(server.url, type="auto")) as source:
        status = await source.until(lambda status: status.state == "failed")
        assert status.error == "Unsupported protocol version"
        assert status.error_stage == "initialize"


async def test_an_event_stream_that_is_refused_is_told_in_words() -> None:
    async with (
        bad_http(only_at="/mcp") as server,
        running(at(server.url.replace("/mcp", "/sse"), type="sse")) as source,
    ):
        status = await source.until(lambda status: status.state == "failed")
        assert status.error == "the server answered HTTP 404 Not Found: 404 page not found"
