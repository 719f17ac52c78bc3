"""opencode as it comes from npm, with its Anthropic provider: Toolway's tools unseen, and its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.compat.clients.installed import PLACE, TIMEOUT, missing
from tests.compat.clients.test_clients import OURS, set_turns
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import JSON, tool_call

OPENCODE = PLACE / "node_modules" / ".bin" / "opencode"
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not OPENCODE.exists(), reason=f"opencode is not installed in {PLACE}"),
]
READ = tool_call("read", "{}", id="call_2")


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


def says(app: AppServer, home: Path, prompt: str) -> str:
    """What it prints for one question."""
    models = {"mock": {"name": "mock", "limit": {"context": 100_000, "output": 4_000}}}
    options = {"baseURL": f"{app.url}/v1", "apiKey": "unused"}
    provider = {"npm": "@ai-sdk/anthropic", "name": "Toolway", "options": options, "models": models}
    named = {"model": "toolway/mock", "small_model": "toolway/mock"}
    config = {"provider": {"toolway": provider}, "autoupdate": False, "share": "disabled", **named}
    (home / "opencode.json").write_text(json.dumps(config))
    done = subprocess.run(
        [str(OPENCODE), "run", prompt],
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def conversations(app: AppServer) -> list[JSON]:
    """The requests of the user's own conversation: those for a title have no tools."""
    return [seen.json for seen in app.upstream.seen if seen.method == "POST" and seen.json.get("tools")]


def test_a_tool_of_toolways_is_run_unseen(app: AppServer, tmp_path: Path):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",))
    assert "Let me look. It is cloudy." in says(app, tmp_path, "What is the weather in Paris?")
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


def test_a_turn_that_calls_a_tool_of_each(app: AppServer, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("forty-two")
    path = json.dumps({"filePath": str(tmp_path / "notes.txt")})
    set_turns(
        app,
        ("Wait. ", OURS, {**READ, "index": 1, "function": {"name": "read", "arguments": path}}),
        ("Both.",),
    )
    assert "Both." in says(app, tmp_path, "What is in notes.txt, and what is the weather?")
    *_, turn, ours, theirs = conversations(app)[-1]["messages"]
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["get_weather", "read"]
    assert ("cloudy" in ours["content"], "forty-two" in theirs["content"]) == (True, True)
