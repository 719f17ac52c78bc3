"""MCP servers over HTTP+SSE, the transport of 2024-11-05 that many servers still speak."""

from __future__ import annotations

import pytest

from tests.support.servers import running as serving
from tests.unit.tools.mcp.servers import good as good_server
from tests.unit.tools.mcp.support import running
from toolway.settings.mcp_server import RemoteServerConfig


@pytest.mark.parametrize("kind", ["sse", "auto"])
async def test_a_good_server_answers(kind: str) -> None:
    with serving(good_server.sse_app()) as base:
        async with running(RemoteServerConfig(label="old", type=kind, url=f"{base}/sse")) as server:
            await server.ready()
            assert (await server.call("echo", {"value": {"a": 1}})).text == "{'a': 1}"
            assert len((await server.call("big")).text) == 3_000_000, "the SDK's client takes 1 MiB"


async def test_a_server_that_was_restarted_is_found_again() -> None:
    with serving(good_server.sse_app()) as base:
        config = RemoteServerConfig(label="old", type="sse", url=f"{base}/sse")
        async with running(config) as server:
            await server.ready()
            await server.call("hang_up")
            assert (await server.call("echo", {"value": 1})).text == "1"


async def test_a_url_without_a_type_is_asked_what_it_speaks() -> None:
    with serving(good_server.sse_app(path="/events")) as base:
        async with running(RemoteServerConfig(label="old", type="auto", url=f"{base}/events")) as server:
            await server.ready()
            assert (await server.call("echo", {"value": 1})).text == "1"
