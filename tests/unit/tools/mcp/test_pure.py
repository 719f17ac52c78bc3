"""Framing, listing and content by tables: bytes and JSON in, messages, tools and results out."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCNotification

from toolway.tools.mcp import results
from toolway.tools.mcp.inbound import TOOLS_CHANGED, InboundFilter
from toolway.tools.mcp.messages import Lines, TooLong, parse
from toolway.tools.mcp.results import resource_result, tool_result
from toolway.tools.mcp.sdk import SessionMessage
from toolway.types import Image

PIXEL = "iVBORw0KGgo="


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b""))), st.integers(1, 7))
def test_lines_come_out_as_they_went_in_whatever_the_chunks(said: list[bytes], step: int) -> None:
    data = b"".join(line + b"\n" for line in said)
    lines = Lines(limit=100)
    found = [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])]
    assert found == said


@given(st.integers(1, 9))
def test_a_line_over_the_limit_keeps_its_ends_and_the_next_is_whole(step: int) -> None:
    data = b'{"id": 7, ' + b"x" * 2000 + b"}\nnext\n"
    lines = Lines(limit=100)
    found = [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])]
    assert isinstance(found[0], TooLong)
    assert found[0].size == 2011
    assert found[0].tail.endswith(b"x}")
    assert len(found[0].head + found[0].tail) <= 1024
    assert found[1] == b"next"
    assert parse(found[0])[0].id == 7


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        (b"", []),
        (b"Server started", []),
        (b"{not json", []),
        (b'{"a": 1}', []),
        (b"[]", []),
        (b'  {"jsonrpc":"2.0","id":1,"result":{}}\r', [1]),
        (b'{"id":1,"result":{}}', [1]),
        (b'{"jsonrpc":"2.0","id":1,"result":null}', [1]),
        (b'{"jsonrpc":"2.0","id":1,"error":"no"}', [1]),
        (b'[{"jsonrpc":"2.0","id":1,"result":{}},{"jsonrpc":"2.0","id":2,"result":{}},7]', [1, 2]),
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":"\xff"}}', [1]),
    ],
)
def test_messages_of_a_line(line: bytes, ids: list[int]) -> None:
    assert [message.id for message in parse(line)] == ids


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({}, "The tool ran and returned nothing."),
        ({"content": []}, "The tool ran and returned nothing."),
        ({"content": None, "isError": True}, "The tool failed and did not say why."),
        ({"content": [text("  ")]}, "The tool ran and returned nothing."),
        ({"content": "bare"}, "bare"),
        ({"content": [text("a"), text("b")]}, "a\n\nb"),
        ({"content": ["a", 5]}, "a\n\n5"),
        ({"content": [{"type": "text"}]}, '{"type":"text"}'),
        ({"content": [], "structuredContent": {"a": 1}}, '{"a":1}'),
        ({"content": [text('{"a": 1}')], "structuredContent": {"a": 1}}, '{"a": 1}'),
        ({"content": [text("21")], "structuredContent": {"result": 21}}, "21"),
        ({"content": [text("x")], "structuredContent": {"result": "x"}}, "x"),
        ({"content": [text("x")], "structuredContent": {"content": "x"}}, "x"),
        ({"content": [text("x"), text("y")], "structuredContent": {"result": ["x", "y"]}}, "x\n\ny"),
        (
            {"content": [text("two rooms")], "structuredContent": {"rooms": [1, 2]}},
            'two rooms\n\n{"rooms":[1,2]}',
        ),
        ({"content": [{"type": "resource_link", "uri": "a:b"}]}, "a:b"),
        ({"content": [{"type": "resource", "resource": {"text": "t"}}]}, "t"),
        ({"content": [{"type": "image", "data": "!"}]}, "[an image, image/png, that is not valid base64]"),
        ({"toolResult": {"old": 1}}, '{"old":1}'),
    ],
)
def test_the_text_of_a_result(raw: dict[str, Any], said: str) -> None:
    assert tool_result(raw).text == said


def test_images_are_given_as_images_whatever_holds_them() -> None:
    blob = {"uri": "x:y", "blob": PIXEL, "mimeType": "image/jpeg"}
    content = [{"type": "image", "data": f"{PIXEL[:4]}\n{PIXEL[4:]}"}, {"type": "resource", "resource": blob}]
    assert tool_result({"content": content}).images == (
        Image(media_type="image/png", data=PIXEL),
        Image(media_type="image/jpeg", data=PIXEL),
    )


KEYS = ["content", "type", "text", "resource", "data", "isError", "structuredContent", "blob"]
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner)
)
FIELDS = st.sampled_from(["name", "inputSchema", "description", "annotations", "title"])
SCHEMAS = st.dictionaries(st.sampled_from(["type", "properties", "title"]), st.text(max_size=6))
ITEMS = st.dictionaries(FIELDS, st.none() | st.text(max_size=2) | SCHEMAS)


@given(ANYTHING)
def test_no_result_is_too_strange(value: Any) -> None:
    for raw in (value if isinstance(value, dict) else {}, {"content": value}, {"content": [value]}):
        assert tool_result(raw).text.strip()
        assert resource_result({"contents": raw.get("content")}).text.strip()


@given(st.lists(st.none() | st.integers() | ITEMS))
def test_every_listed_tool_can_be_offered(items: list[Any]) -> None:
    found, _ = results.tools(items, server="s", modern=True)
    for tool in found:
        assert tool.name
        assert tool.parameters["type"] == "object"
        assert isinstance(tool.parameters["properties"], dict)
        json.dumps(tool.parameters)
    assert len({tool.name for tool in found}) == len(found)


def test_a_tool_with_a_wrong_header_is_left_out_of_the_modern_era_alone() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "bad header"}}}
    item = {"name": "t", "inputSchema": schema}
    assert results.tools([item], server="s", modern=True)[0] == ()
    assert len(results.tools([item], server="s", modern=False)[0]) == 1


async def test_doubled_change_notifications_reach_no_handler() -> None:
    send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](1000)
    changed: list[str] = []
    ended: list[bool] = []
    for _ in range(500):
        send.send_nowait(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method=TOOLS_CHANGED)))
    send.send_nowait(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="notifications/message")))
    send.close()
    async with InboundFilter(receive, changed=changed.append, ended=lambda: ended.append(True)) as inbound:
        assert [item.message.method async for item in inbound] == ["notifications/message"]
    assert len(changed) == 500
    assert ended == [True]
