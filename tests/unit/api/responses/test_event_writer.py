"""What the writer writes is what OpenAI's client reads."""

from __future__ import annotations

import orjson

from tests.support.responses import check_events, check_response
from tests.unit.api.responses.golden_runner import TOOL, call, chunk, run_steps, writer_of
from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.request import read_request
from toolway.conversation.chunk_template import ChunkTemplate
from toolway.conversation.message import Message
from toolway.errors import UpstreamError
from toolway.types import ToolResult

MCP = [{"type": "mcp", "server_label": "calc", "require_approval": "never"}]


def test_an_error_has_the_shape_of_the_documents_and_that_of_the_server():
    writer = EventWriter(read_request({"model": "m", "input": "Hi"}), "resp_1")
    events = [*writer.began(), *writer.failed(UpstreamError("It broke", code="upstream_cut"))]
    assert check_events(events)["error"] == {"code": "server_error", "message": "It broke"}
    assert b'"code":"upstream_cut","message":"It broke","param":null,"error":{' in events[2][1]


def test_what_was_looked_at_does_not_change():
    writer = writer_of({"input": "Hi", "tools": MCP})
    writer.began()
    writer.call_began(call(), TOOL)
    before = writer.resource
    kept = orjson.dumps(before)
    writer.call_ended(call(), ToolResult(text="2"))
    writer.ended(Message(fields={}), None)
    assert orjson.dumps(before) == kept


def test_a_cancelled_response_leaves_nothing_open():
    writer = writer_of({"input": "Hi", "tools": MCP})
    run_steps(writer, [["began"], ["text", "Hel"], ["call_began", {}], ["text", "lo"]])
    writer.cancelled()
    response = check_response(writer.resource)
    assert response["status"] == "cancelled"
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete", "incomplete"]


def test_a_clock_that_is_set_back_does_not_end_a_response_before_it_began():
    clock = iter([100.0, 50.0])
    writer = EventWriter(read_request({"input": "Hi"}), "resp_1", now=lambda: next(clock))
    assert check_events([*writer.began(), *writer.ended(Message(fields={}), None)])["completed_at"] == 100


def test_broken_characters_in_errors_names_and_results_are_mended():
    half = "\ud83d"
    writer = writer_of({"input": "Hi", "tools": MCP})
    events = [*writer.began(), *writer.call_began(call(), TOOL)]
    events += writer.call_ended(call(), ToolResult(text=half))
    failed = check_events([*events, *writer.failed(UpstreamError(half, param=half, code=half))])
    assert failed["error"]["message"] == failed["output"][0]["output"] == "\ufffd"

    writer = writer_of({"input": "Hi"})
    events = [*writer.began(), *writer.ended(Message(fields={}, frame={"model": half}), None)]
    assert check_events(events)["model"] == "\ufffd"


def test_a_model_server_that_does_not_name_its_model_or_tier_properly_is_passed_over():
    writer = writer_of({"model": "m", "input": "Hi", "service_tier": "flex"})
    frame = {"model": 5, "service_tier": "on_demand"}
    final = check_events([*writer.began(), *writer.ended(Message(fields={}, frame=frame), None)])
    assert (final["model"], final["service_tier"]) == ("m", "flex")


def test_a_run_of_chunks_is_written_like_its_chunks_one_by_one():
    first = {"choices": [{"index": 0, "delta": {"content": "The "}}]}
    payloads = [
        orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})
        for text in ("fox", " é", "日本")
    ]
    template = ChunkTemplate()
    template.learn(first, orjson.dumps(first))
    found = template.run_in(b"".join(b"data: %b\n\n" % payload for payload in payloads))
    assert found is not None
    told = []
    for items in (found[0], list(found[0])):
        for before in ([], [chunk({"content": "The "})], [chunk({"content": "half \ud83d"})]):
            writer = writer_of({"input": "Hi"})
            events = [*writer.began(), *writer.chunks(before), *writer.chunks(items)]
            told.append([*events, *writer.chunks(items), *writer.ended(Message(fields={}), None)])
            check_events(told[-1])
    assert told[:3] == told[3:]
