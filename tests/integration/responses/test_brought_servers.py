"""Tool servers that a request brings along: `{"type": "mcp", "server_url": ...}`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.responses.requests import (
    BOTH,
    QUESTION,
    ask,
    decision,
    error_of,
    get,
    items_of,
    kinds,
    label,
    respond,
    text_of,
    turn,
)
from tests.support.app_server import AppServer, app_server
from tests.support.servers import free_port, running
from tests.support.upstream import tool_call
from tests.unit.tools.mcp.servers.guarded import Guarded

TOKEN = "a-token-that-nobody-else-may-see"
OK = tool_call("ok", "{}")


@pytest.fixture(scope="module")
def guarded():
    server = Guarded()
    server.tokens = {TOKEN}
    with running(server.app, lifespan="off") as url:
        yield f"{url.replace('localhost', '127.0.0.1')}/mcp?key=in-the-query"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory):
    kept = tmp_path_factory.mktemp("store") / "kept.db"
    with app_server(dynamic_servers="127.0.0.1,*", store=f"sqlite:///{kept}") as server:
        yield server


def brought(url: str, **more: Any) -> dict[str, Any]:
    entry = {"type": "mcp", "server_label": "notes", "server_url": url, "authorization": TOKEN}
    return {**entry, "require_approval": "never", **more}


@BOTH
def test_a_server_that_the_request_brings_is_listed_and_called(app: AppServer, guarded: str, streamed: bool):
    app.set_replies(turn("", OK, streamed=streamed), turn("Done.", streamed=streamed))
    response = ask(app, streamed=streamed, tools=[brought(guarded, allowed_tools=["ok"])])
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    listed, call = items_of(response, "mcp_list_tools")[0], items_of(response, "mcp_call")[0]
    assert [tool["name"] for tool in listed["tools"]] == ["ok"]
    assert (call["server_label"], call["name"], call["status"], call["output"]) == (
        "notes",
        "ok",
        "completed",
        "fine",
    )
    assert [tool["function"]["name"] for tool in app.upstream.seen[0].json["tools"]] == ["ok"]


def test_its_secrets_are_nowhere_but_on_the_way_to_it(app: AppServer, guarded: str):
    app.set_replies(turn("Hello.", streamed=True))
    said = respond(app, input=QUESTION, stream=True, tools=[brought(guarded)]).text
    assert TOKEN not in said and "in-the-query" not in said
    assert '"server_url":"http://127.0.0.1:' in said and '/<redacted>"' in said
    identity = json.loads(said.split("data: ")[1].split("\n")[0])["response"]["id"]
    assert TOKEN not in get(app, identity).text
    kept = Path(app.settings.store.url.removeprefix("sqlite:///"))
    everything = b"".join(file.read_bytes() for file in kept.parent.iterdir())
    assert QUESTION.encode() in everything
    assert TOKEN.encode() not in everything and b"in-the-query" not in everything


def test_its_tools_are_of_the_request_that_brings_it_alone(app: AppServer, guarded: str):
    app.set_replies(turn("One.", streamed=False))
    ask(app, tools=[brought(guarded)])
    app.set_replies(turn("Two.", streamed=False))
    ask(app)
    names = [tool["function"]["name"] for tool in app.upstream.seen[0].json["tools"]]
    assert names == ["get_weather", "list_cities"]


def test_a_call_of_it_waits_for_approval_unless_the_client_says_never(app: AppServer, guarded: str):
    server = brought(guarded, require_approval=None)
    app.set_replies(turn("", OK, streamed=False))
    first = ask(app, tools=[server])
    request = items_of(first, "mcp_approval_request")[0]
    app.set_replies(turn("Done.", streamed=False))
    second = ask(app, previous_response_id=first["id"], input=[decision(request)], tools=[server])
    assert kinds(second) == ["mcp_call", "message"]
    assert items_of(second, "mcp_call")[0]["approval_request_id"] == request["id"]


@pytest.mark.parametrize("trouble", ["refuses the token", "is not there"])
def test_a_server_that_fails_is_told_of_and_the_model_answers_without_it(
    app: AppServer, guarded: str, trouble: str
):
    url = guarded if trouble == "refuses the token" else f"http://127.0.0.1:{free_port()}/mcp"
    app.set_replies(turn("Without it, then.", streamed=False))
    response = ask(app, tools=[brought(url, authorization="another-token")])
    listed = items_of(response, "mcp_list_tools")[0]
    assert listed["tools"] == [] and listed["error"] and "another-token" not in listed["error"]
    assert text_of(response) == "Without it, then."
    assert "tools" not in app.upstream.seen[0].json


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.7/mcp",
        "http://[::1]:8011/mcp",
        "http://2130706433/mcp",
        "http://user:password@127.0.0.1/mcp",
        "file:///etc/passwd",
    ],
)
def test_a_host_that_the_operator_did_not_allow_is_not_asked(app: AppServer, url: str):
    app.set_replies(turn("Never.", streamed=False))
    error = error_of(respond(app, input=QUESTION, tools=[brought(url)]), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", "tools")
    assert error["code"] in ("server_not_allowed", "invalid_server")
    assert not app.upstream.seen


def test_no_host_is_allowed_by_default(guarded: str):
    with app_server(turn("Never.", streamed=False)) as closed:
        error = error_of(respond(closed, input=QUESTION, tools=[brought(guarded)]), 400)
    assert error["code"] == "server_not_allowed"


def test_the_label_of_a_configured_server_cannot_be_taken(app: AppServer, guarded: str):
    error = error_of(respond(app, input=QUESTION, tools=[brought(guarded, server_label=label(app))]), 400)
    assert error["code"] == "invalid_server"


def test_a_label_that_nobody_has_needs_a_server_url(app: AppServer):
    entry = {"type": "mcp", "server_label": "unheard-of"}
    assert "unheard-of" in error_of(respond(app, input=QUESTION, tools=[entry]), 400)["message"]
