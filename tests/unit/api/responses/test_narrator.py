"""What the narrator writes is what OpenAI's client reads."""

from __future__ import annotations

import orjson

from tests.support.responses import check_events, check_response
from tests.unit.api.responses.play import TOOL, call, narrator_of, play
from toolway.api.responses.items.event_writer import Narrator
from toolway.api.responses.items.request import read_request
from toolway.conversation.message import Message
from toolway.errors import UpstreamError
from toolway.types import ToolResult

MCP = [{"type": "mcp", "server_label": "calc", "require_approval": "never"}]


def test_an_error_has_the_shape_of_the_documents_and_that_of_the_server():
    narrator = Narrator(read_request({"model": "m", "input": "Hi"}), "resp_1")
    events = [*narrator.began(), *narrator.failed(UpstreamError("It broke", code="upstream_cut"))]
    assert check_events(events)["error"] == {"code": "server_error", "message": "It broke"}
    assert b'"code":"upstream_cut","message":"It broke","param":null,"error":{' in events[2][1]


def test_what_was_looked_at_does_not_change():
    narrator = narrator_of({"input": "Hi", "tools": MCP})
    narrator.began()
    narrator.call_began(call(), TOOL)
    before = narrator.resource
    kept = orjson.dumps(before)
    narrator.call_ended(call(), ToolResult(text="2"))
    narrator.ended(Message(said={}), None)
    assert orjson.dumps(before) == kept


def test_a_cancelled_response_leaves_nothing_open():
    narrator = narrator_of({"input": "Hi", "tools": MCP})
    play(narrator, [["began"], ["text", "Hel"], ["call_began", {}], ["text", "lo"]])
    narrator.cancelled()
    response = check_response(narrator.resource)
    assert response["status"] == "cancelled"
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete", "incomplete"]


def test_a_clock_that_is_set_back_does_not_end_a_response_before_it_began():
    clock = iter([100.0, 50.0])
    narrator = Narrator(read_request({"input": "Hi"}), "resp_1", now=lambda: next(clock))
    assert check_events([*narrator.began(), *narrator.ended(Message(said={}), None)])["completed_at"] == 100


def test_broken_characters_in_errors_names_and_results_are_mended():
    half = "\ud83d"
    narrator = narrator_of({"input": "Hi", "tools": MCP})
    events = [*narrator.began(), *narrator.call_began(call(), TOOL)]
    events += narrator.call_ended(call(), ToolResult(text=half))
    failed = check_events([*events, *narrator.failed(UpstreamError(half, param=half, code=half))])
    assert failed["error"]["message"] == failed["output"][0]["output"] == "\ufffd"

    narrator = narrator_of({"input": "Hi"})
    events = [*narrator.began(), *narrator.ended(Message(said={}, frame={"model": half}), None)]
    assert check_events(events)["model"] == "\ufffd"


def test_a_model_server_that_does_not_name_its_model_or_tier_properly_is_passed_over():
    narrator = narrator_of({"model": "m", "input": "Hi", "service_tier": "flex"})
    frame = {"model": 5, "service_tier": "on_demand"}
    final = check_events([*narrator.began(), *narrator.ended(Message(said={}, frame=frame), None)])
    assert (final["model"], final["service_tier"]) == ("m", "flex")
