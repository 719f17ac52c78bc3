"""Keys of the mcp.json, over a real port: what a key may not use does not exist for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.logs import logged
from tests.support.servers import free_port
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole
from toolway.access.keys import hash_of
from toolway.server.admission import family_of
from toolway.settings.settings import Settings

KEYS: Any = {
    "alice": {"hash": hash_of("alice"), "group": "family", "tools": ["get_weather"]},
    "bob": {"hash": hash_of("bob"), "models": ["small*"], "max_rounds": 1},
    "guest": {"hash": hash_of("guest"), "routes": ["chat"]},
    "elsewhere": {"hash": hash_of("elsewhere"), "tools": ["other.*"]},
    "root": {"hash": hash_of("root"), "routes": ["console"]},
    "carol": {"hash": hash_of("carol"), "group": "family"},
    "late": {"hash": hash_of("late"), "expires": "2020-01-01"},
}
GROUPS = {"family": {"exclude": ["secret*"]}}


async def _secret(_: Any) -> Any:
    return {"told": "everything"}


def write(path: Path, **members: Any) -> str:
    """An mcp.json with these keys."""
    path.write_text(json.dumps({"mcpServers": {}, "keys": KEYS, "groups": GROUPS, **members}))
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "mcp.json"


@pytest.fixture(scope="module")
def app(file: Path) -> Iterator[AppServer]:
    with app_server(tools=ToolService(secret_tool=_secret), config=write(file)) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(app: AppServer, key: str, *replies: Reply, **body: Any) -> httpx2.Response:
    app.set_replies(*(replies or [whole({"content": "Hi"})]))
    return app.ask(headers=bearer(key), **body)


def offered(app: AppServer) -> list[str]:
    seen = next(seen for seen in app.upstream.seen if seen.method == "POST")
    return [tool["function"]["name"] for tool in seen.json.get("tools", ())]


@pytest.mark.parametrize(
    ("key", "names"), [("alice", ["get_weather"]), ("carol", ["get_weather", "list_cities"])]
)
def test_a_key_has_the_tools_that_it_may_use(app: AppServer, key: str, names: list[str]):
    assert ask(app, key).status_code == 200
    assert offered(app) == names


def test_a_guessed_name_is_a_tool_that_nobody_knows(app: AppServer):
    guesses = [tool_call(name=name, arguments="{}") for name in ("secret_tool", "no_such_tool")]
    results = []
    for guess in guesses:
        ask(app, "carol", call_stream(guess), text_stream("Well."), stream=True)
        results.append(app.upstream.seen[-1].json["messages"][-1]["content"])
    assert not app.tools.calls
    assert results[0].replace("secret_tool", "no_such_tool") == results[1]


def test_options_of_a_request_never_widen_what_a_key_may_use(app: AppServer):
    for more in (
        {"tools": [{"type": "mcp", "server_label": app.settings.tools.endpoints[0].label}]},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [{"name": "secret_tool"}]}}},
    ):
        ask(app, "carol", **more)
        assert "secret_tool" not in offered(app)


def test_a_model_that_is_not_for_this_key_does_not_exist(app: AppServer):
    assert ask(app, "bob", model="small-7b").status_code == 200
    for model in ("mock", "big", "small@x/../big"[::-1], None, 7):
        answer = ask(app, "bob", model=model)
        assert answer.status_code == 404, model
        assert answer.json()["error"]["code"] == "model_not_found"
        assert not app.upstream.seen


def test_a_key_has_its_own_limit_of_rounds(app: AppServer):
    call = call_stream(tool_call(name="list_cities", arguments="{}"))
    ask(app, "bob", call, call, text_stream("Done."), stream=True, model="small")
    assert len(app.tools.calls) == 1


@pytest.mark.parametrize("key", ["late", "nobody", "Alice", "alice alice"])
def test_a_key_that_is_over_or_unknown_opens_nothing(app: AppServer, key: str):
    answer = ask(app, key)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] in ("invalid_api_key", "expired_api_key")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_one_keys_stored_responses_are_not_anothers(app: AppServer):
    app.set_replies(whole({"content": "Hi"}))
    body = {"model": "mock", "input": QUESTION}
    stored = httpx2.post(f"{app.url}/v1/responses", json=body, headers=bearer("alice"), timeout=60).json()
    path = f"{app.url}/v1/responses/{stored['id']}"
    assert httpx2.get(path, headers=bearer("alice")).status_code == 200
    hidden = httpx2.get(path, headers=bearer("carol"))
    assert hidden.status_code == 404
    missing = httpx2.get(f"{path}x", headers=bearer("carol"))
    assert hidden.json()["error"]["message"] == missing.json()["error"]["message"].replace("x'", "'")


ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/small"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1//Chat/completions/"),
    ("POST", "/v1/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("GET", "/v1/responses/resp_1"),
    ("POST", "/V1/Responses"),
    ("POST", "/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/models/load"),
    ("POST", "/v1/chat/completions/x"),
    ("GET", "/v1/files"),
    ("POST", "/mcp"),
    ("POST", "/mcp/"),
    ("POST", "/Mcp"),
    ("GET", "/Console/api/overview"),
    ("GET", "/metrics"),
    ("GET", "/tools"),
    ("GET", "/openapi.json"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_key_for_one_family_of_routes_opens_no_other(app: AppServer, method: str, path: str):
    app.set_replies(whole({"content": "Hi"}))
    body = {"model": "mock", "messages": QUESTION} if method == "POST" else None
    answer = httpx2.request(method, app.url + path, json=body, headers=bearer("guest"), timeout=60)
    is_chat = path.lower().rstrip("/").endswith(("chat/completions", "/models", "/models/small"))
    assert (answer.status_code != 403) is is_chat
    if not is_chat:
        assert "This API key may not use this route." in answer.text
        assert not app.upstream.seen


def test_every_route_that_there_is_asks_for_a_right_or_is_for_everybody(app: AppServer):
    assert family_of("/v1/anything") == "passthrough"
    assert family_of("/anything") == "rest"
    assert family_of("/mcpx") == "rest"
    assert family_of("/v1/chat/completions/x") == "chat"


def models_of(app: AppServer, key: str) -> list[str]:
    data = [{"id": name, "object": "model"} for name in ("small-7b", "big")]
    app.set_replies(json_reply({"object": "list", "data": data, "models": data}))
    answer = httpx2.get(f"{app.url}/v1/models", headers=bearer(key), timeout=60)
    assert ("big" in answer.text) is (key != "bob")
    return [model["id"] for model in answer.json()["data"]]


def test_a_key_is_told_of_the_models_that_it_may_use(app: AppServer):
    assert models_of(app, "alice") == ["small-7b", "big"]
    assert models_of(app, "bob") == ["small-7b"]


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/embeddings", b'{"model": "small", "input": "x"}', 200),
        ("/v1/embeddings", b'{"model": "big", "input": "x"}', 404),
        ("/v1/embeddings", b'{"model": "big", "model": "small"}', 200),
        ("/v1/embeddings", b'{"model": "small", "models": ["big"]}', 404),
        ("/v1/embeddings", b'{"input": "x"}', 404),
        ("/v1/embeddings?model=big", b'{"model": "small"}', 404),
        ("/v1/chat/completions", b'{"model": "small", "models": ["big"], "messages": [{}]}', 404),
        ("/v1/audio/transcriptions", b"--x\r\n", 403),
        ("/v1/files", b"", 403),
        ("/v1/models/big", None, 404),
        ("/v1/models/%62ig", None, 404),
        ("/v1/models/small", None, 200),
    ],
)
def test_no_way_leads_to_a_model_that_is_not_for_this_key(
    app: AppServer, path: str, content: bytes | None, status: int
):
    app.set_replies(whole({"content": "Hi"}))
    method = "GET" if content is None else "POST"
    answer = httpx2.request(method, app.url + path, content=content, headers=bearer("bob"), timeout=60)
    assert answer.status_code == status, answer.text
    assert b"big" not in b"".join(seen.body for seen in app.upstream.seen)
    assert len(app.upstream.seen) == (status == 200)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end


def test_the_keys_of_an_edited_file_hold_at_once_and_those_of_a_broken_one_do_not(tmp_path: Path):
    file = tmp_path / "mcp.json"

    def opens(key: str) -> bool:
        return httpx2.get(f"{app.url}/", headers=bearer(key)).status_code == 200

    with app_server(config=write(file)) as app, logged(Settings()) as log:
        assert opens("alice")
        write(file, keys={"dora": {"hash": hash_of("dora")}})
        wait_until(lambda: opens("dora"))
        assert not opens("alice")
        wait_until(lambda: "added: the key dora; removed: the key alice, the key bob" in log.getvalue())
        write(file, keys={"dora": {"hash": hash_of("dora"), "tols": []}, "eve": {"hash": hash_of("eve")}})
        wait_until(lambda: "the configuration stays as it was: " in log.getvalue())
        assert "mcp.json:1: keys.dora: 'tols' is not known; did you mean 'tools'." in log.getvalue()
        assert opens("dora") and not opens("eve")
        file.write_text('{"mcpServers": {}}')
        wait_until(lambda: not opens("dora"))
        assert httpx2.get(f"{app.url}/").status_code == 401


def test_what_a_file_names_and_is_not_there_is_told_at_the_start_and_when_it_is_read_again(tmp_path: Path):
    file = tmp_path / "mcp.json"
    rule = {"effect": "deny", "tools": ["get_weather"]}
    wrong = {"exclude": ["get_wether"], "hash": hash_of("x")}
    with logged(Settings()) as log:
        config = write(file, rules=[{**rule, "keys": ["nobody"]}], keys={"ben": wrong}, groups={})
        with app_server(config=config, profiles={"towns": ["lst_*"]}):
            wait_until(lambda: "the key ben: 'get_wether' fits no tool" in log.getvalue())
            assert "rule 1: keys: 'nobody' fits no key" in log.getvalue()
            assert "the profile towns: 'lst_*' fits no tool" in log.getvalue()
            assert "rule 2" not in log.getvalue()
            write(
                file,
                rules=[rule, {**rule, "effect": "ask"}, {"effect": "ask", "tools": ["delte_*"]}],
                keys={"ben": wrong},
                groups={"team": {"tools": ["mail.*"]}},
            )
            wait_until(lambda: "rule 3: tools: 'delte_*' fits no tool" in log.getvalue())
            assert "rule 2 can never hit: all that it fits is decided by rule 1" in log.getvalue()
            assert "the group team: 'mail.*' fits no tool" in log.getvalue()
            assert log.getvalue().count("get_wether") == 1


def test_a_websocket_ends_when_its_key_is_taken_away(tmp_path: Path):
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    file = tmp_path / "mcp.json"
    with app_server(config=write(file)) as app:
        app.set_replies(text_stream("Hi"))
        url = app.url.replace("http", "ws") + "/v1/responses"
        message = json.dumps({"type": "response.create", "model": "mock", "input": "Hi"})
        with connect(url, additional_headers=bearer("alice")) as socket:
            socket.send(message)
            while json.loads(socket.recv(timeout=60))["type"] != "response.completed":
                pass
            write(file, keys={})
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=60)
        assert closed.value.rcvd and closed.value.rcvd.code == 1008


def test_doctor_tells_of_keys_that_are_over_and_patterns_that_mean_nothing(tmp_path: Path, app: AppServer):
    keys = {
        "old": {"hash": hash_of("old"), "expires": "2020-01-01"},
        "ben": {"hash": hash_of("b"), "tools": ["wether"]},
    }
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {}, "keys": keys}))
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "OPENAI_BASE_URL": app.settings.upstream.base_url,
        "MCP_SERVER_ENDPOINTS": app.settings.tools.endpoints[0].url,
    }
    command = [sys.executable, "-m", "toolway", "doctor"]
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False).stdout
    assert "FAIL keys: 2 in the mcp.json; expired: old" in said
    assert "FAIL tools of ben: no tool is meant by wether" in said


def test_clients_that_call_tools_themselves_see_what_their_key_may_use(app: AppServer):
    for path in ("/openapi.json", "/tools/openapi.json"):
        document = httpx2.get(app.url + path, headers=bearer("carol")).text
        assert "get_weather" in document and "secret_tool" not in document
    guesses = [
        httpx2.post(f"{app.url}/tools/{name}", json={}, headers=bearer("carol"))
        for name in ("secret_tool", "no_such_tool")
    ]
    assert [guess.status_code for guess in guesses] == [404, 404]
    assert guesses[0].text.replace("secret_tool", "no_such_tool") == guesses[1].text


def mcp(app: AppServer, key: str, method: str, **params: Any) -> str:
    """What a client of MCP hears, without a session."""
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    about = {
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta | about}}
    headers = {
        **bearer(key),
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
        **({"mcp-name": params["name"]} if "name" in params else {}),
    }
    return httpx2.post(f"{app.url}/mcp", json=body, headers=headers, timeout=60).text


def test_clients_of_mcp_see_what_their_key_may_use(app: AppServer):
    listed = mcp(app, "carol", "tools/list")
    assert "get_weather" in listed and "secret_tool" not in listed
    assert "secret_tool" not in mcp(app, "alice", "tools/list")
    guesses = [
        mcp(app, "carol", "tools/call", name=name, arguments={}) for name in ("secret_tool", "no_such_tool")
    ]
    assert "Unknown tool" in guesses[0]
    assert guesses[0].replace("secret_tool", "no_such_tool") == guesses[1]
    assert not app.tools.calls


@pytest.mark.parametrize(("key", "count"), [("alice", 1), ("elsewhere", 0)])
def test_a_server_all_of_whose_tools_are_hidden_is_in_no_health_report(app: AppServer, key: str, count: int):
    while (answer := httpx2.get(f"{app.url}/readyz", headers=bearer("carol"))).json()[
        "status"
    ] == "not ready":
        assert answer.status_code == 503
    assert len(httpx2.get(f"{app.url}/readyz", headers=bearer(key)).json()["servers"]) == count


def test_a_server_that_is_down_and_hidden_from_a_key_does_not_make_its_report_degraded(tmp_path: Path):
    keys = {
        "here": {"hash": hash_of("here"), "exclude": ["gone.*"]},
        "there": {"hash": hash_of("there"), "tools": ["gone.*"]},
        "all": {"hash": hash_of("all")},
    }
    dead = {"gone": {"type": "http", "url": f"http://127.0.0.1:{free_port()}/mcp"}}
    with app_server(config=write(tmp_path / "mcp.json", keys=keys, mcpServers=dead)) as app:

        def report(key: str) -> Any:
            return httpx2.get(f"{app.url}/readyz", headers=bearer(key), timeout=DEADLINE).json()

        wait_until(lambda: report("all")["status"] == "degraded")
        here = report("here")
        assert here["status"] == "ready"
        assert set(report("all")["servers"]) - set(here["servers"]) == {"gone"}
        assert report("there")["status"] == "degraded"
        assert list(report("there")["servers"]) == ["gone"]
