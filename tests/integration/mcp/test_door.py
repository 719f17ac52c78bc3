"""Who may use /mcp, what is refused there, and what nonsense does to it."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from mcp.client import Client

from tests.integration.mcp.conftest import PROFILES, TOOLWAY
from tests.support.app_server import AppServer, app_server
from tests.support.confused import confused, modern_headers
from tests.support.fuzz import EXAMPLES
from toolway.settings.mcp_server import StdioServerConfig
from toolway.tools.catalog import Catalog
from toolway.tools.mcp import MCPSource

pytestmark = pytest.mark.anyio

HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
VERSIONS = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"]


def post(app: AppServer, body: Any, path: str = "/mcp", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{app.url}{path}", content=content, headers={**HEADERS, **headers}, timeout=60)


def hello(version: str = "2025-11-25") -> dict[str, Any]:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


def message(response: httpx2.Response) -> dict[str, Any]:
    text = response.text
    found: dict[str, Any] = orjson.loads(text.partition("data: ")[2] if text.startswith("event:") else text)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_older_version_gets_what_it_asks_for(app: AppServer, version: str):
    answer = post(app, hello(version))
    assert message(answer)["result"]["protocolVersion"] == version
    session = {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": version}
    post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **session)
    listed = message(post(app, {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}, **session))
    assert "get_weather" in {tool["name"] for tool in listed["result"]["tools"]}
    assert httpx2.delete(f"{app.url}/mcp", headers={**HEADERS, **session}).status_code == 200
    assert post(app, {"jsonrpc": "2.0", "id": 3, "method": "tools/list"}, **session).status_code == 404


def test_host_origin_and_profile_are_checked_before_anything_else(app: AppServer):
    assert post(app, hello(), Host="evil.example").status_code == 403
    refused = post(app, hello(), Origin="http://evil.example")
    assert refused.status_code == 403
    assert refused.json()["error"]["message"].startswith("Web pages of this origin")
    unknown = post(app, hello(), "/mcp/nobody")
    assert unknown.status_code == 404
    assert f"those that are: {', '.join(sorted(PROFILES))}" in unknown.json()["error"]["message"]


def test_keys_open_it_and_a_session_is_only_its_owners():
    with app_server(api_keys="one-key,other-key") as app:
        assert post(app, hello()).status_code == 401
        mine, other = ({"Authorization": f"Bearer {key}-key"} for key in ("one", "other"))
        session = {"mcp-session-id": post(app, hello(), **mine).headers["mcp-session-id"]}
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        assert post(app, ping, **mine, **session).status_code == 200
        stolen = post(app, ping, **other, **session)
        assert (stolen.status_code, stolen.json()["error"]["message"]) == (404, "Session not found")


def test_several_workers_have_no_sessions():
    with app_server(workers=2) as app:
        answer = post(app, hello())
        assert "mcp-session-id" not in answer.headers
        called = {"name": "get_weather", "arguments": {"city": "Rome"}}
        said = message(post(app, {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": called}))
        assert said["result"]["content"][0]["text"] == '{"city":"Rome","sky":"cloudy"}'


@pytest.mark.parametrize("modern", [True, False])
def test_nonsense_is_answered_and_breaks_nothing(app: AppServer, modern: bool):
    chance = random.Random(7)
    session: dict[str, str] = {}
    if not modern:
        session = {"mcp-session-id": post(app, hello()).headers["mcp-session-id"]}
        post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **session)
    with httpx2.Client(timeout=60) as client:
        for _ in range(EXAMPLES * 2):
            body = confused(chance)
            headers = {**HEADERS, **(modern_headers(body) if modern else session)}
            answer = client.post(f"{app.url}/mcp", content=body, headers=headers)
            assert answer.status_code < 500, (body[:500], answer.text[:500])
    assert message(post(app, hello()))["result"]["serverInfo"]["name"] == "toolway"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([hello()], "`initialize` cannot be in a batch"),
        ([], "1 to 100 messages"),
        ([hello()] * 101, "1 to 100 messages, not 101"),
        (7, "it must be an object"),
        ({**hello(), "jsonrpc": "1.0"}, '`jsonrpc` must be "2.0"'),
        ({**hello(), "method": 5}, "`method` must be a string"),
        ({**hello(), "params": [1]}, "`params` must be an object"),
        ({"jsonrpc": "2.0", "id": 1}, "it has no `method`"),
    ],
)
@pytest.mark.parametrize("size", [0, 500_000])
def test_what_is_no_message_is_an_invalid_request_in_words(app: AppServer, body: Any, words: str, size: int):
    answer = post(app, json.dumps(body).encode() + b" " * size)
    assert answer.status_code == 400
    error = message(answer)["error"]
    assert error["code"] == -32600
    assert words in error["message"]
    assert "pydantic" not in answer.text
    assert "mcp-session-id" not in answer.headers


CALL = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
RESULT: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "result": {}}
ERROR = {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}}
WRONG: list[dict[str, Any]] = [
    *({**CALL, "id": odd} for odd in (None, 1.5, {}, [], True)),
    *({**CALL, "method": odd} for odd in (None, 1, {}, True)),
    *({**CALL, "params": odd} for odd in (1, "a", [], True)),
    *({**CALL, "jsonrpc": odd} for odd in (None, 2.0, "1.0", {})),
    {**CALL, "result": {}},
    {**CALL, "error": ERROR["error"]},
    {**RESULT, "error": ERROR["error"]},
    *({**RESULT, "result": odd} for odd in (None, 1, [])),
    *({**RESULT, "id": odd} for odd in (None, 1.5, {}, True)),
    *({**ERROR, "error": odd} for odd in (None, "no", {}, {"code": "1", "message": "no"}, {"code": 1})),
    *({**ERROR, "id": odd} for odd in (1.5, {}, True)),
    {"jsonrpc": "2.0", "result": {}},
]


@pytest.mark.parametrize("version", [None, "2026-07-28", "2025-06-18"])
def test_an_envelope_with_a_wrong_member_is_never_taken_for_a_notification(
    app: AppServer, version: str | None
):
    told = {"mcp-protocol-version": version} if version else {}
    session = post(app, hello()).headers["mcp-session-id"]
    if version != "2026-07-28":
        told["mcp-session-id"] = session
    with httpx2.Client(headers={**HEADERS, **told}, timeout=60) as client:
        for body in WRONG:
            answer = client.post(f"{app.url}/mcp", json=body)
            assert answer.status_code == 400, body
            error = message(answer)
            identity = body.get("id")
            known = identity if isinstance(identity, int) and not isinstance(identity, bool) else None
            assert (error["id"], error["error"]["code"]) == (known, -32600), body
            assert error["error"]["message"].startswith("This is no message of JSON-RPC 2.0: "), body


def test_a_version_that_nobody_knows_is_told_those_that_are(app: AppServer):
    for body in (CALL, {"jsonrpc": "2.0", "method": "notifications/initialized"}, hello()):
        answer = post(app, body, **{"mcp-protocol-version": "bogus"})
        error = message(answer)["error"]
        assert (answer.status_code, error["code"]) == (400, -32022)
        assert error["data"] == {"supported": ["2026-07-28", *VERSIONS], "requested": "bogus"}
        assert "'bogus'" in error["message"]
        assert ", ".join(["2026-07-28", *VERSIONS]) in error["message"]


@pytest.mark.parametrize("body", [b"{", b"", json.dumps(CALL).encode()])
def test_an_error_that_opens_no_session_names_none(app: AppServer, body: bytes):
    answer = post(app, body)
    assert (answer.status_code, answer.headers.get("mcp-session-id")) == (400, None)
    got = httpx2.get(f"{app.url}/mcp", headers=HEADERS)
    assert (got.status_code, got.headers.get("mcp-session-id")) == (400, None)


@pytest.mark.parametrize("size", [0, 300_000])
def test_params_that_cannot_be_used_are_told_without_empty_data(app: AppServer, size: int):
    body = {**CALL, "method": "tools/call", "params": {"x": "y" * size}}
    session = {"mcp-session-id": post(app, hello()).headers["mcp-session-id"]}
    assert message(post(app, body, **session))["error"] == {
        "code": -32602,
        "message": "Invalid request parameters",
    }


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_a_version_without_batches_is_told_so(app: AppServer, version: str):
    answer = post(app, [hello()], **{"mcp-protocol-version": version})
    assert (answer.status_code, message(answer)["error"]["code"]) == (400, -32600)
    assert "this version has no batches" in message(answer)["error"]["message"]


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_that_is_too_large_is_told_the_setting(app: AppServer, is_chunked: bool):
    body = json.dumps({**hello(), "x": "y" * 600_000}).encode()
    answer = httpx2.post(f"{app.url}/mcp", content=iter([body]) if is_chunked else body, headers=HEADERS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, -32600)
    assert "TOOLWAY_MAX_BODY_BYTES" in answer.json()["error"]["message"]


def test_a_body_in_chunks_is_read_as_any_other(app: AppServer):
    def sent(body: Any) -> httpx2.Response:
        whole = json.dumps(body).encode()
        return httpx2.post(
            f"{app.url}/mcp", content=iter([whole[:9], whole[9:]]), headers=HEADERS, timeout=60
        )

    assert message(sent(hello()))["result"]["serverInfo"]["name"] == "toolway"
    refused = sent({**hello(), "params": [1]})
    assert (refused.status_code, message(refused)["error"]["code"]) == (400, -32600)
    assert "`params` must be an object" in message(refused)["error"]["message"]


def test_a_client_that_leaves_inside_a_body_leaves_nothing_behind(app: AppServer):
    def broken():
        yield b'{"jsonrpc"'
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        httpx2.post(f"{app.url}/mcp", content=broken(), headers=HEADERS)
    assert message(post(app, hello()))["result"]["serverInfo"]["name"] == "toolway"


@pytest.mark.parametrize("odd", [{"protocolVersion": 5}, {"capabilities": []}, {"clientInfo": None}])
def test_an_initialize_that_cannot_be_used_opens_no_session(app: AppServer, odd: dict[str, Any]):
    wrong = hello()
    wrong["params"].update(odd)
    answer = post(app, wrong)
    assert answer.status_code == 400
    error = message(answer)
    assert (error["id"], error["error"]["code"]) == (1, -32602)
    assert next(iter(odd)) in error["error"]["message"]
    assert "mcp-session-id" not in answer.headers


async def test_calls_leave_no_memory_behind(app: AppServer):
    async with Client(f"{app.url}/mcp") as client:

        async def kept_after(count: int) -> int:
            for _ in range(count):
                await client.call_tool("echo", {"value": 1})
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await kept_after(100)
        tracemalloc.start()
        try:
            await kept_after(200)
            before = await kept_after(100)
            after = await kept_after(300)
        finally:
            tracemalloc.stop()
    # What the client and its caches keep is in this, too.
    assert after - before < 300 * 300, f"{(after - before) / 300:.0f} bytes a call"


def test_a_toolway_that_starts_itself_is_ended_with_a_sentence(mcp_json: Path):
    refused = subprocess.run(
        [TOOLWAY, "mcp", "--config", str(mcp_json)],
        env={**os.environ, "TOOLWAY_DEPTH": "3"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "Toolway starts itself in a circle" in refused.stderr


async def test_a_server_knows_within_how_many_toolways_it_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOOLWAY_DEPTH", "1")
    code = "import os, sys; sys.exit('depth ' + os.environ['TOOLWAY_DEPTH'])"
    config = StdioServerConfig(label="s", type="stdio", command=sys.executable, args=("-c", code))
    async with Catalog([MCPSource(config)]).running() as catalog:
        await catalog.wait_until_tried(60)
        assert "depth 2" in str(catalog.sources[0].status.error)
