"""What people may see while tools run, and that it is off unless it is asked for."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio.lowlevel
import httpx2
import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.upstream import call_stream, text_stream, tool_call
from tests.unit.engine.scripted_model import InMemorySource, ScriptedModel, call, echo, run_loop, says
from tests.unit.tools.mcp.support import SERVERS
from toolway.api.chat.chunks import progress_chunk
from toolway.conversation.events import CallProgressed, Event, EventStream
from toolway.types import JSON, OnProgress, Progress, Tool, ToolCall, ToolResult


def streamed(**settings: Any) -> list[JSON]:
    with app_server(call_stream(tool_call()), text_stream("It is cloudy."), **settings) as app:
        chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "It is cloudy."
    return chunks


def test_nothing_is_progress_chunk_by_default():
    assert not any("event" in chunk for chunk in streamed())


def test_open_webui_gets_status_events():
    statuses = [chunk["event"] for chunk in streamed(progress="openwebui") if "event" in chunk]
    assert [status["type"] for status in statuses] == ["status", "status"]
    assert statuses[0]["data"] == {"description": "get_weather ...", "done": False}
    assert statuses[1]["data"]["description"].startswith("get_weather: done in ")
    assert statuses[1]["data"]["done"] is True


def test_reasoning_text_is_the_other_form():
    lines = content_of(streamed(progress="reasoning"), "reasoning_content").splitlines()
    assert lines[0] == "get_weather ..."
    assert lines[1].startswith("get_weather: done in ")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes of Unix")
@pytest.mark.parametrize("form", ["openwebui", "reasoning"])
def test_progress_of_an_mcp_server_is_progress_chunk_while_its_tool_runs(form: str, tmp_path: Path):
    gates = [tmp_path / name for name in ("first", "second", "third")]
    for gate in gates:
        os.mkfifo(gate)
    server = {"command": sys.executable, "args": [str(SERVERS / "staged.py")]}
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"files": server}}))
    call = tool_call("copy", json.dumps({"gates": [str(gate) for gate in gates]}))
    replies = call_stream(call), text_stream("Done.")
    with app_server(*replies, endpoints="", config=str(config), progress=form) as app:
        app.until_servers_are(files="ready")
        text = opened_one_by_one(gates, app)
    chunks = chunks_of(text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "Done."
    lines = (
        content_of(chunks, "reasoning_content").splitlines()
        if form == "reasoning"
        else [chunk["event"]["data"]["description"] for chunk in chunks if "event" in chunk]
    )
    assert lines[:4] == ["copy ...", *(f"copy: {25 * n} %, stage {n}" for n in (1, 2, 3))]
    assert lines[4].startswith("copy: done in ")
    assert app.upstream.seen[1].json["messages"][-1]["content"] == "copied"


def opened_one_by_one(gates: list[Path], app: AppServer) -> str:
    """The whole stream; each gate is opened when the client has heard that the tool waits there."""
    body = {"model": "mock", "messages": QUESTION, "stream": True}
    with (
        httpx2.Client(timeout=DEADLINE) as client,
        client.stream("POST", f"{app.url}/v1/chat/completions", json=body) as answer,
    ):
        received, text = answer.iter_text(), ""
        for number, gate in enumerate(gates, 1):
            while f"copy: {25 * number} %, stage {number}" not in text:
                text += next(received)
            gate.write_bytes(b"")
        return text + "".join(received)


TOOL = Tool(name="copy", server="files", description="", parameters={})


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(progress=1, total=4), "copy: 25 %"),
        (Progress(progress=7), "copy: 7"),
        (Progress(progress=3, total=2, message="nearly"), "copy: 100 %, nearly"),
    ],
)
def test_a_tools_own_progress_is_progress_chunk(progress: Progress, text: str):
    event = CallProgressed(call=ToolCall(id="1", name="copy", arguments="{}"), tool=TOOL, progress=progress)
    chunk = progress_chunk(event, "openwebui")
    assert chunk
    assert chunk["event"]["data"]["description"] == text


class Reporting(InMemorySource):
    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        assert on_progress
        for burst in ([0, 1, 2], [3, 4]):
            for step in burst:
                on_progress(Progress(progress=step, total=4))
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
        self.report_late = on_progress
        return await super().call(tool, arguments, on_progress)


async def test_reports_of_a_tool_become_events_and_a_slow_listener_gets_the_newest():
    model = ScriptedModel(says(None, call()), says("Done"))
    source = Reporting(echo=echo)
    _, events = await run_loop(model, source, relays_progress=True)
    source.report_late(Progress(progress=5))
    reports = [event.progress.progress for event in events if isinstance(event, CallProgressed)]
    assert reports == [2, 4]


async def test_who_subscribes_hears_of_progress_that_the_client_does_not_see():
    heard: list[Event] = []
    stream = EventStream([heard.append])
    model, source = ScriptedModel(says(None, call()), says("Done")), Reporting(echo=echo)
    _, delivered = await run_loop(model, source, event_stream=stream)
    source.report_late(Progress(progress=5))
    assert [event.progress.progress for event in heard if isinstance(event, CallProgressed)] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert not any(isinstance(event, CallProgressed) for event in delivered)
