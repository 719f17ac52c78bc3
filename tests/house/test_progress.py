"""What people may see while tools run, and that it is off unless it is asked for."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import pytest

from tests.loop.script import Script, Shelf, call, echo, play, says
from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.house import house
from tests.support.upstream import call_stream, text_stream, tool_call
from toolway.loop import CallProgressed
from toolway.progress import shown
from toolway.types import JSON, OnProgress, Progress, Tool, ToolCall, ToolResult


def streamed(**settings: Any) -> list[JSON]:
    with house(call_stream(tool_call()), text_stream("It is cloudy."), **settings) as room:
        chunks = chunks_of(room.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "It is cloudy."
    return chunks


def test_nothing_is_shown_by_default():
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


TOOL = Tool(name="copy", server="files", description="", parameters={})


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(progress=1, total=4), "copy: 25 %"),
        (Progress(progress=7), "copy: 7"),
        (Progress(progress=3, total=2, message="nearly"), "copy: 100 %, nearly"),
    ],
)
def test_a_tools_own_progress_is_shown(progress: Progress, text: str):
    event = CallProgressed(call=ToolCall(id="1", name="copy", arguments="{}"), tool=TOOL, progress=progress)
    chunk = shown(event, "openwebui")
    assert chunk
    assert chunk["event"]["data"]["description"] == text


class Reporting(Shelf):
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
    script = Script(says(None, call()), says("Done"))
    shelf = Reporting(echo=echo)
    _, events = await play(script, shelf, relays_progress=True)
    shelf.report_late(Progress(progress=5))
    reports = [event.progress.progress for event in events if isinstance(event, CallProgressed)]
    assert reports == [2, 4]
