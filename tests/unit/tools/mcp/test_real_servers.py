"""Servers that nobody here wrote, five at once from one file; `make real-servers` installs them and runs this."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.paths import ROOT
from tests.support.servers import free_port
from tests.unit.tools.mcp.support import TIMEOUT, running, until
from toolway.settings.load import load_settings
from toolway.settings.mcp_server import StdioServerConfig
from toolway.tools.catalog import Catalog
from toolway.tools.factory import open_sources
from toolway.types import ToolResult

PLACE = Path(os.environ.get("TOOLWAY_REAL_SERVERS", ROOT / ".real-servers"))
NODE = PLACE / "node_modules" / ".bin"
GIT = PLACE / "venv" / "bin" / "mcp-server-git"

pytestmark = pytest.mark.skipif(
    not (NODE / "mcp-server-everything").exists() or not GIT.exists() or not shutil.which("node"),
    reason=f"the servers are not installed in {PLACE}; make real-servers does it",
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("hello from a file\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


@asynccontextmanager
async def everything_over(transport: str) -> AsyncIterator[str]:
    port = free_port()
    command = [str(NODE / "mcp-server-everything"), transport]
    process = await anyio.open_process(
        command, env={**os.environ, "PORT": str(port)}, stdout=None, stderr=None
    )
    try:
        yield f"http://127.0.0.1:{port}/{'mcp' if transport == 'streamableHttp' else 'sse'}"
    finally:
        process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()


async def test_five_servers_from_one_file(repository: Path) -> None:
    servers: dict[str, Any] = {
        "everything": {"command": str(NODE / "mcp-server-everything"), "args": ["stdio"]},
        "filesystem": {"command": str(NODE / "mcp-server-filesystem"), "args": [str(repository)]},
        "git": {"command": str(GIT), "args": ["--repository", str(repository)]},
    }
    async with everything_over("streamableHttp") as http, everything_over("sse") as sse:
        servers |= {"web": {"url": http, "prefix": "web_"}, "old": {"url": sse, "prefix": "old_"}}
        path = repository / "mcp.json"
        path.write_text(json.dumps({"mcpServers": servers}))
        settings = load_settings({}, None, config=str(path))
        async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
            await until(lambda: all(source.status.state == "ready" for source in sources))

            async def call(name: str, **arguments: Any) -> ToolResult:
                with anyio.fail_after(TIMEOUT):
                    return await catalog.snapshot.call(catalog.snapshot.tools[name], arguments)

            names = catalog.snapshot.tools
            assert (
                await call("read_text_file", path=str(repository / "a.txt"))
            ).text == "hello from a file\n"
            assert "First" in (await call("git_log", repo_path=str(repository))).text
            echo = "echo" if "echo" in names else "everything__echo"
            for name in (echo, "web_echo", "old_echo"):
                assert (await call(name, message="grüß dich")).text == "Echo: grüß dich"


async def test_the_everything_server_shows_everything() -> None:
    config = StdioServerConfig(
        label="e", type="stdio", command=str(NODE / "mcp-server-everything"), args=("stdio",)
    )
    async with running(config) as server:
        await server.ready()
        assert "42" in (await server.call("get-sum", {"a": 40, "b": 2})).text
        assert (await server.call("get-tiny-image")).images
        assert "temperature" in (await server.call("get-structured-content", {"location": "New York"})).text
        heard: list[Any] = []
        arguments = {"duration": 1, "steps": 3}
        result = await server.call("trigger-long-running-operation", arguments, on_progress=heard.append)
        assert not result.is_error
        assert heard
        assert (await server.call("get-sum", {"a": "x"})).is_error
