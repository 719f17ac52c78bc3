"""Tools that a tool loads: usable in the same request, behind those that were there."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_server import POLL_SECONDS, AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.servers import running
from tests.support.upstream import Reply, call_stream, text_stream, tool_call
from tests.unit.tools.mcp.servers import good
from toolway.tools.mcp import ReconnectPolicy

KINDS = ["stdio", "http", "legacy http"]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch):
    """News that come on another stream may take longer on a machine that does much else."""
    monkeypatch.setitem(ReconnectPolicy.__init__.__kwdefaults__, "news_wait", 3.0)


@contextmanager
def serving(kind: str, directory: Path, *replies: Reply, **settings: Any) -> Iterator[AppServer]:
    """Toolway with a real MCP server whose tool `grow` adds others."""
    if kind == "stdio":
        heard = directory / "heard"
        program = {
            "command": sys.executable,
            "args": [str(good.__file__)],
            "env": {good.HEARD: str(heard)},
        }
        with _configured(program, directory, *replies, **settings) as app:
            end = time.monotonic() + DEADLINE
            while not heard.exists():
                assert time.monotonic() < end, "nobody listens to the news"
                time.sleep(POLL_SECONDS)
            yield app
        return
    era = {"era": "legacy"} if kind.startswith("legacy") else {}
    server = Listened(good.app())
    with (
        running(server) as url,
        _configured({"url": f"{url}/mcp", **era}, directory, *replies, **settings) as app,
    ):
        assert server.heard.wait(DEADLINE), "nobody listens to the news"
        yield app


class Listened:
    """An MCP server over HTTP, and whether somebody listens to its news: opened behind the first list of tools."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.heard = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sign = None
        if scope.get("method") == "GET":
            sign = "http.response.start"
        elif (b"mcp-method", b"subscriptions/listen") in scope.get("headers", ()):
            sign = "http.response.body"  # its first event says that it listens

        async def note(message: Any) -> None:
            await send(message)
            if message["type"] == sign:
                self.heard.set()

        await self._app(scope, receive, note)


@contextmanager
def _configured(
    entry: dict[str, Any], directory: Path, *replies: Reply, **settings: Any
) -> Iterator[AppServer]:
    path = directory / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"good": entry}}))
    with app_server(*replies, endpoints="", config=str(path), **settings) as app:
        app.until_servers_are(good="ready")
        yield app


def offers(app: AppServer) -> list[list[str]]:
    """The names of the tools in each request of the model, in order."""
    return [[tool["function"]["name"] for tool in seen.json.get("tools", ())] for seen in app.upstream.seen]


def grow(count: int = 1) -> Reply:
    return call_stream(tool_call("grow", json.dumps({"count": count})))


def results(app: AppServer) -> list[str]:
    messages = app.upstream.seen[-1].json["messages"]
    return [message["content"] for message in messages if message["role"] == "tool"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tool_that_a_tool_loaded_is_called_in_the_same_request(kind: str, tmp_path: Path):
    name = f"grown{len(good.TOOLS) if kind != 'stdio' else 12}"
    replies = grow(), call_stream(tool_call(name, "{}")), grow(), text_stream("Done.")
    with serving(kind, tmp_path, *replies) as app:
        app.ask(stream=True)
        before, second, _, last = offers(app)
        definitions = [json.dumps(seen.json["tools"]) for seen in app.upstream.seen]
        assert results(app)[:2] == [name, "grown"]
        assert second == [*before, name]
        assert last[:-1] == second
        assert last[-1].startswith("grown")
    assert all(later.startswith(earlier[:-1]) for earlier, later in itertools.pairwise(definitions))


def test_hundreds_of_loaded_tools_are_there_in_the_next_round(tmp_path: Path):
    with serving("stdio", tmp_path, grow(400), text_stream("Done.")) as app:
        app.ask(stream=True)
        first, second = offers(app)
    assert len(second) == len(first) + 400


def test_loaded_tools_that_the_request_did_not_choose_stay_out(tmp_path: Path):
    with serving(
        "stdio", tmp_path, grow(2), call_stream(tool_call("grown13", "{}")), text_stream("Done.")
    ) as app:
        app.ask(stream=True, headers={"X-Toolway-Tools": "gro?, *12"})
        assert offers(app) == [["grow"], ["grow", "grown12"], ["grow", "grown12"]]
        assert "there is no tool named 'grown13'" in results(app)[1]


def test_a_loaded_tool_with_the_name_of_a_client_s_tool_stays_the_client_s(tmp_path: Path):
    mine = {"type": "function", "function": {"name": "grown12", "parameters": {"type": "object"}}}
    with serving("stdio", tmp_path, grow(), call_stream(tool_call("grown12", "{}"))) as app:
        answer = app.ask(stream=True, tools=[mine])
        assert offers(app)[1].count("grown12") == 1
        assert '"name":"grown12"' in answer.text


@pytest.mark.parametrize("way", ["append", "call"])
def test_a_loaded_tool_is_found_and_called_in_the_same_request_where_tools_are_searched(
    way: str, tmp_path: Path
):
    def through(name: str, arguments: Any, id: str) -> Reply:
        return call_stream(tool_call("call_tool", json.dumps({"name": name, "arguments": arguments}), id=id))

    search = call_stream(tool_call("search_tools", '{"query": "grown12"}', id="s"))
    replies = through("grow", {"count": 1}, "a"), search, through("grown12", {}, "b"), text_stream("Done.")
    with serving("stdio", tmp_path, *replies, tool_search="on", tool_search_way=way) as app:
        app.ask(stream=True)
        loaded, found, ran = results(app)
    assert loaded == "grown12"
    assert '"name":"grown12"' in found
    assert ran == "grown"
