"""Prompts, resources and completions of all servers through /mcp and `toolway mcp`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, ResourceTemplateReference

from tests.integration.mcp.conftest import GOOD, Connect
from tests.support.app_server import AppServer, app_server
from tests.support.servers import running
from tests.unit.tools.mcp.servers import rich
from tests.unit.tools.mcp.support import SERVERS

pytestmark = pytest.mark.anyio


def plain(model: Any) -> Any:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


async def test_everything_is_listed_under_names_that_say_whose_it_is(connect: Connect):
    async with connect() as client:
        resources = {item.uri: item for item in (await client.list_resources()).resources}
        templates = [
            item.uri_template for item in (await client.list_resource_templates()).resource_templates
        ]
        (prompt,) = (await client.list_prompts()).prompts
    assert set(resources) == {
        "toolway://good/note://1",
        "toolway://rich/config://app",
        "toolway://rich/note://rich/1",
    }
    assert resources["toolway://rich/note://rich/1"].title == "The first note"
    assert templates == ["toolway://rich/note://{author}/{number}"]
    assert (prompt.name, prompt.title, prompt.arguments[0].name) == ("rich__write", "Write about", "topic")


async def test_what_is_listed_can_be_had(connect: Connect):
    async with connect() as client:
        read = plain(await client.read_resource("toolway://rich/note://rich/1"))
        prompt = plain(await client.get_prompt("rich__write", {"topic": "tea"}))
        words = await client.complete(PromptReference(name="rich__write"), {"name": "topic", "value": "te"})
        template = ResourceTemplateReference(uri="toolway://rich/note://{author}/{number}")
        parts = await client.complete(template, {"name": "author", "value": "a"})
    assert read["contents"] == [
        {"uri": "toolway://rich/note://rich/1", "mimeType": "text/plain", "text": "rich: note://rich/1"}
    ]
    assert prompt["messages"][0]["content"]["text"] == "rich: write about tea"
    assert words.completion.values == ["rich-ref/prompt-te"]
    assert parts.completion.values == ["rich-ref/resource-a"]


async def test_a_resource_that_a_tool_returned_can_be_read_under_its_own_uri(connect: Connect):
    async with connect() as client:
        read = plain(await client.read_resource("config://app"))
    assert read["contents"][0]["uri"] == "config://app"


async def test_what_is_not_there_is_an_error_of_the_protocol(connect: Connect):
    async with connect() as client:
        with pytest.raises(MCPError, match="no such resource") as unknown:
            await client.read_resource("toolway://rich/other://1")
        assert unknown.value.code == -32602
        with pytest.raises(MCPError, match="Unknown prompt: write"):
            await client.get_prompt("write", {})


async def test_a_profile_has_the_prompts_and_resources_that_its_patterns_take(app: AppServer):
    async with Client(f"{app.url}/mcp/rich") as client:
        assert len((await client.list_prompts()).prompts) == 1
        assert len((await client.list_resources()).resources) == 2
        with pytest.raises(MCPError):
            await client.read_resource("toolway://good/note://1")
    async with Client(f"{app.url}/mcp/weather") as client:
        assert (await client.list_prompts()).prompts == []
        with pytest.raises(MCPError):
            await client.get_prompt("rich__write", {"topic": "tea"})


@asynccontextmanager
async def alone(tmp_path: Path, **servers: Any) -> AsyncIterator[Callable[..., Client]]:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    with app_server(config=str(path), endpoints="") as app:
        app.until_ready()
        yield lambda **options: Client(f"{app.url}/mcp", **options)


async def test_one_servers_prompts_and_resources_keep_their_names(tmp_path: Path):
    with running(rich.app(), lifespan="on") as url:
        async with alone(tmp_path, rich={"url": f"{url}/mcp"}) as client, client() as one:
            assert [item.name for item in (await one.list_prompts()).prompts] == ["write"]
            assert [item.uri for item in (await one.list_resources()).resources] == [
                "config://app",
                "note://rich/1",
            ]
            assert plain(await one.get_prompt("write", {"topic": "x"}))["messages"]
            assert plain(await one.read_resource("note://a/b"))["contents"][0]["text"] == "rich: note://a/b"


async def test_servers_with_the_same_prompts_do_not_clash_and_a_dead_one_takes_nothing_away(tmp_path: Path):
    path = tmp_path / "mcp.json"
    dead = {"command": sys.executable, "args": ["-c", "raise SystemExit(3)"]}
    two = {"command": sys.executable, "args": [str(SERVERS / "rich.py"), "two"]}
    one = {"command": sys.executable, "args": [str(SERVERS / "rich.py"), "one"]}
    path.write_text(json.dumps({"mcpServers": {"a": one, "a__b": two, "dead": dead, "good": GOOD}}))
    with app_server(config=str(path), endpoints="") as app:
        while httpx2.get(f"{app.url}/readyz").json()["servers"] != {
            "a": "ready",
            "a__b": "ready",
            "dead": "failed",
            "good": "ready",
        }:
            pass
        async with Client(f"{app.url}/mcp") as client:
            names = [prompt.name for prompt in (await client.list_prompts()).prompts]
            assert names[0] == "a__write"
            assert names[1].startswith("a_b_")
            said = [plain(await client.get_prompt(name, {"topic": "x"})) for name in names]
            assert [item["messages"][0]["content"]["text"][:4] for item in said] == ["one:", "two:"]
            assert "echo" in {tool.name for tool in (await client.list_tools()).tools}


STARTS_AGAIN = """
import os, pathlib, sys, time
here = pathlib.Path(__file__).parent
is_first = not (here / "pid").exists()
(here / "pid").write_text(str(os.getpid()))
while not is_first and not (here / "go").exists():
    time.sleep(0.01)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


async def test_what_a_server_has_is_listed_while_it_is_started_again(tmp_path: Path):
    program = tmp_path / "server.py"
    program.write_text(STARTS_AGAIN)
    entry = {"command": sys.executable, "args": [str(program), str(SERVERS / "rich.py")]}
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"rich": entry}}))
    with app_server(config=str(path), endpoints="") as app:
        app.until_ready()
        async with Client(f"{app.url}/mcp") as client:

            async def listed() -> list[Any]:
                lists = [
                    await client.list_prompts(),
                    await client.list_resources(),
                    await client.list_tools(),
                ]
                return [plain(each) for each in lists]

            before = await listed()
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            while httpx2.get(f"{app.url}/readyz").json()["servers"]["rich"] != "starting":
                pass
            assert await listed() == before
            (tmp_path / "go").touch()
            assert (
                plain(await client.read_resource("note://a/b"))["contents"][0]["text"] == "rich: note://a/b"
            )
