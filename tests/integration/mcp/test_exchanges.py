"""What /mcp answers itself, and what the SDK's transport answers in its place, is the same to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.mcp.test_door import HEADERS, hello, post
from tests.support.app_server import AppServer, app_server
from tests.support.confused import METHODS, confused, legal
from tests.support.fuzz import slow
from tests.support.gate import DEADLINE
from toolway.api.mcp.exchanges import MAX_BODY, Exchanges

pytestmark = pytest.mark.anyio

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
}
ALL = "toolway.api.mcp.exchanges.MAX_BODY"
"""With 0 for it every request is the transport's."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the requests that were answered without the transport."""
    came: list[str] = []
    answer = Exchanges._exchanged

    async def watched(self: Exchanges, exchange: Any, *others: Any) -> None:
        came.append(exchange.asked.method)
        await answer(self, exchange, *others)

    monkeypatch.setattr(Exchanges, "_exchanged", watched)
    return came


def ask(app: AppServer, method: str, headers: Mapping[str, str], **params: Any) -> httpx2.Response:
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    return post(app, body, **headers)


def modern(app: AppServer, method: str, **params: Any) -> httpx2.Response:
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    if isinstance(name := params.get("name") or params.get("uri"), str):
        headers["mcp-name"] = name
    return ask(app, method, headers, **params, _meta=META)


@contextmanager
def opened(app: AppServer, version: str = "2025-11-25") -> Iterator[dict[str, str]]:
    """The headers of a session whose client said that it is ready."""
    begun = {"mcp-session-id": post(app, hello(version)).headers["mcp-session-id"]}
    headers = {**begun, "mcp-protocol-version": version}
    post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **headers)
    while "result" not in ask(app, "tools/list", headers).text:
        pass
    yield headers
    httpx2.delete(f"{app.url}/mcp", headers={**HEADERS, **headers})


@pytest.fixture
def session(app: AppServer) -> Iterator[dict[str, str]]:
    with opened(app) as headers:
        yield headers


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("tools/list", {}),
    ("tools/list", {"cursor": "nobody's"}),
    ("tools/call", {"name": "get_weather", "arguments": {"city": "Zürich \N{SNOWMAN}"}}),
    ("tools/call", {"name": "structured", "arguments": {}}),
    ("tools/call", {"name": "everything", "arguments": {}}),
    ("tools/call", {"name": "image", "arguments": {}}),
    ("tools/call", {"name": "fail", "arguments": {}}),
    ("tools/call", {"name": "echo", "arguments": {"value": [None, 2**70, 1.5, {"a": None}]}}),
    ("tools/call", {"name": "echo", "arguments": ["no object"]}),
    ("tools/call", {"name": "nobody"}),
    ("tools/call", {}),
    ("prompts/list", {}),
    ("resources/read", {"uri": "nothing://there"}),
    ("server/discover", {}),
    ("no/such", {}),
]


@pytest.mark.parametrize(("method", "params"), REQUESTS)
def test_a_request_of_the_newest_version(
    app: AppServer, method: str, params: dict[str, Any], taken: list[str], monkeypatch: pytest.MonkeyPatch
):
    own = modern(app, method, **params)
    assert taken == [method]
    monkeypatch.setattr(ALL, 0)
    theirs = modern(app, method, **params)
    assert taken == [method]
    assert (own.status_code, own.content) == (theirs.status_code, theirs.content)
    assert own.headers["content-type"] == theirs.headers["content-type"]


@pytest.mark.parametrize(("method", "params"), REQUESTS)
def test_a_request_in_a_session(
    app: AppServer,
    method: str,
    params: dict[str, Any],
    session: dict[str, str],
    taken: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    own = ask(app, method, session, **params)
    assert taken == ([method] if method in ("tools/call", "tools/list") else [])
    monkeypatch.setattr(ALL, 0)
    theirs = ask(app, method, session, **params)
    assert own.status_code == theirs.status_code
    assert _message(own) == _message(theirs)
    assert own.headers["mcp-session-id"] == theirs.headers["mcp-session-id"]


def _message(response: httpx2.Response) -> Any:
    text = response.text
    return json.loads(text.partition("data: ")[2] if text.startswith("event:") else text)


ODD_HEADERS = st.dictionaries(
    st.sampled_from(["mcp-method", "mcp-name", "mcp-protocol-version", "accept", "content-type"]),
    st.sampled_from(
        ["tools/call", "echo", MODERN, "2025-11-25", "application/json", "text/plain", "*/*", "é"]
    ),
    max_size=2,
)


@slow
@given(st.integers(0, 2**32), ODD_HEADERS)
def test_confused_requests_are_refused_alike(app: AppServer, seed: int, odd: dict[str, str]):
    chance = Random(seed)
    body = confused(chance)
    method = chance.choice(METHODS)
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method, **odd}
    try:
        decoded = json.loads(body)
        decoded["method"] = decoded["method"] if chance.random() < 0.2 else method
        if chance.random() < 0.5:
            headers["mcp-name"] = legal(str(decoded["params"].get("name")))
        body = json.dumps(decoded).encode()
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        pass
    sendable = {name: value.encode("latin-1", "replace") for name, value in headers.items()}

    def answers() -> tuple[int, bytes]:
        sent = {**{name: value.encode() for name, value in HEADERS.items()}, **sendable}
        answer = httpx2.post(f"{app.url}/mcp", content=body, headers=sent, timeout=60)
        return answer.status_code, answer.content

    own = answers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ALL, 0)
        theirs = answers()
    assert own == theirs
    assert own[0] < 500


@pytest.fixture(scope="module")
def pinging(mcp_json: Path) -> Iterator[AppServer]:
    """Toolway that pings in short silences."""
    with app_server(config=str(mcp_json), keepalive_interval=0.05) as app:
        app.until_ready()
        yield app


@pytest.mark.parametrize("has_session", [True, False])
@pytest.mark.parametrize("largest", [0, MAX_BODY])
def test_a_call_that_takes_long_is_a_stream_with_pings(
    pinging: AppServer, largest: int, has_session: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ALL, largest)
    params: dict[str, Any] = {"name": "slow", "arguments": {"seconds": 0.8}}
    if has_session:
        with opened(pinging) as session:
            said = ask(pinging, "tools/call", session, **params)
    else:
        said = modern(pinging, "tools/call", **params)
    assert said.headers["content-type"].startswith("text/event-stream")
    *pings, event = said.text.removesuffix("\r\n\r\n").split("\r\n\r\n")
    assert len(pings) > 1
    assert {ping[:6] for ping in pings} == {": ping"}
    assert _message(httpx2.Response(200, text=event))["result"]["content"][0]["text"] == "slept"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": params}


async def test_a_call_in_a_session_is_cancelled_by_that_session_alone(
    app: AppServer, session: dict[str, str]
):
    other = {**session, "mcp-session-id": post(app, hello()).headers["mcp-session-id"]}
    post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **other)
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
    answers = []

    async with httpx2.AsyncClient(base_url=app.url, timeout=60) as client, anyio.create_task_group() as tasks:

        async def say(body: dict[str, Any], headers: dict[str, str]) -> httpx2.Response:
            answer = await client.post("/mcp", json=body, headers={**HEADERS, **headers})
            answers.append(answer)
            return answer

        async def events() -> list[str]:
            said = _message(await say(call("events"), other))["result"]["content"][0]["text"]
            return [word for word in said.split() if word in ("started", "cancelled")][before:]

        before = 0
        before = len(await events())
        tasks.start_soon(say, call("slow", seconds=60), session)
        while await events() != ["started"]:
            pass
        assert (await say(cancel, other)).status_code == 202
        assert await events() == ["started"]
        assert (await say(cancel, session)).status_code == 202
        while await events() != ["started", "cancelled"]:
            pass
    streams = [answer for answer in answers if "event-stream" in answer.headers.get("content-type", "")]
    assert [answer.content for answer in streams] == [b""]


async def test_a_client_with_a_session_that_hangs_up_does_not_end_its_call(
    app: AppServer, session: dict[str, str]
):
    headers = {**HEADERS, **session}
    async with httpx2.AsyncClient(base_url=app.url, timeout=DEADLINE) as client:

        async def events() -> list[str]:
            said = await client.post("/mcp", json={**call("events"), "id": 10}, headers=headers)
            return _message(said)["result"]["content"][0]["text"].split()

        before = len(await events())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(client.post, "/mcp", json=call("slow", seconds=0.5), headers=headers))
            while not (await events())[before:]:
                pass
            tasks.cancel_scope.cancel()
        with anyio.fail_after(DEADLINE):
            while len(now := (await events())[before:]) < 2:
                pass
    assert now == ["started", "slept"]


@pytest.mark.parametrize("path", ["/mcp", "/mcp/weather"])
def test_arguments_in_headers_tell_nothing_of_a_tool_that_is_not_there_for_the_caller(
    app: AppServer, path: str
):
    """A header that contradicts its argument is refused, where the caller has the tool."""
    headers = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "mirror"}
    params = {"name": "mirror", "arguments": {"region": "north"}, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    answer = post(app, body, path, **headers, **{"mcp-param-region": "south"})
    error = answer.json()["error"]
    if path == "/mcp":
        assert (answer.status_code, error["code"]) == (400, -32020)
        assert "Mcp-Param-Region" in error["message"]
    else:
        assert error["code"] == -32602
        assert error["message"].startswith("Unknown tool")
