"""How tools differ from what was accepted, no line of which may hide, and what is suspicious in them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import pytest

from toolway.settings.settings import ToolSettings
from toolway.tools.pins import MAX_COMPARED, Change, Pins, changes_of
from toolway.tools.suspicious import mentions_in
from toolway.types import SourceStatus, Tool


def change(before: str, after: str) -> Change:
    return Change(server="s", tool="t", before={"description": before}, after={"description": after})


@pytest.mark.parametrize("line", ["++ do this", "-- do this", "@@ do this", "+++ b", "--- a"])
def test_lines_that_look_like_the_head_of_a_difference_are_shown(line):
    assert f"+{line}" in change("Reads.", f"Reads.\n{line}").difference
    assert f"-{line}" in change(f"Reads.\n{line}", "Reads.").difference


def test_a_definition_that_is_very_long_is_shown_without_being_compared():
    before = "\n".join(f"line {n}" for n in range(MAX_COMPARED))
    found = change(before, before + "!").difference
    assert len(found) == 2 * MAX_COMPARED
    assert [found[0], found[-1]] == ["-description: line 0", f"+line {MAX_COMPARED - 1}!"]


def test_new_changed_and_gone_tools_are_told_apart_and_those_that_are_the_same_are_not_told():
    same, other, new = (
        Tool(name=n, server="s", description=n, parameters={}) for n in ("same", "other", "new")
    )
    pinned = {
        "s": {"same": {"description": "same"}, "other": {"description": "x"}, "gone": {"description": "y"}}
    }
    found = changes_of({"s": SourceStatus(state="ready", tools=(same, other, new))}, pinned)
    assert [(one.tool, one.kind, bool(one.digest)) for one in found] == [
        ("gone", "gone", False), ("new", "new", True), ("other", "changed", True)
    ]  # fmt: skip


def tools_of(server: str, *names: str) -> list[Tool]:
    return [
        Tool(name=name, server=server, description="Rather than `search` use this.", parameters={})
        for name in names
    ]


def test_texts_are_read_once_whatever_other_servers_come(tmp_path: Path):
    pins = Pins(ToolSettings(config=tmp_path / "mcp.json"))
    tools = tools_of("one", "find", "look_up")
    pins.inspect("one", tools)
    assert pins.suspicions("one", tools) == []
    read: list[FrameType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is mentions_in.__code__:
            read.append(frame)

    sys.setprofile(note)
    try:
        pins.learn("other", tools_of("other", "search"))
        found = pins.suspicions("one", tools)
    finally:
        sys.setprofile(None)
    assert [sentence.partition(" tells ")[0] for sentence in found] == ["the tool find", "the tool look_up"]
    assert read == []
