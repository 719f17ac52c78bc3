"""What is open for longer than a request, over a real port: it ends when its key or its session does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, tool_call, whole
from toolway.access.keys import hash_of

CHANGE = {"x-toolway-console": "open"}
BOTH = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
KEYS = {
    name: {"hash": hash_of(name), "routes": ["console", "chat", "mcp", "responses"]}
    for name in ("gone", "kept")
}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def write(path: Path, *keys: str) -> None:
    path.write_text(json.dumps({"mcpServers": {}, "keys": {key: KEYS[key] for key in keys}}))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mcp.json"
    write(path, "gone", "kept")
    return path


@pytest.fixture
def app(config: Path) -> Iterator[AppServer]:
    with app_server(whole({"content": "yes"}), config=str(config)) as server:
        yield server


def signed_in(app: AppServer, key: str) -> dict[str, str]:
    """The headers of a new session of the console, by which it may also change something."""
    url = f"{app.url}/console/api/session"
    answer = httpx2.post(url, json={"key": key}, headers=CHANGE)
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"cookie": cookie, "x-toolway-console": answer.json()["token"]}


@contextmanager
def stream(
    app: AppServer, path: str, headers: dict[str, str], body: Any = None, until: str = ""
) -> Iterator[Iterator[str]]:
    """The lines of an endless stream behind the one with `until` in it, or behind its head."""
    method, content = ("POST", json.dumps(body)) if body else ("GET", None)
    with httpx2.stream(method, app.url + path, headers=headers, content=content, timeout=DEADLINE) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        for line in lines if until else ():
            if until in line:
                break
        yield lines


def events(app: AppServer, session: dict[str, str]) -> Any:
    return stream(app, "/console/api/events?topics=conversations,state", session, until="hello")


def mcp_session(app: AppServer, key: str) -> dict[str, str]:
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "c", "version": "1"},
    }
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    headers = {**BOTH, "authorization": f"Bearer {key}"}
    answer = httpx2.post(f"{app.url}/mcp", json=hello, headers=headers)
    headers |= {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    httpx2.post(
        f"{app.url}/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers
    )
    return headers


def listen(app: AppServer, key: str) -> Any:
    """A stream of MCP's newest version, which has no sessions."""
    params = {"notifications": {"toolsListChanged": True}, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
    version = {"mcp-protocol-version": "2026-07-28", "mcp-method": "subscriptions/listen"}
    headers = {**BOTH, **version, "authorization": f"Bearer {key}"}
    return stream(app, "/mcp", headers, body, until="data: ")


def test_a_page_of_the_console_is_told_nothing_more_once_its_key_is_taken_away(app: AppServer, config: Path):
    with events(app, signed_in(app, "gone")) as told, events(app, signed_in(app, "kept")) as still:
        write(config, "kept")
        rest = list(told)
        app.ask(headers={"authorization": "Bearer kept"})
        assert any("What is the weather" in line for line in still)
    assert not any("weather" in line for line in rest)


def test_signing_out_ends_what_the_session_has_open_and_no_other(app: AppServer):
    leaves, stays = signed_in(app, "kept"), signed_in(app, "kept")
    with events(app, leaves) as told, events(app, stays) as still:
        httpx2.delete(f"{app.url}/console/api/session", headers=leaves)
        list(told)
        app.ask(headers={"authorization": "Bearer kept"})
        assert any("What is the weather" in line for line in still)


def test_streams_of_mcp_end_when_their_key_is_taken_away(app: AppServer, config: Path):
    headers = mcp_session(app, "gone")
    with stream(app, "/mcp", headers) as of_session, listen(app, "gone") as listened:
        write(config, "kept")
        assert not any("data:" in line for line in [*of_session, *listened])
    assert httpx2.get(f"{app.url}/mcp", headers=headers).status_code == 401
    write(config, "kept", "gone")  # who has a key again has the session again: its stream was let go
    with events(app, signed_in(app, "kept")) as changes:
        any("state" in line for line in changes)
    with stream(app, "/mcp", headers):
        pass


def test_a_websocket_on_which_nothing_is_said_ends_with_its_key(app: AppServer, config: Path):
    url = app.url.replace("http", "ws", 1) + "/v1/responses"
    with connect(url, additional_headers={"authorization": "Bearer gone"}) as client:
        write(config, "kept")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(DEADLINE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason.startswith("This API key was taken away")) == (
        1008,
        True,
    )


def test_what_was_opened_without_a_key_ends_with_the_first_one(tmp_path: Path):
    config = tmp_path / "mcp.json"
    config.write_text('{"mcpServers": {}}')
    with app_server(config=str(config)) as app:
        url = app.url.replace("http", "ws", 1) + "/v1/responses"
        with events(app, {}) as told, listen(app, "any") as listened, connect(url) as client:
            write(config, "kept")
            list(told)
            list(listened)
            with pytest.raises(ConnectionClosed):
                client.recv(DEADLINE)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_under_way_runs_no_more_calls_once_its_key_is_taken_away(config: Path, stream: bool):
    gate = Gate()

    async def slow(_: Any) -> Any:
        await gate()
        return "cloudy"

    def turn(number: int) -> Reply:
        call = tool_call("get_weather", json.dumps({"city": f"Rome {number}"}), id=f"call_{number}")
        return call_stream(call) if stream else whole({"tool_calls": [call]}, finish="tool_calls")

    tools = ToolService(get_weather=slow)
    with (
        app_server(turn(1), turn(2), turn(3), tools=tools, config=str(config)) as app,
        ThreadPoolExecutor() as threads,
    ):
        asked = threads.submit(app.ask, stream=stream, headers={"authorization": "Bearer gone"})
        gate.wait_for_arrival()
        write(config, "kept")
        while httpx2.get(f"{app.url}/mcp", headers={"authorization": "Bearer gone"}).status_code != 401:
            pass
        gate.open()
        answer = asked.result(DEADLINE)
        assert tools.calls == [("get_weather", {"city": "Rome 1"})]
        assert len(app.upstream.seen) == 2
        assert "This API key was taken away" in answer.text
        assert stream or answer.status_code == 401
