"""Clients of MCP that others wrote, unchanged, with one entry for all servers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compat.clients.installed import PLACE, SCRIPTS, TIMEOUT, missing
from tests.compat.clients.test_clients import set_turns
from tests.compat.clients.test_codex import Codex
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import tool_call
from tests.unit.tools.mcp.support import SERVERS

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

TOOLS = ["ask", "measure", "mirror", "tell", "think"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clients") / "mcp.json"
    entry = {"command": sys.executable, "args": [str(SERVERS / "rich.py")]}
    path.write_text(json.dumps({"mcpServers": {"rich": entry}}))
    return path


@pytest.fixture(scope="module")
def app(config: Path) -> Iterator[AppServer]:
    with app_server(config=str(config), endpoints="") as app:
        app.until_ready()
        yield app


def told(*command: str, source: Path | None = None) -> Any:
    text = source.read_text() if source else None
    ran = subprocess.run(
        command, input=text, cwd=PLACE, check=False, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("generation", ["first", "second"])
@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_the_typescript_sdk_has_everything(app: AppServer, config: Path, transport: str, generation: str):
    toolway = str(Path(sys.executable).with_name("toolway"))
    place = [f"{app.url}/mcp"] if transport == "http" else [toolway, "mcp", "--config", str(config)]
    said = told("node", "--input-type=module", "-", generation, *place, source=SCRIPTS / "node_mcp.mjs")
    assert said["tools"] == TOOLS
    assert said["called"]["structuredContent"] == {"metres": 2.5}
    assert said["prompts"] == ["write"]
    assert said["resources"] == ["config://app", "note://rich/1"]


@pytest.mark.parametrize("key", ["", "the-key"])
def test_mcp_remote_brings_a_client_of_stdio_to_the_endpoint(config: Path, key: str):
    """As in a client's `mcp.json`: `npx mcp-remote URL --header "Authorization: Bearer KEY"`."""
    header = ["--header", f"Authorization: Bearer {key}"] if key else []
    with app_server(config=str(config), endpoints="", api_keys=key) as app:
        app.until_ready(key or "any")
        command = [str(PLACE / "node_modules/.bin/mcp-remote"), f"{app.url}/mcp", *header]
        said = told("node", "--input-type=module", "-", "first", *command, source=SCRIPTS / "node_mcp.mjs")
    assert said["tools"] == TOOLS
    assert said["called"]["structuredContent"] == {"metres": 2.5}
    assert said["prompts"] == ["write"]


def test_the_inspector_lists_and_calls(app: AppServer):
    inspector = [
        str(PLACE / "node_modules/.bin/mcp-inspector"),
        "--cli",
        f"{app.url}/mcp",
        "--transport",
        "http",
    ]
    listed = told(*inspector, "--method", "tools/list")
    assert [tool["name"] for tool in listed["tools"]] == TOOLS
    called = told(*inspector, "--method", "tools/call", "--tool-name", "measure", "--tool-arg", "what=room")
    assert called["structuredContent"] == {"metres": 2.5}


ENTRY = """
[mcp_servers.toolway]
url = "{url}/mcp"
default_tools_approval_mode = "approve"
"""


def test_codex_calls_a_tool_behind_its_one_entry(app: AppServer, tmp_path: Path):
    """The model server is behind Toolway as well, which leaves Codex's tools to Codex."""
    name = "mcp__toolway__measure"
    set_turns(app, ("", tool_call(name, '{"what":"room"}', id="call_1")), ("It is small.",))
    codex = Codex(tmp_path, app.url, websockets=False, more=ENTRY.format(url=app.url))
    items = codex.says("How large is the room?")
    offered = [tool["function"]["name"] for tool in app.upstream.seen[0].json["tools"]]
    assert {f"mcp__toolway__{tool}" for tool in TOOLS} <= {*offered}
    (call,) = [item for item in items if item["type"] == "mcp_tool_call"]
    assert (call["server"], call["tool"], call["status"]) == ("toolway", "measure", "completed")
    assert call["result"]["structured_content"] == {"metres": 2.5}
    assert "2.5" in app.upstream.seen[-1].json["messages"][-1]["content"]
    assert items[-1]["text"] == "It is small."
