"""Toolway with MCP servers over stdio and an OpenAPI service behind it, and clients of the SDK in front."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

from tests.support.app_server import AppServer, app_server
from tests.unit.tools.mcp.support import SERVERS

TOOLWAY = str(Path(sys.executable).with_name("toolway"))
GOOD = {"command": sys.executable, "args": [str(SERVERS / "good.py")]}
RICH = {"command": sys.executable, "args": [str(SERVERS / "rich.py")]}
PROFILES = {
    "weather": ["get_*"],
    "rich": ["rich.*"],
    "searched": {"tools": ["get_*", "rich.*"], "tool_search": "on"},
}

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="package")
def mcp_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"good": GOOD, "rich": RICH}}))
    return path


@pytest.fixture(scope="package")
def app(mcp_json: Path) -> Iterator[AppServer]:
    with app_server(config=str(mcp_json), profiles=PROFILES, max_body_bytes=600_000) as app:
        app.until_ready()
        yield app


@pytest.fixture(params=["http modern", "http legacy", "stdio modern", "stdio legacy"])
def connect(request: pytest.FixtureRequest, app: AppServer, mcp_json: Path) -> Connect:
    """A client of the SDK's, over each transport and in each era."""
    transport, era = request.param.split()
    mode = "2026-07-28" if era == "modern" else "legacy"

    @asynccontextmanager
    async def connected(**options: Any) -> AsyncIterator[Client]:
        place: Any = f"{app.url}/mcp"
        if transport == "stdio":
            env = {
                "TOOLWAY_CONFIG": str(mcp_json),
                "MCP_SERVER_ENDPOINTS": app.settings.tools.endpoints[0].url,
            }
            place = StdioServerParameters(command=TOOLWAY, args=["mcp"], env=env)
        async with Client(place, mode=mode, **options) as client:
            yield client

    return connected
