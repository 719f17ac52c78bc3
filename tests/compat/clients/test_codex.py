"""Codex CLI as it comes from npm, over a stream and over a WebSocket: its own tool and Toolway's, unseen."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.compat.clients.installed import PLACE, TIMEOUT, missing
from tests.compat.clients.test_clients import OURS, says, set_turns
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import JSON, json_reply, tool_call

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

CODEX = PLACE / "node_modules" / ".bin" / "codex"
CONFIG = """
model = "mock"
model_provider = "toolway"
check_for_update_on_startup = false

[model_providers.toolway]
name = "Toolway"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
stream_max_retries = 0
supports_websockets = {websockets}

[features]
plugins = false

[analytics]
enabled = false
"""
ECHO = tool_call("exec_command", '{"cmd":"echo forty-$((1+1))"}', id="call_2", index=1)


class Codex:
    """An installation of its own, and what `codex exec` tells in it."""

    def __init__(self, home: Path, url: str, websockets: bool, more: str = "") -> None:
        self._home, self._websockets = home, websockets
        self._work = home / "work"
        self._work.mkdir()
        config = CONFIG.format(url=url, websockets=str(websockets).lower())
        (home / "config.toml").write_text(config + more)

    def says(self, prompt: str, *more: str) -> list[JSON]:
        """The items of its answer, in order; `more` are words between `exec` and the prompt."""
        options = ["--json", "--skip-git-repo-check", "--sandbox", "read-only"]
        done = subprocess.run(
            [str(CODEX), "exec", *options, *more, prompt],
            cwd=self._work,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self._home),
                "CODEX_HOME": str(self._home),
                "OPENAI_API_KEY": "unused",
                "RUST_LOG": "codex_api=info",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        # When its WebSocket fails, Codex asks over HTTP without a word.
        assert ("connected to Responses WebSocket" in done.stderr) == self._websockets, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert events, done.stderr
        items = [event["item"] for event in events if event["type"] == "item.completed"]
        failed = [event for event in events if event["type"] == "turn.failed"]
        assert bool(failed) == bool(done.returncode), done.stderr
        return [item for item in items if "Model metadata" not in item.get("message", "")] + failed


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


@pytest.fixture(params=[False, True], ids=["stream", "websocket"])
def codex(request: pytest.FixtureRequest, tmp_path: Path, app: AppServer) -> Codex:
    return Codex(tmp_path, app.url, websockets=request.param)


def texts(items: list[JSON]) -> list[str]:
    return [item["text"] for item in items if item["type"] == "agent_message"]


def kinds(items: list[JSON]) -> list[str]:
    return [item["type"] for item in items]


def messages(app: AppServer, number: int = -1) -> list[JSON]:
    """What the model server was sent, without Codex's own instructions and environment."""
    sent: list[JSON] = app.upstream.seen[number].json["messages"]
    return sent[2:]


def test_a_plain_answer(app: AppServer, codex: Codex):
    set_turns(app, ("It is cloudy.",))
    assert texts(codex.says("What is the weather in Paris?")) == ["It is cloudy."]


def test_a_tool_of_toolways_is_run_unseen(app: AppServer, codex: Codex):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",))
    items = codex.says("What is the weather in Paris?")
    assert kinds(items) == ["agent_message", "agent_message"]
    assert texts(items) == ["Let me look. ", "It is cloudy."]
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


def test_a_command_of_codexs_own(app: AppServer, codex: Codex):
    set_turns(app, ("", {**ECHO, "index": 0}), ("Done.",))
    items = codex.says("Count to forty-two.")
    assert kinds(items) == ["command_execution", "agent_message"]
    assert items[0]["aggregated_output"] == "forty-2\n"
    assert "forty-2" in messages(app)[-1]["content"]


def test_a_turn_that_calls_both_tools(app: AppServer, codex: Codex):
    set_turns(app, ("Wait. ", OURS, ECHO), ("", {**OURS, "id": "call_3"}), ("Both.",))
    items = codex.says("What is the weather in Paris, and what is forty-two?")
    assert kinds(items) == ["agent_message", "command_execution", "agent_message"]
    assert [name for name, _ in app.tools.calls] == ["get_weather", "get_weather"]
    turn = messages(app, 1)[1:]
    assert [call["id"] for call in turn[0]["tool_calls"]] == ["call_1", "call_2"]
    assert ["cloudy" in turn[1]["content"], "forty-2" in turn[2]["content"]] == [True, True]


def test_a_session_that_is_taken_up_again(app: AppServer, codex: Codex):
    def first(body: JSON) -> Any:
        return says(body, "It is cloudy.", reasoning="Where is Paris?")

    set_turns(app, first, ("It rains.",))
    codex.says("What is the weather in Paris?")
    assert texts(codex.says("And tomorrow?", "resume", "--last")) == ["It rains."]
    said = [message for message in messages(app) if message["role"] == "assistant"]
    assert [message["content"] for message in said] == ["It is cloudy."]
    assert said[0]["reasoning_content"] == "Where is Paris?"


def test_a_model_server_that_refuses(app: AppServer, codex: Codex):
    error = {"message": "no such model", "type": "invalid_request_error", "param": None, "code": None}
    set_turns(app, json_reply({"error": error}, 400))
    assert "no such model" in json.dumps(codex.says("What is the weather in Paris?"))
