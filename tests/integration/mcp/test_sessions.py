"""How many sessions /mcp has for one caller and for all, and which of them ends for a new one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.integration.mcp.test_door import HEADERS, hello, post
from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE, Gate


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[AppServer]:
    """Toolway with room for few sessions."""
    monkeypatch.setattr("toolway.api.mcp.sessions.MAX_SESSIONS_OF_CALLER", 3)
    monkeypatch.setattr("toolway.api.mcp.sessions.MAX_SESSIONS", 5)
    with app_server(api_keys="one-key,two-key,three-key") as app:
        yield app


def of(key: str, session: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}-key", "mcp-session-id": session}


def begin(app: AppServer, key: str) -> str:
    answer = post(app, hello(), Authorization=f"Bearer {key}-key")
    assert answer.status_code == 200, answer.text
    return str(answer.headers["mcp-session-id"])


def lives(app: AppServer, key: str, session: str) -> bool:
    status = post(app, {"jsonrpc": "2.0", "id": 2, "method": "ping"}, **of(key, session)).status_code
    assert status in (200, 404)
    return status == 200


def test_a_caller_with_its_number_loses_the_session_that_was_idle_the_longest(app: AppServer):
    first, second, third = (begin(app, "one") for _ in range(3))
    assert lives(app, "one", first)
    fourth = begin(app, "one")
    assert [lives(app, "one", session) for session in (first, second, third, fourth)] == [
        True,
        False,
        True,
        True,
    ]


def test_a_flood_of_one_caller_ends_no_session_of_another(app: AppServer):
    mine = begin(app, "two"), begin(app, "two")
    for _ in range(20):
        begin(app, "one")
    assert all(lives(app, "two", session) for session in mine)
    begin(app, "three")
    assert all(lives(app, "two", session) for session in mine), "where all is full, who has most gives one"


def test_a_session_with_an_open_stream_is_not_idle(app: AppServer):
    first, second, _ = (begin(app, "one") for _ in range(3))
    with httpx2.stream("GET", f"{app.url}/mcp", headers={**HEADERS, **of("one", first)}) as listening:
        assert listening.status_code == 200
        begin(app, "one")
        assert lives(app, "one", first)
        assert not lives(app, "one", second)


def test_a_session_with_a_call_under_way_is_not_idle(app: AppServer):
    gate = Gate()

    async def slow(_: Any) -> Any:
        await gate()
        return "cloudy"

    app.tools.behaviours["get_weather"] = slow
    first, second, third = (begin(app, "one") for _ in range(3))
    post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **of("one", first))
    call = {"name": "get_weather", "arguments": {"city": "Rome"}}
    body = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": call}
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(post, app, body, **of("one", first))
        gate.wait_for_arrival()
        assert lives(app, "one", second)
        assert lives(app, "one", third)
        begin(app, "one")
        assert not lives(app, "one", second)
        gate.open()
        assert "cloudy" in asked.result(DEADLINE).text
    assert lives(app, "one", first)


def test_a_caller_none_of_whose_sessions_is_idle_begins_no_more(
    app: AppServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("toolway.api.mcp.sessions.MAX_SESSIONS_OF_CALLER", 1)
    first = begin(app, "one")
    with httpx2.stream("GET", f"{app.url}/mcp", headers={**HEADERS, **of("one", first)}):
        refused = post(app, hello(), Authorization="Bearer one-key")
        assert refused.status_code == 503
        assert "Too many open sessions" in refused.json()["error"]["message"]
        begin(app, "two")


def test_a_request_that_begins_no_session_ends_none(app: AppServer):
    sessions = [begin(app, "one") for _ in range(3)]
    for body in ({"jsonrpc": "2.0", "id": 1, "method": "ping"}, {**hello(), "params": {}}):
        assert post(app, body, Authorization="Bearer one-key").status_code == 400
    assert all(lives(app, "one", session) for session in sessions)
