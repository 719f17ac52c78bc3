"""Toolways that are servers of one another: each tool is offered once, and the loop is told of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from mcp.client import Client

from tests.integration.mcp.conftest import RICH
from tests.support.app_server import AppServer, app_server, waiting_for_servers
from tests.support.gate import DEADLINE
from tests.support.servers import free_port, running_server
from tests.support.tools import ToolService
from toolway.app.asgi import create_app
from toolway.server.process import server_config
from toolway.settings.load import load_settings
from toolway.tools.catalog import STARTUP_WAIT
from toolway.tools.forwarding_loops import ITSELF

pytestmark = pytest.mark.anyio


@contextmanager
def toolway(folder: Path, port: int, **servers: object) -> Iterator[str]:
    """A Toolway with these servers at a port that is known before."""
    path = folder / f"{port}.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    settings = load_settings({}, None, None, config=str(path), endpoints="", refresh_interval=0.2)
    config = server_config(create_app(settings), settings.server, timeout_graceful_shutdown=1)
    # A loop would wait for itself.
    with waiting_for_servers(STARTUP_WAIT), running_server(config, port=port) as url:
        yield url


def states(url: str) -> dict[str, str]:
    found: dict[str, str] = httpx2.get(f"{url}/readyz", timeout=DEADLINE).json()["servers"]
    return found


async def names(url: str) -> list[str]:
    async with Client(f"{url}/mcp") as client:
        return [tool.name for tool in (await client.list_tools()).tools]


@pytest.mark.parametrize("path", ["mcp", "openapi.json"])
async def test_a_toolway_that_is_its_own_server_says_so(
    tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture
):
    port = free_port()
    place = f"http://127.0.0.1:{port}/{path}"
    own = {"url": place} if path == "mcp" else {"type": "openapi", "url": place}
    with toolway(tmp_path, port, rich=RICH, me=own) as url:
        while ITSELF not in caplog.text:
            assert states(url).keys() == {"rich", "me"}
        assert await names(url) == ["ask", "measure", "mirror", "tell", "think"]
        assert states(url)["me"] == "failed"


async def test_two_toolways_that_have_each_other_offer_each_tool_once(tmp_path: Path):
    ports = free_port(), free_port()
    first, second = (f"http://127.0.0.1:{port}/mcp" for port in ports)
    with (
        toolway(tmp_path, ports[0], rich=RICH, other={"url": second}) as one,
        app_server(tools=ToolService()) as service,
    ):
        tools = service.settings.tools.endpoints[0].url
        with toolway(
            tmp_path, ports[1], other={"url": first}, weather={"type": "openapi", "url": tools}
        ) as two:
            everything = ["ask", "get_weather", "list_cities", "measure", "mirror", "tell", "think"]
            while await names(one) != everything or await names(two) != everything:
                pass
            assert states(one) == {"rich": "ready", "other": "ready"}


async def test_only_a_toolway_is_told_the_path_of_a_tool(app: AppServer):
    async with Client(f"{app.url}/mcp") as client:
        listed = {tool.name: tool.meta for tool in (await client.list_tools()).tools}
    assert listed["echo"] is None
