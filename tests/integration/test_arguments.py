"""Arguments as models write them, through the whole house: repaired where it is certain, explained where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.house import House, house
from tests.support.tools import ToolService, document
from tests.support.upstream import call_stream, text_stream, tool_call

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1},
        "options": {"type": "object", "properties": {"loud": {"type": "boolean"}}},
        "tags": {"type": "array", "items": {"enum": ["Red", "Blue"]}},
    },
    "required": ["count"],
}


@pytest.fixture(scope="module")
def room() -> Iterator[House]:
    async def answer(_: object) -> str:
        return "done"

    tools = ToolService(paint=answer)
    tools.document = document({"paint": SCHEMA})
    with house(tools=tools, schema_profile="strict") as opened:
        yield opened


def play(room: House, arguments: str) -> str:
    """What the model reads after it called `paint` with this."""
    room.upstream.replies = [call_stream(tool_call("paint", arguments)), text_stream("ok")]
    room.upstream.seen.clear()
    room.tools.calls.clear()
    room.ask(stream=True)
    return str(room.upstream.seen[1].json["messages"][-1]["content"])


def test_what_is_certain_reaches_the_tool_repaired(room: House):
    play(room, '{"count": "3", "options": "{\\"loud\\": \\"true\\"}", "tags": "red"}')
    assert room.tools.calls == [("paint", {"count": 3, "options": {"loud": True}, "tags": ["Red"]})]


def test_nulls_of_strict_mode_do_not_reach_the_tool(room: House):
    play(room, '{"count": 1, "options": {"loud": null}, "tags": null}')
    assert room.tools.calls == [("paint", {"count": 1, "options": {}})]
    paint = room.upstream.seen[0].json["tools"][0]["function"]
    assert paint["strict"] is True
    assert paint["parameters"]["required"] == ["count", "options", "tags"]


def test_the_rest_is_answered_with_the_schema_of_what_is_wrong(room: House):
    read = play(room, '{"count": "many"}')
    assert room.tools.calls == []
    assert read.startswith("Error:")
    assert '{"count": {"type": "integer", "minimum": 1}}' in read
    assert "tags" not in read
