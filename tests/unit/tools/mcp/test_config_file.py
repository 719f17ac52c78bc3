"""From `mcp.json` to tools in a chat: shaped, found by asking, and changed while requests run."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.answers import chunks_of, content_of
from tests.support.app_server import app_server
from tests.support.logs import logged
from tests.support.servers import running as serving
from tests.support.tools import ToolService
from tests.support.upstream import call_stream, text_stream, tool_call
from tests.unit.tools.mcp.servers import good as good_server
from tests.unit.tools.mcp.servers.bad_http import bad_http
from tests.unit.tools.mcp.support import SERVERS, TIMEOUT, until
from toolway.app import reload as reload_module
from toolway.settings.load import load_settings
from toolway.tools.catalog import Catalog
from toolway.tools.factory import SourceFactory, open_sources
from toolway.types import ToolResult

STDIO = {"command": sys.executable, "args": [str(SERVERS / "bad_stdio.py")]}


class Live:
    """A running catalog with short words for what tests ask."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def names(self) -> set[str]:
        return set(self.catalog.snapshot.offered)

    async def call(self, name: str, **arguments: Any) -> ToolResult:
        snapshot = self.catalog.snapshot
        with anyio.fail_after(TIMEOUT):
            return await snapshot.call(snapshot.tools[name], arguments)


def write(path: Path, **servers: Any) -> Path:
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


def settings_of(path: Path, **more: Any) -> Any:
    return load_settings({}, None, config=str(path), **more)


@asynccontextmanager
async def settled(settings: Any) -> AsyncIterator[Live]:
    async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
        assert await catalog.wait_until_tried(TIMEOUT)
        yield Live(catalog)


async def test_a_server_is_offered_as_its_entry_says(tmp_path: Path) -> None:
    entry = {
        **STDIO, "include": ["ok", "echo", "pid"], "exclude": ["p*"], "prefix": "x_", "rename": {"ok": "fine"},
        "description": {"echo": "Says it again.", "ecko": "?"}, "timeout": 7,
    }  # fmt: skip
    async with settled(settings_of(write(tmp_path / "mcp.json", s=entry))) as live:
        assert live.names() == {"fine", "x_echo"}
        echo = live.catalog.snapshot.tools["x_echo"]
        assert (echo.description, echo.timeout, echo.server) == ("Says it again.", 7, "s")
        assert json.loads((await live.call("x_echo", a=[1])).text) == {"a": [1]}
        assert live.catalog.sources[0].status.warnings == (
            "description: there is no tool 'ecko' on this server",
        )


async def test_an_openapi_service_in_the_file_gets_its_headers(tmp_path: Path) -> None:
    service = ToolService()
    with serving(service, lifespan="off") as base:
        path = write(tmp_path / "mcp.json", w={"type": "openapi", "url": base, "headers": {"X-Key": "k1"}})
        async with settled(settings_of(path)) as live:
            assert live.catalog.sources[0].kind == "openapi"
            assert live.names()


@pytest.mark.parametrize("path", ["/mcp", "/tools"])
async def test_an_endpoint_that_speaks_mcp_is_found_out(path: str) -> None:
    async with bad_http() as server:
        url = server.url.replace("/mcp", path)
        async with settled(load_settings({}, None, None, endpoints=url)) as live:
            assert live.catalog.sources[0].kind == "mcp"
            assert (await live.call("ok")).text == "fine"


@pytest.mark.parametrize("token", [None, "right"])
async def test_an_endpoint_that_lacks_its_last_part_is_found(
    token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with bad_http(only_at="/mcp", token=token) as server:
        base = server.url.removesuffix("/mcp")
        async with settled(load_settings({}, None, None, endpoints=base)) as live:
            source = live.catalog.sources[0]
            assert source.kind == "mcp"
            if token is None:
                assert (await live.call("ok")).text == "fine"
            else:
                await until(lambda: source.status.state == "needs auth")
    assert f"{base} is no MCP endpoint, but {base}/mcp is, and is used" in caplog.text


async def test_an_endpoint_that_speaks_sse_is_found_out() -> None:
    with serving(good_server.sse_app()) as base:
        for url in (f"{base}/sse", base):
            async with settled(load_settings({}, None, None, endpoints=url)) as live:
                assert (await live.call("echo", value=1)).text == "1"


@pytest.mark.parametrize("path", ["", "/mcp"])
async def test_an_endpoint_with_a_document_is_found_out(path: str) -> None:
    service = ToolService()
    with serving(mounted(service, path), lifespan="off") as base:
        async with settled(load_settings({}, None, None, endpoints=base + path)) as live:
            await until(lambda: live.catalog.sources[0].status.state == "ready")
            assert live.catalog.sources[0].kind == "openapi"
            assert live.names()


def mounted(app: Any, path: str) -> Any:
    async def below(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": scope["path"].removeprefix(path) or "/"}, receive, send)

    return below


async def test_a_changed_file_changes_the_servers_and_drops_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload_module, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mcp.json", stays={**STDIO, "prefix": "a_"}, goes={**STDIO, "prefix": "b_"})
    settings = settings_of(path)
    factory = SourceFactory()
    async with Catalog(factory.sources(settings.tools)).running() as catalog:
        await catalog.wait_until_tried(TIMEOUT)
        live = Live(catalog)
        stayed, left = (await live.call("a_pid")).text, (await live.call("b_pid")).text
        async with reload_module.watch_config(settings, factory, catalog):
            with catalog.use() as snapshot:
                write(path, stays={**STDIO, "prefix": "a_"}, new={**STDIO, "prefix": "c_"})
                await until(lambda: "c_pid" in live.names())
                assert "b_pid" not in live.names()
                assert (await live.call("a_pid")).text == stayed, "a server that has not changed goes on"
                assert (await snapshot.call(snapshot.tools["b_pid"], {})).text == left, (
                    "a request keeps what it has"
                )
            await until(lambda: not Path(f"/proc/{left}").exists())

            path.write_text('{"mcpServers": {"stays": {"comand": "x"}}}')
            await until(lambda: "it needs a" in caplog.text)
            assert (await live.call("a_pid")).text == stayed, "a broken edit changes nothing"


async def test_an_edit_while_toolway_starts_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_module, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mcp.json")
    settings = settings_of(path)
    write(path, s={**STDIO, "prefix": "a_"})
    factory = SourceFactory()
    async with (
        Catalog(factory.sources(settings.tools)).running() as catalog,
        reload_module.watch_config(settings, factory, catalog),
    ):
        await until(lambda: "a_pid" in Live(catalog).names())


async def test_a_secret_of_a_changed_file_is_masked_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload_module, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mcp.json", s=STDIO)
    settings = settings_of(path)
    factory = SourceFactory()
    with logged(settings) as written:
        async with (
            Catalog(factory.sources(settings.tools)).running() as catalog,
            reload_module.watch_config(settings, factory, catalog),
        ):
            await catalog.wait_until_tried(TIMEOUT)
            write(path, s={**STDIO, "env": {"KEY": "canary-of-the-edit"}})
            await until(lambda: "changed: s" in written.getvalue())
            logging.getLogger("toolway.server.s").warning("%s", "it says canary-of-the-edit")
    assert "it says ***" in written.getvalue()
    assert "canary" not in written.getvalue()


def test_a_server_that_is_being_restarted_does_not_make_toolway_unready(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    script = f'while [ -e {closed} ]; do sleep 0.01; done; exec "$0" "$@"'
    entry = {"command": "sh", "args": ["-c", script, STDIO["command"], *STDIO["args"]]}
    path = write(tmp_path / "mcp.json", s=entry)
    replies = call_stream(tool_call("pid", "{}")), text_stream("done")
    with app_server(*replies, endpoints="", config=str(path)) as app:
        assert app.until_servers_are(s="ready").json()["status"] == "ready"
        app.ask(stream=True)
        (asked,) = [seen.json for seen in app.upstream.seen if b"tool_call_id" in seen.body]
        closed.touch()
        os.kill(int(asked["messages"][-1]["content"]), signal.SIGKILL)
        restarting = app.until_servers_are(s="starting")
        closed.unlink()
        assert (restarting.status_code, restarting.json()["status"]) == (200, "degraded")
        assert app.until_servers_are(s="ready").json()["status"] == "ready"


def test_tools_of_a_stdio_server_reach_a_chat(tmp_path: Path) -> None:
    path = write(tmp_path / "mcp.json", files=STDIO)
    call = tool_call("echo", '{"n": 1}')
    with app_server(call_stream(call), text_stream("done"), endpoints="", config=str(path)) as app:
        assert content_of(chunks_of(app.ask(stream=True).text)) == "done"
    first, second = [seen.json for seen in app.upstream.seen if seen.path == b"/v1/chat/completions"]
    assert "echo" in [tool["function"]["name"] for tool in first["tools"]]
    assert json.loads(second["messages"][-1]["content"]) == {"n": 1}
