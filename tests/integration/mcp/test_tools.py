"""/mcp and `toolway mcp` as the SDK's clients use them: tools listed, called, reported on, cancelled, changed."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from tests.integration.mcp.conftest import Connect
from tests.support.app_server import AppServer
from tests.support.gate import DEADLINE
from tests.unit.tools.mcp.servers import good, rich

pytestmark = pytest.mark.anyio


def plain(model: Any) -> Any:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


async def test_every_tool_is_listed_as_its_server_gave_it(connect: Connect):
    async with connect() as client:
        listed = {tool.name: plain(tool) for tool in (await client.list_tools()).tools}
    assert set(listed) >= {"measure", "echo", "get_weather", "list_cities"}
    assert list(listed) == sorted(listed)
    assert listed["measure"] == rich.MEASURE
    weather = listed["get_weather"]
    assert weather["description"] == "Runs get_weather"
    assert weather["inputSchema"]["required"] == ["city"]
    assert weather["annotations"] == {"readOnlyHint": False, "idempotentHint": False}


async def test_results_come_through_unharmed(connect: Connect):
    async with connect() as client:
        measured = plain(await client.call_tool("measure", {"what": "room"}))
        everything = plain(await client.call_tool("everything", {}))
        image = plain(await client.call_tool("image", {}))
        weather = plain(await client.call_tool("get_weather", {"city": "Paris"}))
    assert measured["structuredContent"] == {"metres": 2.5}
    assert measured["content"][0]["annotations"] == {"priority": 1.0}
    assert measured["_meta"]["example.com/by"] == "rich"
    assert everything["content"] == plain(good.everything())["content"]
    assert image["content"] == [{"type": "image", "data": good.PIXEL, "mimeType": "image/png"}]
    assert weather["content"] == [{"type": "text", "text": '{"city":"Paris","sky":"cloudy"}'}]


async def test_a_tools_failure_is_a_result_in_its_own_words(connect: Connect):
    async with connect() as client:
        failed = await client.call_tool("fail", {})
        wrong = await client.call_tool("get_weather", {"town": 1})
        repaired = await client.call_tool("slow", {"seconds": "0"})
        with pytest.raises(
            MCPError, match=r"Unknown tool: get_whether\. Did you mean get_weather"
        ) as unknown:
            await client.call_tool("get_whether", {})
    assert (failed.is_error, plain(failed)["content"][0]["text"]) == (True, "this did not work")
    assert wrong.is_error
    assert "`city` is required" in plain(wrong)["content"][0]["text"]
    assert not repaired.is_error
    assert unknown.value.code == -32602


async def test_a_tool_can_be_called_by_its_qualified_name(connect: Connect):
    async with connect() as client:
        assert plain(await client.call_tool("good__echo", {"value": 7}))["content"][0]["text"] == "7"


async def test_progress_of_the_server_behind_reaches_the_client(connect: Connect):
    reports: list[Any] = []

    async def note(*report: Any) -> None:
        reports.append(report)

    async with connect() as client:
        await client.call_tool("slow", {"seconds": 0}, progress_callback=note)
    assert reports == [(1.0, 2.0, "half way")]


async def test_a_cancelled_call_is_cancelled_at_the_server_behind(connect: Connect):
    async with connect() as client:
        before = await events(client)
        started = anyio.Event()

        async def note(*_: Any) -> None:
            started.set()

        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                await client.call_tool("slow", {"seconds": 60}, progress_callback=note)

            tasks.start_soon(call)
            with anyio.fail_after(DEADLINE):
                await started.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(DEADLINE):
            while (await events(client))[len(before) :] != ["started", "cancelled"]:
                await anyio.lowlevel.checkpoint()


async def events(client: Client) -> list[str]:
    said = await client.call_tool("events", {})
    return [word for word in plain(said)["content"][0]["text"].split() if word in ("started", "cancelled")]


async def test_a_client_hears_of_changed_tools(connect: Connect):
    heard = anyio.Event()

    async def note(message: Any) -> None:
        if "ToolListChanged" in type(getattr(message, "root", message)).__name__:
            heard.set()

    async with connect(message_handler=note) as client, anyio.create_task_group() as tasks:
        listening = anyio.Event()

        async def listen() -> None:
            async with client.listen(tools_list_changed=True) as changes:
                listening.set()
                async for _ in changes:
                    heard.set()

        if client.protocol_version >= "2026":
            tasks.start_soon(listen)
            await listening.wait()
        before = {tool.name for tool in (await client.list_tools()).tools}
        with anyio.fail_after(DEADLINE):
            await client.call_tool("grow", {})
            await heard.wait()
            # The one that was added may also be another test's: what counts is that a list asked for now is new.
            after = {tool.name for tool in (await client.list_tools(cache_mode="refresh")).tools}
        assert after > before
        tasks.cancel_scope.cancel()


def text_of(result: Any) -> str:
    return "".join(block.text for block in result.content)


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_a_profile_may_have_its_tools_searched(app: AppServer, mode: str):
    async with Client(f"{app.url}/mcp/searched", mode=mode) as client:
        listed = (await client.list_tools()).tools
        assert [tool.name for tool in listed] == ["call_tool", "search_tools"]
        assert "get_weather" in listed[1].description and "list_cities" not in listed[1].description
        found = text_of(await client.call_tool("search_tools", {"query": "weather of a city"}))
        assert '"name":"get_weather"' in found and "list_cities" not in found
        arguments = {"name": "get_weather", "arguments": {"city": "Paris"}}
        for name, given in (("call_tool", arguments), ("get_weather", arguments["arguments"])):
            assert "cloudy" in text_of(await client.call_tool(name, given))
        for given in (
            {"name": "list_cities", "arguments": {}},
            {"name": "get_weather", "arguments": {"city": 3.5}},
            {},
        ):
            assert (await client.call_tool("call_tool", given)).is_error
        assert (await client.call_tool("search_tools", {})).is_error
        with pytest.raises(MCPError, match=r"Unknown tool: list_cities\.$"):
            await client.call_tool("list_cities", {})


async def test_a_profile_shows_its_tools_and_no_others(app: AppServer):
    async with Client(f"{app.url}/mcp/weather") as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["get_weather"]
        with pytest.raises(MCPError, match=r"Unknown tool: list_cities\.$"):
            await client.call_tool("list_cities", {})
    async with Client(f"{app.url}/mcp/rich") as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == [
            "ask",
            "measure",
            "mirror",
            "tell",
            "think",
        ]
