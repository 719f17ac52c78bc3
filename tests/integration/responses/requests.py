"""/v1/responses without any SDK: a POST, its stream, a WebSocket; and scripts that are the same streamed and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.support.app_server import AppServer
from tests.support.model_turns import ModelTurn
from tests.support.responses import check_events, check_response
from tests.support.upstream import Reply

JSON = dict[str, Any]

QUESTION = "What is the weather in Paris?"
THEIRS: JSON = {"type": "function", "name": "theirs", "parameters": {"type": "object", "properties": {}}}

LAST = ("response.completed", "response.incomplete", "response.failed")

BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


def turn(
    text: str = "", *calls: JSON, reasoning: str = "", finish: str | None = None, streamed: bool
) -> Reply:
    """One answer of the model server."""
    return ModelTurn(text=text, calls=calls, reasoning=reasoning, finish=finish).reply(streamed=streamed)


# verify=False: without it each request reads all certificates of the machine.


def respond(
    app: AppServer | str, body: JSON | bytes | None = None, *, headers: JSON | None = None, **more: Any
) -> httpx2.Response:
    """POST /v1/responses; `more` are fields of the body."""
    url = app if isinstance(app, str) else app.url
    content = (
        body if isinstance(body, bytes) else json.dumps({"model": "mock", **(body or {}), **more}).encode()
    )
    return httpx2.post(f"{url}/v1/responses", content=content, headers=headers, timeout=60, verify=False)


def ask(app: AppServer | str, *, streamed: bool = False, status: str = "completed", **more: Any) -> JSON:
    """The response to a request that is served, by either way; a question is asked if there is no input."""
    body = {"input": QUESTION, **more, **({"stream": True} if streamed else {})}
    answer = respond(app, body, headers=body.pop("headers", None))
    assert answer.status_code == 200, answer.text
    response = check_events(events_of(answer.text)) if streamed else check_response(answer.json())
    assert response["status"] == status, response
    return response


def get(app: AppServer | str, path: str, *, key: str | None = None, **query: Any) -> httpx2.Response:
    url = app if isinstance(app, str) else app.url
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.get(f"{url}/v1/responses/{path}", params=query, headers=headers, timeout=60, verify=False)


def post(app: AppServer | str, path: str, body: JSON | None = None) -> httpx2.Response:
    url = app if isinstance(app, str) else app.url
    return httpx2.post(f"{url}/v1/responses/{path}", json=body or {}, timeout=60, verify=False)


def delete(app: AppServer | str, identity: str) -> httpx2.Response:
    url = app if isinstance(app, str) else app.url
    return httpx2.delete(f"{url}/v1/responses/{identity}", timeout=60, verify=False)


def events_of(text: str, *, begin: int = 0) -> list[JSON]:
    """The events of a stream that ends with one `[DONE]`, numbered from `begin`; comments are passed over."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert blocks[-1] == "data: [DONE]", text
    events = [_event(block) for block in blocks[:-1]]
    assert [event["sequence_number"] for event in events] == list(range(begin, begin + len(events)))
    return events


def _event(block: str) -> JSON:
    kind, data = block.split("\n")
    event: JSON = json.loads(data.removeprefix("data: "))
    assert kind == f"event: {event['type']}"
    return event


def types(events: list[JSON]) -> list[str]:
    return [event["type"] for event in events]


def kinds(response: JSON) -> list[str]:
    """The types of a response's items."""
    return [item["type"] for item in response["output"]]


def text_of(response: JSON) -> str:
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


def items_of(response: JSON, kind: str) -> list[JSON]:
    return [item for item in response["output"] if item["type"] == kind]


def sent(app: AppServer, number: int = -1) -> list[JSON]:
    """The messages of a request that the model server saw."""
    messages: list[JSON] = app.upstream.seen[number].json["messages"]
    return messages


def label(app: AppServer) -> str:
    return app.settings.tools.endpoints[0].label


def server(app: AppServer, **more: Any) -> JSON:
    """The declaration of the test's tool server, whose calls run unasked."""
    return {"type": "mcp", "server_label": label(app), "require_approval": "never", **more}


def approval_tool(app: AppServer, **more: Any) -> JSON:
    """The declaration of the test's tool server whose calls wait."""
    entry = {**server(app), **more}
    return (
        entry if "require_approval" in more else {k: v for k, v in entry.items() if k != "require_approval"}
    )


def decision(request: JSON, approve: bool = True, **more: Any) -> JSON:
    """What the user says to an approval request."""
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": approve,
        **more,
    }


@contextmanager
def websocket(app: AppServer, **headers: str) -> Iterator[ClientConnection]:
    """A WebSocket."""
    url = app.url.replace("http://", "ws://") + "/v1/responses"
    with connect(url, additional_headers=headers, open_timeout=60, close_timeout=60) as connection:
        yield connection


def create(connection: ClientConnection, **body: Any) -> list[JSON]:
    """The events of one response over a WebSocket, or the error in its place."""
    connection.send(json.dumps({"type": "response.create", "model": "mock", **body}))
    events: list[JSON] = []
    while not events or (events[-1]["type"] not in LAST and "status" not in events[-1]):
        events.append(json.loads(connection.recv(timeout=60)))
    return events


def refused(events: list[JSON]) -> JSON:
    """The error that is told over a WebSocket in place of a response."""
    assert types(events) == ["error"]
    assert set(events[0]["error"]) == {"message", "type", "param", "code"}
    return {"status": events[0]["status"], **events[0]["error"]}


def error_of(answer: httpx2.Response, status: int) -> JSON:
    """The error of a refused request, in OpenAI's envelope."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"], body
    error: JSON = body["error"]
    return error
