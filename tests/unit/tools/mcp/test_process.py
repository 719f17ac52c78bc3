"""Toolway as a process, with a stdio server: what happens to calls and servers when it is told to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.answers import chunks_of, content_of
from tests.support.app_server import QUESTION
from tests.support.servers import free_port
from tests.support.servers import running as serving
from tests.support.upstream import ScriptedUpstream, call_stream, text_stream, tool_call
from tests.unit.tools.mcp.support import SERVERS, TIMEOUT, alive


def wait_for(path: Path) -> str:
    until = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.01)
    return path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_calls_under_way_end_well_and_no_server_stays(tmp_path: Path, number: signal.Signals) -> None:
    entry = {"command": sys.executable, "args": [str(SERVERS / "bad_stdio.py")]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"s": entry}}))
    upstream = ScriptedUpstream(
        [call_stream(tool_call("gate", json.dumps({"folder": str(tmp_path)}))), text_stream("done")]
    )
    with serving(upstream, lifespan="off") as base, ThreadPoolExecutor() as threads:
        port = free_port()
        env = {
            **os.environ,
            "OPENAI_BASE_URL": f"{base}/v1",
            "TOOLWAY_PORT": str(port),
            "MCP_SERVER_ENDPOINTS": "",
        }
        command = [sys.executable, "-m", "toolway", "serve"]
        with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as toolway:
            assert toolway.stderr is not None
            next(line for line in toolway.stderr if "is ready" in line)
            body = {"model": "mock", "messages": QUESTION, "stream": True}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            answer = threads.submit(httpx2.post, url, json=body, timeout=TIMEOUT)
            server = int(wait_for(tmp_path / "started"))
            toolway.send_signal(number)
            (tmp_path / "go").touch()
            assert content_of(chunks_of(answer.result(TIMEOUT).text)) == "done"
            threads.submit(toolway.stderr.read)
            toolway.wait(TIMEOUT)
        until = time.monotonic() + TIMEOUT
        while alive(server):
            assert time.monotonic() < until
