"""The commands as people run them: subprocesses with an environment of their own, their output and exit status."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from tests.support.app_server import QUESTION, until_ready
from tests.support.gate import Gate
from tests.support.paths import ROOT
from tests.support.servers import free_port, running
from tests.support.tools import Raw, ToolService
from tests.support.upstream import (
    Reply,
    ScriptedUpstream,
    chunk,
    json_reply,
    sse,
    tool_call,
    whole,
)
from tests.unit.demo.test_demo import descendants_of
from tests.unit.tools.mcp.servers.guarded import Guarded
from toolway.access.keys import hash_of

TIMEOUT = 60
"""Seconds; Python has to start and import everything, perhaps on a busy machine."""

MODELS = json_reply({"object": "list", "data": [{"id": "mock"}]})


async def broken(_: Any) -> Raw:
    return Raw(b'{"detail":"no such city"}', 500)


@pytest.fixture(scope="module")
def tools_url():
    with running(ToolService(broken=broken), lifespan="off") as url:
        yield url


class Model(ScriptedUpstream):
    """A model server that lists its models and answers."""

    def __init__(self, models: Reply = MODELS, answer: Reply | Callable[[Any], Reply] | None = None) -> None:
        super().__init__([])
        self._models = models
        self._answer = answer or whole({"content": "Hello"})

    def _reply(self, body: bytes) -> Reply:
        if not body:
            return self._models
        return self._answer(orjson.loads(body)) if callable(self._answer) else self._answer


@contextmanager
def model_server(model: Model | None = None, **replies: Any) -> Iterator[str]:
    with running(model or Model(**replies), lifespan="off") as url:
        yield f"{url}/v1"


def tools_in(body: Any) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools", ())]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "200", **variables}


def toolway(
    *arguments: str, cwd: Path, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `toolway ...` to its end, in an empty folder."""
    return subprocess.run(
        [sys.executable, "-m", "toolway", *arguments],
        cwd=cwd,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_tools_lists_every_tool_with_its_server_and_state(tools_url: str, tmp_path: Path):
    ran = toolway("tools", cwd=tmp_path, MCP_SERVER_ENDPOINTS=f"town={tools_url}")
    assert ran.returncode == 0
    assert re.search(r"get_weather\s+town\s+ready\s+Runs get_weather", ran.stdout)


def test_tools_as_json_has_the_promised_members(tools_url: str, tmp_path: Path):
    down = f"http://127.0.0.1:{free_port()}"
    ran = toolway("tools", "--json", cwd=tmp_path, MCP_SERVER_ENDPOINTS=f"town={tools_url},gone={down}")
    assert ran.returncode == 0
    listed = orjson.loads(ran.stdout)
    assert [tool["name"] for tool in listed] == ["broken", "get_weather", "list_cities"]
    assert all(set(tool) == {"name", "server", "description", "parameters", "available"} for tool in listed)
    assert listed[1]["parameters"]["required"] == ["city"]


def test_tools_without_servers_says_what_to_set(tmp_path: Path):
    ran = toolway("tools", cwd=tmp_path)
    assert ran.returncode == 1
    assert "MCP_SERVER_ENDPOINTS" in ran.stderr


def test_tools_says_which_server_is_down(tmp_path: Path):
    ran = toolway("tools", cwd=tmp_path, MCP_SERVER_ENDPOINTS=f"gone=http://127.0.0.1:{free_port()}")
    assert "gone" in ran.stdout
    assert "cannot be reached" in ran.stdout


def test_tools_fails_when_no_server_can_be_used(tmp_path: Path):
    gone = f"gone=http://127.0.0.1:{free_port()}"
    for arguments in (["tools"], ["tools", "--json"]):
        ran = toolway(*arguments, cwd=tmp_path, MCP_SERVER_ENDPOINTS=gone)
        assert ran.returncode == 1
        assert "No tool server can be used" in ran.stderr
    assert ran.stdout == "[]\n"
    assert "gone: failed (" in ran.stderr


SERVE = [sys.executable, "-m", "toolway", "serve", "--port", "0"]


@contextmanager
def talkative_tools(count: int = 3) -> Iterator[str]:
    """A service whose tools have a page of description each."""
    service = ToolService(**{f"tool_{number:03}": broken for number in range(count)})
    for path in service.document["paths"].values():
        path["post"]["description"] = (
            "Does one thing\nwith a city. " + "And on it goes, " * 50 + "\n\nThe end."
        )
    with running(service, lifespan="off") as url:
        yield f"town={url}"


def on_terminal(columns: int, *arguments: str, cwd: Path, **variables: str) -> list[str]:
    """The lines that a command prints on a terminal of this width."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (50, columns))
    env = {**environment(**variables), "TERM": "xterm"}
    del env["COLUMNS"]
    command = [sys.executable, "-m", "toolway", *arguments]
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower
    ):
        os.close(follower)
        said = b""
        with suppress(OSError):  # Linux says so when the other end is closed
            while part := os.read(leader, 65536):
                said += part
    os.close(leader)
    return re.sub(r"\x1b\[[\d;]*m", "", said.decode()).splitlines()


def test_tools_shows_first_sentences_that_fit_the_terminal(tmp_path: Path):
    with talkative_tools() as endpoint:
        lines = on_terminal(80, "tools", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint)
        assert "tool_001     town    ready  Does one thing with a city." in lines
        assert max(map(len, lines)) <= 80
        narrow = on_terminal(40, "tools", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint)
        assert narrow[narrow.index("tool_001     town    ready") + 1] == "    Does one thing with a city."
        full = toolway("tools", "--full", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint).stdout
    assert full.count("    The end.\n") == full.count("    Does one thing\n") > 1


def test_what_goes_into_a_file_is_neither_cut_nor_wrapped(tmp_path: Path):
    with talkative_tools() as endpoint, model_server() as base:
        text = toolway("tools", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint, COLUMNS="40").stdout
        found = toolway(
            "doctor", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint, OPENAI_BASE_URL=base, COLUMNS="40"
        )
    assert "tool_001     town    ready  Does one thing with a city.\n" in text
    assert "…" not in text
    assert f"model server {base}: answers; models: mock\n" in found.stdout


def test_too_many_tools_are_told_everywhere(tmp_path: Path):
    with talkative_tools(130) as endpoint, model_server() as base:
        variables = {"MCP_SERVER_ENDPOINTS": endpoint, "OPENAI_BASE_URL": base, "TOOLWAY_TOOL_SEARCH": "off"}
        examined = toolway("doctor", cwd=tmp_path, **variables)
        listed = toolway("tools", cwd=tmp_path, **variables)
        with serving(SERVE, tmp_path, **variables) as (process, _):
            warned = warned_of_size(process)
            assert "warning tools" in warned
    assert examined.returncode == 1
    assert "All is well" not in examined.stdout
    assert "and 122 more" in examined.stdout
    for text in (examined.stdout, listed.stderr, warned):
        assert re.search(r"132 tools take about [\d,]+ tokens", text), text
        assert "OpenAI" not in text, "the model server is another"
    assert "`include` or a profile" in warned


def test_tools_that_fill_the_context_are_told_in_numbers(tmp_path: Path):
    refusal = {"error": {"message": "the prompt is too long", "n_prompt_tokens": 9000, "n_ctx": 4096}}
    model = Model(answer=json_reply(refusal, 400))
    model.models = json_reply({"object": "list", "data": [{"id": "mock", "max_model_len": 4096}]})
    with talkative_tools(20) as endpoint, model_server(model) as base:
        variables = {"MCP_SERVER_ENDPOINTS": endpoint, "OPENAI_BASE_URL": base, "TOOLWAY_TOOL_SEARCH": "off"}
        ran = toolway("doctor", cwd=tmp_path, **variables)
    assert ran.returncode == 1
    assert re.search(r"the definitions of 22 tools take about [\d,]+ of 4,096 tokens\n", ran.stdout)
    assert "or give the model a larger context." in ran.stdout
    assert "a chat request failed: The model server answered 400: the prompt is too long\n" in ran.stdout


def test_tools_that_are_searched_are_told_in_numbers(tmp_path: Path):
    model = Model()
    model.models = json_reply({"object": "list", "data": [{"id": "mock", "max_model_len": 4096}]})
    with talkative_tools(130) as endpoint, model_server(model) as base:
        ran = toolway("doctor", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoint, OPENAI_BASE_URL=base)
    assert re.search(r"132 tools take about [\d,]+ of 4,096 tokens\n", ran.stdout), ran.stdout
    assert "The model searches them (TOOLWAY_TOOL_SEARCH)." in ran.stdout
    assert "with 2 tools (132 are searched)" in ran.stdout
    assert ran.returncode == 0


def warned_of_size(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if " tools: " in line)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_the_start_says_which_models_search_when_there_are_several(tmp_path: Path, mode: str):
    model = Model()
    entries = [{"id": "small", "max_model_len": 4096}, {"id": "large", "max_model_len": 200_000}]
    model.models = json_reply({"object": "list", "data": entries})
    with talkative_tools(130) as endpoint, model_server(model) as base:
        variables = {"MCP_SERVER_ENDPOINTS": endpoint, "OPENAI_BASE_URL": base, "TOOLWAY_TOOL_SEARCH": mode}
        with serving(SERVE, tmp_path, **variables) as (process, _):
            warned = warned_of_size(process)
    took = re.search(r"132 tools take about ([\d,]+) tokens; ", warned)
    assert took, warned
    if mode == "on":
        assert "the model searches them" in warned
    else:
        threshold = re.search(r"read less than ([\d,]+) searches them, any other gets all", warned)
        assert threshold, warned
        tokens, least = (int(found[1].replace(",", "")) for found in (took, threshold))
        assert 4096 < least <= 200_000
        assert tokens == pytest.approx(0.4 * least, abs=1)


def test_call_says_that_there_is_an_image(tmp_path: Path):
    async def picture(_: Any) -> Raw:
        return Raw(b"\x89PNG" + bytes(996), kind=b"image/png")

    with running(ToolService(picture=picture), lifespan="off") as url:
        ran = toolway("call", "picture", '{"city": "Paris"}', cwd=tmp_path, MCP_SERVER_ENDPOINTS=url)
    assert (ran.returncode, ran.stderr) == (
        0,
        "(A picture, image/png, about 1,002 bytes; --json prints it as base64.)\n",
    )


def test_call_runs_a_tool_and_prints_its_result(tools_url: str, tmp_path: Path):
    ran = toolway("call", "get_weather", '{"city": "Paris"}', cwd=tmp_path, MCP_SERVER_ENDPOINTS=tools_url)
    assert (ran.returncode, ran.stdout) == (0, '{"city":"Paris","sky":"cloudy"}\n')


def test_call_reads_arguments_from_stdin_and_prints_json(tools_url: str, tmp_path: Path):
    ran = toolway(
        "call",
        "get_weather",
        "-",
        "--json",
        cwd=tmp_path,
        stdin='{"city": "Rome"}',
        MCP_SERVER_ENDPOINTS=tools_url,
    )
    assert ran.returncode == 0
    result = orjson.loads(ran.stdout)
    assert result["is_error"] is False
    assert "Rome" in result["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["broken", '{"city": "x"}'], "no such city"),
        (["get_wether"], "Did you mean get_weather"),
        (["town.get_wether"], "Did you mean town.get_weather"),
        (["get_weather", "{}"], "`city` is required"),
        (["get_weather", "{oops"], "line 1 column 2"),
        (["get_weather", "[]"], "it is not a JSON object. Write a JSON object, like"),
    ],
)
def test_call_fails_with_status_1_and_says_why(
    tools_url: str, tmp_path: Path, arguments: list[str], words: str
):
    ran = toolway("call", *arguments, cwd=tmp_path, MCP_SERVER_ENDPOINTS=f"town={tools_url}")
    assert ran.returncode == 1
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_call_takes_the_name_that_rules_have(tools_url: str, tmp_path: Path):
    ran = toolway("call", "town.list_cities", cwd=tmp_path, MCP_SERVER_ENDPOINTS=f"town={tools_url}")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", [("call",), ("policy", "explain")])
def test_a_tool_that_is_not_there_may_be_one_of_a_server_that_is_down(
    tools_url: str, tmp_path: Path, command: tuple[str, ...]
):
    endpoints = f"town={tools_url},gone=http://127.0.0.1:{free_port()}"
    ran = toolway(*command, "gone.read_file", cwd=tmp_path, MCP_SERVER_ENDPOINTS=endpoints)
    assert ran.returncode == 1
    assert "There is no tool named gone.read_file" in ran.stderr
    assert "The server gone is not up" in ran.stderr
    assert "town" not in ran.stderr


def test_doctor_finds_no_fault_with_what_names_tools_of_a_server_that_is_down(tools_url: str, tmp_path: Path):
    rules = [
        {"tools": ["read_file"], "servers": ["gone"], "effect": "deny"},
        {"tools": ["gone.*"], "effect": "ask"},
        {"tools": ["get_wether"], "servers": ["town"], "effect": "ask"},
    ]
    keys = {"ann": {"hash": hash_of("ann"), "tools": ["gone.*"]}}
    variables = {"MCP_SERVER_ENDPOINTS": f"town={tools_url},gone=http://127.0.0.1:{free_port()}"}
    said = []
    for chosen in (rules, rules[:2]):
        config = {"mcpServers": {}, "rules": chosen, "keys": keys}
        (tmp_path / "mcp.json").write_bytes(orjson.dumps(config))
        _, found = examined(tmp_path, **variables)
        said.append(found)
    assert "'get_wether' fits no tool" in said[0]["rules"]["detail"]
    assert "gone" not in said[0]["rules"]["detail"]
    assert said[1]["rules"]["ok"], said[1]
    assert "the tools of gone is not known before it is up" in said[1]["rules"]["detail"]
    assert "tools" not in said[1], "nothing is said of the key's patterns"


def examined(tmp_path: Path, **variables: str) -> tuple[int, dict[str, Any]]:
    """`toolway doctor --json`: its status, and check -> finding."""
    ran = toolway("doctor", "--json", cwd=tmp_path, **variables)
    assert "Traceback" not in ran.stderr
    report = orjson.loads(ran.stdout)
    assert report["ok"] is (ran.returncode == 0)
    return ran.returncode, {finding["check"].split()[0]: finding for finding in report["checks"]}


def test_doctor_finds_all_well(tools_url: str, tmp_path: Path):
    with model_server() as base:
        ran = toolway("doctor", cwd=tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=tools_url)
    assert ran.returncode == 0
    assert "All is well" in ran.stdout
    assert "3 tools" in ran.stdout


def test_doctor_says_that_the_model_server_is_down(tools_url: str, tmp_path: Path):
    base = f"http://127.0.0.1:{free_port()}/v1"
    ran = toolway("doctor", cwd=tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=tools_url)
    assert ran.returncode == 1
    assert re.search(r"FAIL model server .*cannot be reached", ran.stdout)
    assert "OPENAI_BASE_URL" in ran.stdout


DOCTOR = {
    "no models": ({"models": json_reply({"data": []})}, "model", "no models"),
    "not an API": (
        {"models": Reply([b"<html>"], headers=[(b"content-type", b"text/html")])},
        "model",
        "not a list",
    ),
    "wants a key": ({"models": json_reply({"error": {}}, 401)}, "model", "401"),
    "refuses the tools": (
        {"answer": json_reply({"error": {"message": "failed to parse grammar"}}, 400)},
        "model",
        "failed to parse grammar",
    ),
    "answers nonsense": ({"answer": Reply([b"ok"])}, "model", "failed"),
}


@pytest.mark.parametrize("name", DOCTOR)
def test_doctor_says_what_is_wrong_with_the_model_server(tools_url: str, tmp_path: Path, name: str):
    replies, check, words = DOCTOR[name]
    with model_server(**replies) as base:
        status, findings = examined(tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=tools_url)
    assert status == 1
    assert not findings[check]["ok"]
    assert words in findings[check]["detail"]


def test_doctor_names_a_tool_that_the_model_server_refuses(tools_url: str, tmp_path: Path):
    def answer(body: Any) -> Reply:
        if "broken" in tools_in(body):
            return json_reply({"error": {"message": "failed to parse grammar"}}, 400)
        return whole({"content": "Hello"})

    with model_server(answer=answer) as base:
        ran = toolway("doctor", cwd=tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=f"town={tools_url}")
    assert ran.returncode == 1
    said = ran.stdout.splitlines()
    assert "ok   model mock: answers a chat request with 2 tools, their schemas as for openai" in said
    start = "FAIL tool broken of town: the model server refuses it: "
    (refused,) = [number for number, line in enumerate(said) if line.startswith(start)]
    assert "failed to parse grammar" in said[refused]
    assert said[refused + 1].strip().startswith("-> It is left out of requests. Mend its schema")
    assert said[-1] == "1 of 5 checks failed."
    assert "Traceback" not in ran.stderr


def test_doctor_says_that_a_tool_server_is_down(tools_url: str, tmp_path: Path):
    down = f"http://127.0.0.1:{free_port()}"
    with model_server() as base:
        ran = toolway(
            "doctor", cwd=tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=f"town={tools_url},gone={down}"
        )
    assert ran.returncode == 1
    assert re.search(r"ok +tool server town", ran.stdout)
    assert re.search(r"FAIL tool server gone.*cannot be reached", ran.stdout)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{port}/mcp", "the server cannot be reached: it refuses connections"),
        ("http://no-such-host.invalid/mcp", "the server cannot be found: its host name is unknown"),
    ],
)
def test_doctor_has_words_of_its_own_for_an_mcp_server_that_is_not_there(
    url: str, words: str, tmp_path: Path
):
    entry = {"mcpServers": {"gone": {"url": url.format(port=free_port())}}}
    (tmp_path / "mcp.json").write_bytes(orjson.dumps(entry))
    ran = toolway("doctor", "--json", cwd=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    check = next(c for c in orjson.loads(ran.stdout)["checks"] if c["check"] == "tool server gone")
    assert check["detail"].endswith(f"connect: {words}")
    assert "Start it, or correct its address" in check["advice"]


@pytest.mark.parametrize("at_its_end", ["", "raise SystemExit(3)"])
def test_doctor_tells_what_a_program_that_is_no_mcp_server_says(tmp_path: Path, at_its_end: str):
    program = f"print('Hello I am no JSON', flush=True); import sys; {at_its_end or 'sys.stdin.read()'}"
    entry = {"mcpServers": {"chatty": {"command": sys.executable, "args": ["-c", program]}}}
    (tmp_path / "mcp.json").write_bytes(orjson.dumps(entry))
    ran = toolway("doctor", "--json", cwd=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    check = next(c for c in orjson.loads(ran.stdout)["checks"] if c["check"] == "tool server chatty")
    assert "it wrote on its standard output: Hello I am no JSON" in check["detail"]
    assert check["advice"].startswith("Run its command by hand: an MCP server waits in silence")


@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--json"], ["tools"], ["tools", "--json"]])
def test_a_hostile_name_of_a_tool_reaches_no_terminal(tmp_path: Path, command: list[str]):
    program = tmp_path / "server.py"
    source = Path(ROOT, "tests/unit/tools/mcp/servers/bad_stdio.py").read_text()
    program.write_text(source.replace('"a b/c:é" * 20', '"evil\\u202e\\x1b[2J\\u200b"'))
    entry = {"mcpServers": {"bad": {"command": sys.executable, "args": [str(program), "weird_name"]}}}
    (tmp_path / "mcp.json").write_bytes(orjson.dumps(entry))
    ran = toolway(*command, cwd=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1")
    assert "evil" in ran.stdout
    assert all(one == "\n" or one.isprintable() for one in ran.stdout + ran.stderr)


def test_doctor_tries_the_store(tools_url: str, tmp_path: Path):
    with model_server() as base:
        variables = {"OPENAI_BASE_URL": base, "MCP_SERVER_ENDPOINTS": tools_url}
        status, findings = examined(tmp_path, TOOLWAY_STORE="sqlite:///store.db", **variables)
        assert (status, findings["store"]["ok"]) == (0, True)
        status, findings = examined(tmp_path, TOOLWAY_STORE="redis://:hunter2@127.0.0.1:1", **variables)
    assert (status, findings["store"]["ok"]) == (1, False)
    assert "redis://***@127.0.0.1:1 cannot be used" in findings["store"]["detail"]


def test_where_redis_is_not_installed_the_command_for_this_python_is_told(tools_url: str, tmp_path: Path):
    (tmp_path / "redis.py").write_text("raise ModuleNotFoundError(name='redis')")
    variables = {"TOOLWAY_STORE": "redis://127.0.0.1:1", "PYTHONPATH": str(tmp_path)}
    with model_server() as base:
        _, findings = examined(tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=tools_url, **variables)
    assert findings["store"]["detail"].endswith(f"run: {sys.executable} -m pip install 'redis>=6,<9'")


def test_doctor_says_that_no_tools_are_configured(tmp_path: Path):
    with model_server() as base:
        status, findings = examined(tmp_path, OPENAI_BASE_URL=base)
    assert status == 1
    assert "none are configured" in findings["tool"]["detail"]


def test_an_example_in_which_all_is_disabled_is_told_so(tmp_path: Path):
    (tmp_path / "mcp.json").write_text((ROOT / "mcp.example.json").read_text())
    said = 'Each of the 3 servers in mcp.json is disabled (files, search, weather): take "disabled": true out'
    ran = toolway("tools", cwd=tmp_path)
    assert ran.returncode == 1
    assert said in ran.stderr
    with model_server() as base:
        _, findings = examined(tmp_path, OPENAI_BASE_URL=base)
    assert said in findings["tool"]["detail"]


def test_an_entry_with_a_mistake_is_a_server_that_failed_and_the_others_run(tools_url: str, tmp_path: Path):
    town = {"type": "openapi", "url": tools_url}
    bad = {"command": "npx", "env": {"K": "${input:api-token}"}}
    (tmp_path / "mcp.json").write_bytes(orjson.dumps({"servers": {"bad": bad, "town": town}}))
    said = "mcp.json:1: bad.env.K: ${input:api-token} is asked for by another program; here set the variable API_TOKEN."
    ran = toolway("tools", cwd=tmp_path, COLUMNS="250")
    assert "get_weather" in ran.stdout
    assert f"configuration: {said}" in ran.stdout
    with model_server() as base:
        checks = orjson.loads(toolway("doctor", "--json", cwd=tmp_path, OPENAI_BASE_URL=base).stdout)[
            "checks"
        ]
        judged = {check["check"]: (check["ok"], check["detail"]) for check in checks}
        assert judged["tool server bad"] == (False, f"failed: configuration: {said}")
        assert judged["tool server town"][0]
        command = [sys.executable, "-m", "toolway", "serve", "--port", "0"]
        with serving(command, tmp_path, OPENAI_BASE_URL=base) as (process, _):
            until_said(process, f"server bad: failed ({said})")


MISSPELT = {
    "MCP_SERVER_ENDPOINTS": ("htp://localhost:8011, localhost:8012", "did you mean http://localhost:8011"),
    "OPENAI_BASE_URL": ("localhost:1234", "must start with http"),
    "TOOLWAY_PORT": ("eighty", "a port from 0 to 65535"),
    "DEBUG_OUTPUT": ("maybe", "true or false"),
}


def test_misspelt_settings_are_all_told_at_once_in_sentences(tmp_path: Path):
    variables = {name: value for name, (value, _) in MISSPELT.items()}
    ran = toolway("serve", cwd=tmp_path, **variables)
    status, findings = examined(tmp_path, **variables)
    assert (ran.returncode, status) == (1, 1)
    assert "Traceback" not in ran.stderr
    for told in (ran.stderr, findings["configuration"]["detail"]):
        assert all(name in told and words in told for name, (_, words) in MISSPELT.items())
        assert "localhost:8012 has no scheme" in told


def test_a_port_that_is_taken_is_told_with_status_1(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = toolway("serve", "--port", port, cwd=tmp_path)
    assert ran.returncode == 1
    assert f"Port {port}" in ran.stderr
    assert "TOOLWAY_PORT" in ran.stderr
    assert "Traceback" not in ran.stderr


@contextmanager
def serving(command: list[str], cwd: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, once it has said where it listens, and that address."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(PYTHONUNBUFFERED="1", **variables),
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr
            said = process.stderr.readline()
            found = re.search(r"http://[\d.]+:\d+", said)
            assert found, said + process.stderr.read()
            yield process, found[0]
        finally:
            if process.poll() is None:
                process.kill()


def test_app_py_serves_with_the_settings_of_dotenv(tools_url: str, tmp_path: Path):
    with model_server() as base:
        lines = [
            f"OPENAI_BASE_URL={base}",
            f"MCP_SERVER_ENDPOINTS={tools_url}",
            "DEBUG_OUTPUT=true",
            "TOOLWAY_PORT=0",
        ]
        (tmp_path / ".env").write_text("\n".join(lines))
        with serving([sys.executable, str(ROOT / "app.py")], tmp_path) as (process, url):
            until_ready(url)
            answer = httpx2.post(
                f"{url}/v1/chat/completions", json={"model": "mock", "messages": QUESTION}, timeout=TIMEOUT
            )
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=TIMEOUT)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert process.returncode == 0
    assert "mock, whole, 1 message, 3 tools" in log
    assert "Traceback" not in log


def test_app_py_without_toolway_says_what_to_run(tmp_path: Path):
    # Without the packages of this environment, as in a fresh clone.
    command = [sys.executable, "-I", "-S", str(ROOT / "app.py")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert ran.returncode == 1
    assert ran.stderr.startswith("toolway is not installed for ")
    assert "make install" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_sigterm_ends_the_server_within_its_grace_while_a_stream_runs(tmp_path: Path):
    gate = Gate()
    first = sse(chunk(role="assistant", content="Well"), done=False).parts
    command = [str(Path(sys.executable).with_name("toolway")), "serve", "--port", "0"]
    body = {"model": "mock", "messages": QUESTION, "stream": True}
    with (
        model_server(answer=Reply([*first, gate])) as base,
        serving(command, tmp_path, OPENAI_BASE_URL=base, TOOLWAY_SHUTDOWN_GRACE="0.5") as (process, url),
        httpx2.Client(timeout=TIMEOUT) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        assert b"Well" in next(answer.iter_raw())
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=TIMEOUT)
        gate.open()
    assert process.returncode == 0
    assert "Traceback" not in log


@pytest.mark.parametrize("what_runs", ["the model", "a tool"])
def test_a_request_that_a_stop_cuts_is_logged_once_and_as_that(what_runs: str, tmp_path: Path):
    gate = Gate()

    async def wait(_: Any) -> Any:
        await gate()
        return {}

    body = {"model": "mock", "messages": QUESTION}
    reply = whole({"tool_calls": [tool_call()]}) if what_runs == "a tool" else Reply([gate])
    with (
        running(ToolService(get_weather=wait), lifespan="off") as tools,
        model_server(answer=reply) as base,
        serving(
            SERVE, tmp_path, OPENAI_BASE_URL=base, MCP_SERVER_ENDPOINTS=tools, TOOLWAY_SHUTDOWN_GRACE="0.5"
        ) as (process, url),
        ThreadPoolExecutor() as threads,
    ):
        until_ready(url)
        asked = threads.submit(httpx2.post, f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT)
        gate.wait_for_arrival()
        process.send_signal(signal.SIGTERM)
        assert asked.result(TIMEOUT).status_code == 503
        _, log = process.communicate(timeout=TIMEOUT)
        gate.open()
    assert "the client left" not in log
    assert log.count("Toolway is being stopped") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_told_to_stop_it_refuses_new_clients_at_once_since_no_program_holds_its_sockets(
    workers: str, tmp_path: Path
):
    gate = Gate()
    entry = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"], "cwd": str(ROOT)}
    (tmp_path / "mcp.json").write_bytes(orjson.dumps({"mcpServers": {"good": entry}}))
    first = sse(chunk(role="assistant", content="Well"), done=False).parts
    variables = {"TOOLWAY_SHUTDOWN_GRACE": str(2 * TIMEOUT), "TOOLWAY_WORKERS": workers}
    body = {"model": "mock", "messages": QUESTION, "stream": True}
    with (
        model_server(answer=Reply([*first, gate])) as base,
        serving(SERVE, tmp_path, OPENAI_BASE_URL=base, **variables) as (process, url),
        httpx2.Client(timeout=TIMEOUT) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
    ):
        assert b"Well" in next(answer.iter_raw())
        for _ in range(int(workers)):
            until_said(process, "server good is ready")
        programs = descendants_of(process.pid)
        ours = {process.pid, *(pid for pid, line in programs.items() if "spawn_main" in line)}
        others = {pid: line for pid, line in programs.items() if pid not in ours}
        for name in ("servers.good", "reaper.py watch"):
            assert any(name in line for line in others.values()), others
        sockets = set().union(*map(sockets_of, ours))
        assert sockets
        for pid, line in others.items():
            assert not sockets & sockets_of(pid), line
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        process.send_signal(signal.SIGTERM)
        until_refused(address)
        gate.open()


def until_refused(address: tuple[str, int]) -> None:
    """Connect again and again until nobody listens. Who is let in meanwhile and says nothing is let go, not kept."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            client = socket.create_connection(address, timeout=TIMEOUT)
        except ConnectionRefusedError:
            return
        with client, suppress(ConnectionResetError):
            assert client.recv(1) == b""
    raise AssertionError("somebody still listens")


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process holds; none, if it has ended."""
    held = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                held.add(str(path.readlink()))
    return {link for link in held if link.startswith("socket:")}


def until_said(process: subprocess.Popen[str], words: str) -> None:
    """Read what the process writes, up to the line with these words."""
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"it ended and never said {words!r}")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_sighup_reads_the_mcp_json_again(tools_url: str, tmp_path: Path):
    file, model = tmp_path / "mcp.json", Model()

    def write(prefix: str) -> None:
        server = {"type": "openapi", "url": tools_url, "prefix": prefix}
        file.write_text(orjson.dumps({"mcpServers": {"town": server}}).decode())

    def offered() -> list[str]:
        body = {"model": "mock", "messages": QUESTION}
        httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT).raise_for_status()
        return tools_in(model.seen[-1].json)

    write("a_")
    before = file.stat()
    command = [str(Path(sys.executable).with_name("toolway")), "serve", "--port", "0"]
    with model_server(model) as base, serving(command, tmp_path, OPENAI_BASE_URL=base) as (process, url):
        until_ready(url)
        assert offered() == ["a_broken", "a_get_weather", "a_list_cities"]
        process.send_signal(signal.SIGHUP)
        until_said(process, "the configuration was read again; nothing has changed")
        write("b_")
        # So that nothing but the signal tells of the change.
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        process.send_signal(signal.SIGHUP)
        until_said(process, "the configuration was read again; changed: town")
        until_said(process, "server town is ready")
        assert offered() == ["b_broken", "b_get_weather", "b_list_cities"]
        file.write_text("{")
        process.send_signal(signal.SIGHUP)
        until_said(process, f"the configuration stays as it was: {file.name}:1: ")
        assert offered() == ["b_broken", "b_get_weather", "b_list_cities"]


def test_login_gets_a_token_by_way_of_the_browser(tmp_path: Path):
    guarded, tokens = Guarded(), tmp_path / "tokens.json"
    variables = {"TOOLWAY_TOKEN_FILE": str(tokens), "BROWSER": "true"}
    with running(guarded.app) as base:
        server = {"type": "http", "url": f"{base}/mcp"}
        (tmp_path / "mcp.json").write_bytes(orjson.dumps({"mcpServers": {"web": server}}))
        ran = toolway("tools", cwd=tmp_path, **variables)
        assert "toolway login web" in re.sub(r"\s+", " ", ran.stdout)
        with subprocess.Popen(
            [sys.executable, "-m", "toolway", "login", "web"],
            cwd=tmp_path,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout
                assert "Allow it in your browser" in process.stdout.readline()
                page = process.stdout.readline().strip()
                with httpx2.Client(follow_redirects=True, timeout=TIMEOUT) as browser:
                    assert "You can close this window" in browser.get(page).text
                told, complaint = process.communicate(timeout=TIMEOUT)
            finally:
                process.kill()
        assert (process.returncode, complaint) == (0, "")
        assert f"Toolway may use web now; {tokens} remembers it." in told
        assert page.startswith(f"{base}/authorize?")
        assert guarded.given == ["authorization_code"]
        ran = toolway("call", "ok", cwd=tmp_path, **variables)
        assert (ran.returncode, ran.stdout) == (0, "fine\n")


def test_the_version_is_told(tmp_path: Path):
    ran = toolway("--version", cwd=tmp_path)
    assert ran.returncode == 0
    assert re.fullmatch(r"toolway \d+\.\d+\.\d+\n", ran.stdout)
