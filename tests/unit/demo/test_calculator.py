"""The demo's MCP server and the mcp.json that names it, through the commands that people use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import running
from toolway.demo.programs import write_config
from toolway.demo.weather import WEATHER


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch, running(WEATHER) as weather:
        patch.setenv("TOOLWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_config(8484, weather)


def toolway(*arguments: str, config: Path) -> tuple[int, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TOOLWAY_", "MCP_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, "-m", "toolway", *arguments, "--json", "--config", str(config)],
        env=env,
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_mcp_server_and_the_service_are_in_one_file(config: Path):
    status, tools = toolway("tools", config=config)
    assert status == 0
    listed = [(tool["name"], tool["server"], tool["available"]) for tool in tools]
    assert listed == [("add", "calculator", True), ("get_weather", "weather", True)]
    assert {name: field["type"] for name, field in tools[0]["parameters"]["properties"].items()} == {
        "a": "number",
        "b": "number",
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"a": 1234, "b": 4321}', "The sum of 1234 and 4321 is 5555"),
        ('{"a": 0.1, "b": 0.2}', "The sum of 0.1 and 0.2 is 0.3"),
    ],
)
def test_the_calculator_writes_the_sum_out(config: Path, arguments: str, text: str):
    assert toolway("call", "add", arguments, config=config) == (
        0,
        {"name": "add", "is_error": False, "text": text, "images": []},
    )


def test_two_demos_have_files_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TOOLWAY_CACHE", str(tmp_path))
    first, second = write_config(8484, "http://127.0.0.1:1"), write_config(8485, "http://127.0.0.1:2")
    assert json.loads(first.read_text())["mcpServers"]["weather"]["url"] == "http://127.0.0.1:1"
    assert first != second
