"""Batches of 2025-03-26: what is answered, and how."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.integration.mcp.test_door import HEADERS, hello, message, post
from tests.integration.mcp.test_exchanges import opened
from tests.support.app_server import AppServer, app_server
from toolway.wire.sse import Decoder

VERSION = "2025-03-26"
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def request(number: int, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def call(number: int, name: str, meta: Any = None, **arguments: Any) -> dict[str, Any]:
    return request(number, "tools/call", name=name, arguments=arguments, **({"_meta": meta} if meta else {}))


@pytest.mark.parametrize("is_told", [True, False])
def test_the_requests_of_a_batch_are_answered_by_one_list(app: AppServer, is_told: bool):
    with opened(app, VERSION) as session:
        headers = session if is_told else {"mcp-session-id": session["mcp-session-id"]}
        batch = [
            call(1, "echo", value="a"),
            INITIALIZED,
            request(2, "prompts/list"),
            {"jsonrpc": "2.0"},
            call(3, "nobody"),
            [call(4, "echo", value="b")],
        ]
        answer = post(app, batch, **headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    first, prompts, invalid, unknown, nested = answer.json()
    assert (first["id"], first["result"]["content"][0]["text"]) == (1, "'a'")
    assert (prompts["id"], "prompts" in prompts["result"]) == (2, True)
    assert (invalid["id"], invalid["error"]["code"]) == (None, -32600)
    assert (unknown["id"], unknown["error"]["code"]) == (3, -32602)
    assert (nested["id"], nested["error"]["code"]) == (None, -32600)
    assert "a batch holds no batch" in nested["error"]["message"]


def test_a_batch_that_wants_no_answer_gets_none(app: AppServer):
    with opened(app, VERSION) as session:
        answer = post(app, [INITIALIZED, {"jsonrpc": "2.0", "id": 5, "result": {}}], **session)
    assert (answer.status_code, answer.content) == (202, b"")


def test_progress_of_a_batch_comes_before_its_list(app: AppServer):
    with opened(app, VERSION) as session:
        batch = [call(1, "slow", {"progressToken": "p"}, seconds=0), request(2, "ping")]
        answer = post(app, batch, **session)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *progress, last = map(json.loads, Decoder().feed(answer.content))
    assert {told["method"] for told in progress} == {"notifications/progress"}
    assert {told["params"]["progressToken"] for told in progress} == {"p"}
    assert [told["id"] for told in last] == [1, 2]


def test_a_batch_for_a_session_that_is_gone_is_a_404(app: AppServer):
    answer = post(app, [request(1, "ping"), INITIALIZED], **{"mcp-session-id": "gone"})
    assert (answer.status_code, {told["error"]["message"] for told in answer.json()}) == (
        404,
        {"Session not found"},
    )


def test_several_workers_take_batches_without_a_session():
    with app_server(workers=2) as app:
        answer = post(app, [call(1, "get_weather", city="Rome"), request(2, "ping")])
    first, second = answer.json()
    assert first["result"]["content"][0]["text"] == '{"city":"Rome","sky":"cloudy"}'
    assert second == {"jsonrpc": "2.0", "id": 2, "result": {}}


def test_a_batch_that_is_no_json_breaks_nothing(app: AppServer):
    for body in (b"[" * 100_000, b"[{]", b"[" + b"9" * 5_000 + b"]"):
        answer = httpx2.post(f"{app.url}/mcp", content=body, headers=HEADERS)
        assert answer.status_code == 400
        assert message(answer)["error"]["code"] in (-32700, -32600)
    assert message(post(app, hello()))["result"]["serverInfo"]["name"] == "toolway"
