"""Toolway imports its own document, and has the same tools as before: from MCP servers and from OpenAPI services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.support.app_server import AppServer
from tests.support.gate import DEADLINE
from tests.unit.tools.mcp.servers import good
from toolway.settings.load import load_settings
from toolway.tools.catalog import Catalog, Snapshot
from toolway.tools.factory import open_sources
from toolway.types import JSON, Tool

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def imported(endpoint: str) -> AsyncIterator[Snapshot]:
    settings = load_settings({}, None, None, endpoints=endpoint)
    async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
        assert await catalog.wait_until_tried(DEADLINE)
        yield catalog.snapshot


def told(tools: Mapping[str, Tool]) -> dict[str, JSON]:
    return {
        name: {
            "description": tool.description,
            "parameters": tool.parameters,
            "annotations": tool.annotations,
            "extra": tool.extra,
        }
        for name, tool in tools.items()
    }


async def test_the_same_tools_come_back(app: AppServer, mcp_json):
    original = load_settings(
        {}, None, None, config=str(mcp_json), endpoints=app.settings.tools.endpoints[0].url
    )
    async with open_sources(original.tools) as sources, Catalog(sources).running() as catalog:
        with anyio.fail_after(DEADLINE):
            await catalog.wait_until_tried(DEADLINE)
        before = told(catalog.snapshot.callable)
    async with imported(app.url) as snapshot:
        after = told(snapshot.callable)
    # `grow` adds tools to the server behind the running Toolway alone.
    after = {name: tool for name, tool in after.items() if not name.startswith("grown")}
    assert set(after) == set(before)
    # How MCP's clients send an argument is nothing to a client of REST.
    del before["mirror"]["parameters"]["properties"]["region"]["x-mcp-header"]
    for name, tool in before.items():
        assert after[name] == tool, name


async def test_calls_through_two_toolways_say_the_same(app: AppServer):
    async with imported(f"{app.url}/tools/openapi.json") as snapshot:

        async def call(name: str, arguments: JSON) -> str:
            return (await snapshot.call(snapshot.tools[name], arguments)).text

        assert await call("get_weather", {"city": "Paris"}) == '{"city":"Paris","sky":"cloudy"}'
        assert await call("echo", {"value": "hi"}) == "\"'hi'\""
        assert await call("measure", {"what": "room"}) == '{"metres":2.5}'
        assert await call("fail", {}) == "The server answered 502 Bad Gateway: this did not work"
        image = await snapshot.call(snapshot.tools["image"], {})
        assert [one.data for one in image.images] == [good.PIXEL]


async def test_a_profiles_document_is_one_too(app: AppServer):
    async with imported(f"{app.url}/tools/weather") as snapshot:
        assert list(snapshot.callable) == ["get_weather"]
        result = await snapshot.call(snapshot.tools["get_weather"], {"city": "Rome"})
        assert result.text == '{"city":"Rome","sky":"cloudy"}'
