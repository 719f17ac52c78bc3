"""Claude Code as it comes from npm, headless: Toolway's tools unseen, its own, and those of its own MCP server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compat.clients.installed import PLACE, TIMEOUT, missing
from tests.compat.clients.test_clients import OURS, says, set_turns
from tests.support.app_server import AppServer, app_server
from tests.support.paths import ROOT
from tests.support.upstream import JSON, OUT_OF_MEMORY, Reply, json_reply, tool_call

CLAUDE = PLACE / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude"
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is installed on Linux with x64 alone"),
]
ECHO = tool_call("Bash", '{"command":"echo forty-$((1+1))","description":"Counts"}', id="call_2", index=1)
OVERFLOW = (
    "This model's maximum context length is 32768 tokens. However, your messages resulted in 40000 tokens."
)
GOOD = ROOT / "tests" / "unit" / "tools" / "mcp" / "servers" / "good.py"


class ClaudeCode:
    """An installation of its own, and what it tells in it."""

    def __init__(self, home: Path, url: str) -> None:
        self._home = home
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "unused",
            "ANTHROPIC_MODEL": "mock",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

    def says(self, prompt: str, *more: str) -> JSON:
        """The result of one question: `result`, `is_error`, `usage`, ..."""
        return self._run(prompt, "--output-format", "json", *more)[-1]

    def events(self, prompt: str, *more: str) -> list[JSON]:
        """All that it tells while it works."""
        return self._run(prompt, "--output-format", "stream-json", "--verbose", *more)

    def _run(self, prompt: str, *more: str) -> list[JSON]:
        done = subprocess.run(
            [str(CLAUDE), "-p", prompt, *more],
            cwd=self._home,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT,
            check=False,
        )
        told = [json.loads(line) for line in done.stdout.splitlines() if line]
        assert told, done.stderr
        return told


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


@pytest.fixture
def claude(tmp_path: Path, app: AppServer) -> ClaudeCode:
    return ClaudeCode(tmp_path, app.url)


def messages(app: AppServer, number: int = -1) -> list[JSON]:
    sent: list[JSON] = app.upstream.seen[number].json["messages"]
    return sent


def offered(app: AppServer, number: int = -1) -> list[str]:
    return [tool["function"]["name"] for tool in app.upstream.seen[number].json["tools"]]


def test_a_plain_answer(app: AppServer, claude: ClaudeCode):
    def thinks(body: JSON) -> Reply:
        return says(body, "It is cloudy.", reasoning="Where is Paris?")

    set_turns(app, thinks)
    told = claude.says("What is the weather in Paris?")
    assert (told["result"], told["is_error"]) == ("It is cloudy.", False)
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (10, 2)
    assert [message["role"] for message in messages(app)] == ["system", "user"]
    assert "x-anthropic-billing-header" not in messages(app)[0]["content"]
    assert "DeferredToolPlaceholder" not in offered(app)
    assert {"Bash", "get_weather"} <= {*offered(app)}


def test_a_tool_of_toolways_is_run_unseen(app: AppServer, claude: ClaudeCode):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",))
    told = claude.events("What is the weather in Paris?")
    blocks = [
        block for event in told if event["type"] == "assistant" for block in event["message"]["content"]
    ]
    assert [block["type"] for block in blocks] == ["text"]
    assert told[-1]["result"] == "Let me look. It is cloudy."
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


def test_a_turn_that_calls_a_tool_of_each(app: AppServer, claude: ClaudeCode):
    def thinks(body: JSON) -> Reply:
        return says(body, "Wait. ", OURS, ECHO, reasoning="Both.")

    set_turns(app, thinks, ("Both.",))
    assert claude.says("What now?", "--allowedTools", "Bash(echo:*)")["result"] == "Both."
    *_, turn, ours, theirs = messages(app)
    assert turn["reasoning_content"] == "Both."
    assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
    assert ("cloudy" in ours["content"], theirs["content"]) == (True, "forty-2")


def test_what_the_model_thought_comes_back_though_claude_code_never_saw_it(
    app: AppServer, claude: ClaudeCode
):
    def thinks(body: JSON) -> Reply:
        return says(body, "Wait. ", {**ECHO, "index": 0}, reasoning="I count.")

    set_turns(app, thinks, ("Done.",))
    claude.says("Count.", "--allowedTools", "Bash(echo:*)")
    assert messages(app)[-2]["reasoning_content"] == "I count."


def test_a_stream_that_breaks_behind_a_tool_is_gone_on_with(app: AppServer, claude: ClaudeCode):
    breaks = iter([OUT_OF_MEMORY])
    set_turns(app, ("Look. ", OURS), lambda body: next(breaks, None) or says(body, "It is cloudy."))
    told = claude.says("What is the weather in Paris?")
    assert (told["result"], told["is_error"]) == ("Look. It is cloudy.", False)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert [bool(seen.json.get("stream")) for seen in app.upstream.seen] == [True, True, False]


def test_a_conversation_that_is_too_long_is_known_as_such(app: AppServer, claude: ClaudeCode):
    refusal = {"message": OVERFLOW, "type": "invalid_request_error", "code": "context_length_exceeded"}
    set_turns(app, json_reply({"error": refusal}, 400))
    told = claude.says("What is the weather in Paris?")
    assert told["is_error"]
    assert "prompt is too long" in told["result"].lower()


def test_a_tool_of_its_own_mcp_server_is_found_and_called(app: AppServer, claude: ClaudeCode, tmp_path: Path):
    config = tmp_path / "mcp.json"
    server = {"command": sys.executable, "args": [str(GOOD)]}
    config.write_text(json.dumps({"mcpServers": {"good": server}}))

    def searches(body: JSON) -> Reply:
        return says(body, "", tool_call("ToolSearch", '{"query":"select:mcp__good__echo"}', id="call_1"))

    def calls(body: JSON) -> Reply:
        return says(body, "", tool_call("mcp__good__echo", '{"value":42}', id="call_2"))

    set_turns(app, searches, calls, ("Forty-two.",))
    more: tuple[Any, ...] = (
        "--mcp-config",
        str(config),
        "--strict-mcp-config",
        "--allowedTools",
        "mcp__good__echo",
    )
    assert claude.says("Add.", *more)["result"] == "Forty-two."
    assert "mcp__good__echo" not in offered(app, 0)
    assert "mcp__good__echo" in offered(app, 1)
    assert '"name":"mcp__good__echo"' in messages(app, 1)[-1]["content"]
    assert "42" in messages(app, 2)[-1]["content"]
