"""Requests that wait for the console or the command line, direct callers that come again, MCP elicitation, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import orjson
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import ElicitResult

from tests.integration.access.chat import Chat, code_in, is_question, write_config
from tests.integration.mcp.conftest import TOOLWAY
from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.raw import raw_server
from tests.support.servers import free_port
from toolway.access.keys import hash_of

JSON = dict[str, Any]
ASK: JSON = {"tools": ["get_weather"], "effect": "ask"}
CONSOLE = {"x-toolway-console": "open"}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[AppServer]:
    with app_server(
        config=write_config(tmp_path, [ASK]), approval_wait=DEADLINE, keepalive_interval=0.05
    ) as server:
        yield server


def waiting(app: AppServer, count: int) -> list[JSON]:
    """The calls that wait, once there are so many."""
    end = time.monotonic() + DEADLINE
    while True:
        answer = httpx2.get(f"{app.url}/console/api/approvals", timeout=DEADLINE)
        assert answer.status_code == 200, answer.text
        found: list[JSON] = answer.json()["approvals"]
        if len(found) == count:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.05)


def decide(app: AppServer, identity: str, **body: Any) -> httpx2.Response:
    return httpx2.post(
        f"{app.url}/console/api/approvals/{identity}", json=body, headers=CONSOLE, timeout=DEADLINE
    )


def in_background(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    return thread, results


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("approve", [True, False])
def test_a_request_goes_on_when_the_console_answers(app: AppServer, stream: bool, approve: bool) -> None:
    chat = Chat(app, stream=stream)
    thread, answers = in_background(lambda: chat.say("weather: Paris"))
    (approval,) = waiting(app, 1)
    assert (approval["name"], approval["arguments"]) == ("get_weather", {"city": "Paris"})
    assert "owner" not in approval
    assert decide(app, approval["id"], approve=approve, reason="because").json()["is_first"] is True
    thread.join()
    assert answers == ["Done."]
    assert chat.cities == (["Paris"] if approve else [])
    assert ("because" in chat.seen[-1]["content"]) is not approve
    again = decide(app, approval["id"], approve=not approve)
    assert (again.json()["approve"], again.json()["is_first"]) == (approve, False)
    assert waiting(app, 0) == []


def test_always_for_a_key_is_listed_and_revoked(app: AppServer) -> None:
    thread, _ = in_background(lambda: Chat(app).say("weather: Paris"))
    (approval,) = waiting(app, 1)
    decide(app, approval["id"], approve=True, always="key")
    thread.join()
    chat = Chat(app)
    assert chat.say("weather: Rome") == "Done."
    assert chat.cities == ["Paris", "Rome"]
    (grant,) = httpx2.get(f"{app.url}/console/api/grants", timeout=DEADLINE).json()["grants"]
    assert (grant["scope"], grant["tool"]) == ("key", "get_weather")
    httpx2.delete(
        f"{app.url}/console/api/grants/{grant['id']}", headers=CONSOLE, timeout=DEADLINE
    ).raise_for_status()
    thread, _ = in_background(lambda: Chat(app).say("weather: Oslo"))
    decide(app, waiting(app, 1)[0]["id"], approve=False)
    thread.join()
    assert chat.cities == ["Paris", "Rome"]


def test_a_hundred_calls_of_clients_that_leave_wait_no_more(app: AppServer) -> None:
    chat = Chat(app)
    cities = ", ".join(f"city {number}" for number in range(25))
    body = {"model": "mock", "messages": [{"role": "user", "content": f"weather: {cities}"}], "stream": True}

    def leave() -> None:
        with httpx2.stream("POST", f"{app.url}/v1/chat/completions", json=body, timeout=DEADLINE) as answer:
            left.wait(DEADLINE)
            answer.close()

    left = threading.Event()
    threads = [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = waiting(app, 100)
    left.set()
    for thread in threads:
        thread.join()
    waiting(app, 0)
    assert decide(app, found[0]["id"], approve=True).status_code == 404
    assert chat.cities == []


def test_bad_answers_are_refused(app: AppServer) -> None:
    assert decide(app, "apr_gone", approve=True).status_code == 404
    assert decide(app, "apr_gone", approve="yes").status_code == 400
    assert decide(app, "apr_gone", approve=True, always="ever").status_code == 400
    url = f"{app.url}/console/api/approvals/apr_gone"
    assert httpx2.post(url, json={"approve": True}, timeout=DEADLINE).status_code == 403


def test_a_direct_caller_comes_again_after_a_yes_and_runs_once(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with app_server(config=write_config(tmp_path, [ASK]), audit=str(log)) as app:

        def call(city: str = "Paris") -> httpx2.Response:
            return httpx2.post(f"{app.url}/tools/get_weather", json={"city": city}, timeout=DEADLINE)

        first = call()
        assert first.status_code == 403
        assert "a person must approve it first" in first.json()["detail"]
        assert call().status_code == 403
        (approval,) = waiting(app, 1)
        decide(app, approval["id"], approve=True)
        assert call("Rome").status_code == 403
        assert call().json() == {"city": "Paris", "sky": "cloudy"}
        assert app.tools.calls == [("get_weather", {"city": "Paris"})]
        assert call().status_code == 403
    told = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    members = ("event", "toolway.decision", "error.type")
    assert [tuple(entry.get(name) for name in members) for entry in told] == [
        ("approval.asked", "ask", None),
        ("call", "ask", "asked"),
        ("call", "ask", "asked"),
        ("approval.asked", "ask", None),
        ("call", "ask", "asked"),
        ("approval.answered", "allow", None),
        ("call", "ask", None),
        ("approval.asked", "ask", None),
        ("call", "ask", "asked"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "(toolway approvals approve apr_"),
        ({"port": 9191}, " --url http://127.0.0.1:9191). When that is done"),
        ({"console": False}, "nobody can be asked: the console and its commands are off (TOOLWAY_CONSOLE)"),
    ],
)
def test_a_direct_caller_is_told_what_can_be_done(tmp_path: Path, options: JSON, words: str) -> None:
    with app_server(config=write_config(tmp_path, [ASK]), **options) as app:
        told = httpx2.post(f"{app.url}/tools/get_weather", json={"city": "Paris"}, timeout=DEADLINE)
        assert words in told.json()["detail"]


async def test_who_cannot_be_asked_over_stdio_is_told_what_can_be_done(tmp_path: Path) -> None:
    config, store = write_config(tmp_path, [ASK]), f"sqlite:///{tmp_path}/store.db"

    @asynccontextmanager
    async def connected(**more: str) -> AsyncIterator[Client]:
        env = {"MCP_SERVER_ENDPOINTS": app.settings.tools.endpoints[0].url, "TOOLWAY_CONFIG": config, **more}
        place = StdioServerParameters(command=TOOLWAY, args=["mcp"], env=env, cwd=str(tmp_path))
        async with Client(place, mode="legacy") as client:
            yield client

    async def call(client: Client) -> str:
        (block,) = (await client.call_tool("get_weather", PARIS)).content
        return block.text

    with app_server(config=config, store=store) as app:
        async with connected() as client:
            told = await call(client)
            assert "what waits in the memory of `toolway mcp` nobody else sees" in told
            assert "the same TOOLWAY_STORE" in told
            assert "apr_" not in told
        async with connected(TOOLWAY_STORE=store) as client:
            told = await call(client)
            assert "at a running `toolway serve` with the same TOOLWAY_STORE (toolway approvals" in told
            (approval,) = waiting(app, 1)
            assert f"approve {approval['id']})" in told
            decide(app, approval["id"], approve=True)
            assert "cloudy" in await call(client)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "http://127.0.0.1:{free}",
            "nobody listens there; start `toolway serve`, or say with --url where it runs.",
        ),
        ("http://no-such-host.invalid", "its host name is unknown."),
        ("http://127.0.0.1:{other}", "no Toolway; is it the right --url"),
    ],
)
async def test_why_the_console_cannot_be_asked_is_told_in_plain_words(
    tmp_path: Path, url: str, words: str
) -> None:
    async def ssh(_: Any, writer: Any) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.7\r\n")

    async with raw_server(ssh) as port:
        command = [TOOLWAY, "approvals", "list", "--url", url.format(free=free_port(), other=port)]
        ran = await anyio.run_process(command, check=False, cwd=tmp_path)
    assert ran.returncode == 1
    assert words in ran.stderr.decode()
    assert "rrno" not in ran.stderr.decode()


def test_the_command_line_says_how_to_make_and_give_a_key(tmp_path: Path) -> None:
    config = write_config(tmp_path, [ASK], keys={"anna": {"hash": hash_of("anna")}})

    def toolway(*arguments: str) -> str:
        command = [sys.executable, "-m", "toolway", *arguments]
        ran = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return ran.stdout + ran.stderr

    with app_server(config=config) as app:
        told = toolway("approvals", "list", "--url", app.url)
        assert "Make one: `toolway keys add op --routes console`" in told
        assert told.endswith("Give it with --key, or in TOOLWAY_CONSOLE_KEY.\n")
        made = re.search(r"sk-toolway-\w+", toolway("keys", "add", "op", "--routes", "console"))
        assert made
        end = time.monotonic() + DEADLINE  # until the file was read again
        while not httpx2.get(f"{app.url}/console/api/session", timeout=DEADLINE).json()["can_sign_in"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        given = ("approvals", "list", "--url", app.url, "--key", made[0])
        assert toolway(*given) == "Nothing waits.\n"
        assert "The console opens with a key. Give it with --key" in toolway(*given[:-2])


def test_the_command_line_lists_and_answers(app: AppServer, tmp_path: Path) -> None:
    def toolway(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "toolway", "approvals", *arguments, "--url", app.url],
            check=False,
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return ran.stdout + ran.stderr

    chat = Chat(app)
    thread, answers = in_background(lambda: chat.say("weather: Paris"))
    (approval,) = waiting(app, 1)
    listed = toolway("list")
    assert approval["id"] in listed
    assert '"city": "Paris"' in listed
    assert toolway("approve", approval["id"]) == "It is approved.\n"
    thread.join()
    assert answers == ["Done."]
    assert chat.cities == ["Paris"]
    assert "There is no approval" in toolway("deny", "apr_gone")
    assert "There is no" in toolway("deny", "no such/id")
    assert toolway("list") == "Nothing waits.\n"
    assert toolway("grants") == "There are none.\n"


def test_policy_explain_and_audit(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    rules = [
        {"servers": ["nobody"], "effect": "deny"},
        {**ASK, "name": "weather", "effect": "deny", "reason": "No."},
    ]
    access = {
        "keys": {"tim": {"hash": hash_of("tim"), "group": "kids", "models": ["small*"]}},
        "groups": {"kids": {"exclude": ["list_*"], "routes": ["chat"]}},
    }
    with app_server(config=write_config(tmp_path, rules, **access), audit=str(log)) as app:
        Chat(app, headers={"authorization": "Bearer tim"}, model="small").say("weather: Paris")
        tools = app.settings.tools.endpoints[0].url

        def toolway(*arguments: str) -> tuple[int, str]:
            ran = subprocess.run(
                [sys.executable, "-m", "toolway", *arguments],
                check=False,
                cwd=tmp_path, capture_output=True, text=True, timeout=60,
                env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MCP_SERVER_ENDPOINTS": tools},
            )  # fmt: skip
            return ran.returncode, ran.stdout + ran.stderr

        status, told = toolway("policy", "explain", "get_weather", '{"city": "Paris"}')
        assert status == 0
        assert told.splitlines()[0].startswith("rule 1  does not fit: servers")
        assert told.splitlines()[1].startswith("weather  decides: deny, No.")
        status, told = toolway("policy", "explain", "list_cities", "{}", "--json")
        assert orjson.loads(told)["effect"] == "allow"
        assert "Did you mean get_weather?" in toolway("policy", "explain", "get_wether")[1]
        assert "There is no key bob" in toolway("policy", "explain", "get_weather", "--key", "bob")[1]
        label = app.settings.tools.endpoints[0].label
        name = f"{label}.get_weather"
        qualified = toolway("policy", "explain", name, '{"city": "Paris"}', "--key", "tim")[1]
        assert "weather  decides: deny" in qualified
        for options, told in (
            (["--key", "tim"], "there is no tool list_cities for tim  ("),
            (["--group", "kids"], "there is no tool list_cities for the group kids  ("),
            (["--key", "tim", "--dialect", "mcp"], "tim may not use mcp"),
            (["--key", "tim", "--model", "large"], "there is no model large for tim"),
            (["--group", "team"], "There is no group team in the mcp.json; those that are: kids."),
        ):
            assert told in toolway("policy", "explain", "list_cities", *options)[1]
        assert "Such a call fails before any rule is asked" in toolway("policy", "explain", "get_weather")[1]
    entries = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    assert [(entry["gen_ai.tool.name"], entry["toolway.rule"]) for entry in entries] == [
        ("get_weather", "weather")
    ]
    assert entries[0]["gen_ai.conversation.id"]
    assert "No entry fits; the log tells of: call." in toolway("audit", str(log), "--decision", "allow")[1]
    assert "write a time or its beginning" in toolway("audit", str(log), "--since", "yesterday")[1]
    assert "There is no file" in toolway("audit", f"{log}.not")[1]
    named = {**entries[0], "toolway.key.name": "Jürgen\x1b[31m", "event": "call"}
    log.write_bytes(orjson.dumps(named) + b"\n" + log.read_bytes())
    assert "Jürgen\\x1b[31m" in toolway("audit", str(log), "--event", "call")[1]
    assert "get_weather  deny  weather  denied" in toolway("audit", str(log), "--tool", "get_*")[1]
    changed = {"event": "config.changed", "toolway.changed": "git", "toolway.by": "tim"}
    log.write_bytes(orjson.dumps({"time": "2026-11-29", **changed}) + b"\n")
    assert toolway("audit", str(log))[1] == "2026-11-29  config.changed  tim  git  -  -\n"


def test_what_no_chat_answers_is_asked_in_the_chat_when_nobody_else_did(tmp_path: Path) -> None:
    with app_server(config=write_config(tmp_path, [ASK]), approval_wait=0.2) as app:
        chat = Chat(app)
        assert is_question(chat.say("weather: Paris"))
        (approval,) = waiting(app, 1)
        decide(app, approval["id"], approve=True)
        chat.say("Is it done?")
        assert chat.cities == ["Paris"]
        assert [message["role"] for message in chat.seen] == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("answer", ["no", "no CODE", "nein"])
def test_a_no_in_the_chat_counts_also_when_the_console_said_yes_before(tmp_path: Path, answer: str) -> None:
    with app_server(config=write_config(tmp_path, [ASK]), approval_wait=0.2) as app:
        chat = Chat(app)
        question = chat.say("weather: Paris")
        decide(app, waiting(app, 1)[0]["id"], approve=True, always="key")
        chat.say(answer.replace("CODE", code_in(question)))
        assert chat.cities == []
        assert "the user did not approve it" in chat.seen[-1]["content"]
        assert httpx2.get(f"{app.url}/console/api/grants", timeout=DEADLINE).json() == {"grants": []}


def test_a_no_of_the_console_counts_also_when_it_said_yes_before(tmp_path: Path) -> None:
    with app_server(config=write_config(tmp_path, [ASK]), approval_wait=0.2) as app:
        chat = Chat(app)
        chat.say("weather: Paris")
        (approval,) = waiting(app, 1)
        decide(app, approval["id"], approve=True)
        assert decide(app, approval["id"], approve=False).json()["approve"] is False
        chat.say("yes")
        assert chat.cities == []


PARIS: JSON = {"city": "Paris"}
SEARCHED: JSON = {"searched": {"tools": ["*"], "tool_search": "on"}}


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
@pytest.mark.parametrize(
    ("path", "name", "arguments"),
    [
        ("/mcp", "get_weather", PARIS),
        ("/mcp/searched", "call_tool", {"name": "get_weather", "arguments": PARIS}),
    ],
    ids=["listed", "searched"],
)
@pytest.mark.parametrize(
    ("answer", "run"),
    [
        (ElicitResult(action="accept", content={"allow": True}), ["Paris"]),
        (ElicitResult(action="accept", content={"allow": False}), []),
        (ElicitResult(action="decline"), []),
        (ElicitResult(action="cancel"), []),
    ],
)
async def test_the_person_at_an_mcp_client_is_asked(
    tmp_path: Path,
    mode: str,
    path: str,
    name: str,
    arguments: JSON,
    answer: ElicitResult,
    run: list[str],
) -> None:
    asked: list[str] = []

    async def elicit(_: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return answer

    with app_server(config=write_config(tmp_path, [ASK]), profiles=SEARCHED) as app:
        app.until_ready()
        async with Client(f"{app.url}{path}", mode=mode, elicitation_callback=elicit) as client:
            result = await client.call_tool(name, arguments)
        assert len(asked) == 1
        assert '"city": "Paris"' in asked[0]
        assert result.is_error is not bool(run)
        assert [arguments["city"] for _, arguments in app.tools.calls] == run
