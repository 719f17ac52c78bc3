"""Arguments as models write them, through the whole server: repaired where it is certain, explained where it is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.app_server import AppServer, app_server
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
def app() -> Iterator[AppServer]:
    async def answer(_: object) -> str:
        return "done"

    tools = ToolService(paint=answer)
    tools.document = document({"paint": SCHEMA})
    with app_server(tools=tools, schema_profile="strict") as server:
        yield server


def run_one_call(app: AppServer, arguments: str) -> str:
    """What the model reads after it called `paint` with this."""
    app.upstream.replies = [call_stream(tool_call("paint", arguments)), text_stream("ok")]
    app.upstream.seen.clear()
    app.tools.calls.clear()
    app.ask(stream=True)
    return str(app.upstream.seen[1].json["messages"][-1]["content"])


def test_what_is_certain_reaches_the_tool_repaired(app: AppServer):
    run_one_call(app, '{"count": "3", "options": "{\\"loud\\": \\"true\\"}", "tags": "red"}')
    assert app.tools.calls == [("paint", {"count": 3, "options": {"loud": True}, "tags": ["Red"]})]


def test_nulls_of_strict_mode_do_not_reach_the_tool(app: AppServer):
    run_one_call(app, '{"count": 1, "options": {"loud": null}, "tags": null}')
    assert app.tools.calls == [("paint", {"count": 1, "options": {}})]
    paint = app.upstream.seen[0].json["tools"][0]["function"]
    assert paint["strict"] is True
    assert paint["parameters"]["required"] == ["count", "options", "tags"]


def test_the_rest_is_answered_with_the_schema_of_what_is_wrong(app: AppServer):
    read = run_one_call(app, '{"count": "many"}')
    assert app.tools.calls == []
    assert read.startswith("Error:")
    assert '{"count": {"type": "integer", "minimum": 1}}' in read
    assert "tags" not in read
