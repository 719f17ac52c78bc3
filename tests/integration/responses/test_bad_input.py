"""Requests that cannot be served: their status, what OpenAI's envelope says, and that no model server is asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import httpx2
import pytest

from tests.integration.responses.requests import (
    THEIRS,
    ask,
    error_of,
    get,
    respond,
    server,
    turn,
)
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import tool_call

USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "theirs", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}
MCP = {"type": "mcp", "server_label": "moon"}
ASKED = {"type": "mcp_approval_request", "id": "r", "server_label": "s", "name": "n", "arguments": "{}"}
ANSWER = {"type": "mcp_approval_response", "approval_request_id": "r"}
MISSING, INVALID, UNSUPPORTED = "missing_required_parameter", "invalid_value", "unsupported_parameter"
TOO_LONG = "array_above_max_length"
GONE = "previous_response_not_found"


@pytest.fixture(scope="module")
def app():
    with app_server(turn("Hello", streamed=False), max_body_bytes=500_000) as server:
        yield server


BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no body"),
    "not json": (b"{oops", "not valid JSON"),
    "not text": (b"\xff\xfe\x00{", "not valid JSON"),
    "NaN": (b'{"input":"Hi","temperature":NaN}', "it holds NaN"),
    "too deep": (b'{"input":' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    "a list": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
}


@pytest.mark.parametrize("path", ["", "/input_tokens", "/compact"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_cannot_be_read_is_a_400(app: AppServer, name: str, path: str):
    body, words = BODIES[name]
    answer = httpx2.post(f"{app.url}/v1/responses{path}", content=body, timeout=60)
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]


def item(**members: Any) -> dict[str, Any]:
    return {"input": [USER, members]}


def hi(**more: Any) -> dict[str, Any]:
    return {"input": "Hi", **more}


def tool(entry: Any) -> dict[str, Any]:
    return {"input": "Hi", "tools": [entry]}


def content(part: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


REQUESTS: dict[str, tuple[dict[str, Any], str, str | None, str | None]] = {
    # name: body, words of the message, param, code
    "no input": ({}, "Missing required parameter: 'input'.", "input", MISSING),
    "no items": ({"input": []}, "Missing required parameter: 'input'.", "input", MISSING),
    "a number": ({"input": 5}, "must be a text or a list", "input", None),
    "texts": ({"input": ["Hi"]}, "must be a text or a list", None, None),
    "no type": (item(name="x"), "Invalid value", "input[1]", INVALID),
    "type is a list": (item(type=["message"]), "Invalid value", "input[1]", INVALID),
    "unknown role": ({"input": [{"role": "narrator", "content": "x"}]}, "role", "input[0].role", None),
    "messages": ({"messages": [USER]}, "Send the messages as input", "input", MISSING),
    "a tool without its call": ({"input": [{"role": "tool", "content": "x"}]}, "", "input[0].tool_call_id", MISSING),
    "role is a list": ({"input": [{"role": ["user"], "content": "x"}]}, "role", "input[0].role", None),
    "no content": ({"input": [{"role": "user"}]}, "must be a text or a list", "input[0].content", None),
    "content is a number": ({"input": [{"role": "user", "content": 5}]}, "", "input[0].content", None),
    "unknown part": (content({"type": "input_smell"}), "Invalid value: 'input_smell'", "input[0].content[0]", INVALID),
    "no text": (content({"type": "input_text"}), "", "input[0].content[0]", None),
    "a file's id": (content({"type": "input_file", "file_id": "file_1"}), "file_data", "input[0].content[0]", None),
    "an image's id": (content({"type": "input_image", "file_id": "file_1"}), "image_url", "input[0].content[0]", None),
    "an orphan": (item(**OUTPUT), "No tool call found for function call output with call_id c.", "input", None),
    "no output": ({"input": [USER, CALL]}, "No tool output found for function call c.", "input", None),
    "no output before a message": ({"input": [USER, CALL, USER]}, "No tool output found", "input", None),
    "no call_id": (item(**{**CALL, "call_id": ""}), "input[1].call_id", "input[1].call_id", MISSING),
    "no name": (item(**{**CALL, "name": ""}), "input[1].name", "input[1].name", MISSING),
    "arguments as an object": (item(**{**CALL, "arguments": {}}), "", "input[1].arguments", None),
    "an output that is a number": ({"input": [USER, CALL, {**OUTPUT, "output": 5}]}, "", "input[2].output", None),
    "an answer to nothing": (item(**ANSWER), "'r' not found.", "input[1].approval_request_id", None),
    "an answer without a yes": ({"input": [USER, ASKED, ANSWER]}, "approve must be", "input[2].approve", None),
    "another's compaction": (
        {"input": [{"type": "compaction", "encrypted_content": "gAAA"}]},
        "not made here", "input[0].encrypted_content", None,
    ),
    "a conversation": (hi(conversation="conv_1"), "previous_response_id", "conversation", UNSUPPORTED),
    "a stored prompt": (hi(prompt={"id": "pmpt_1"}), "instructions", "prompt", UNSUPPORTED),
    "no previous one": (hi(previous_response_id="resp_1"), "'resp_1' not found.", "previous_response_id", GONE),
    "previous is a number": (hi(previous_response_id=1), "", "previous_response_id", None),
    "an unknown server": (tool(MCP), "'moon' here; those that are: ", "tools", None),
    "no label": (tool({"type": "mcp"}), "server_label", "tools[0].server_label", MISSING),
    "a connector": (tool({**MCP, "connector_id": "connector_gmail"}), "Connectors", "tools[0].connector_id", None),
    "headers as text": (tool({**MCP, "headers": "x"}), "headers", "tools[0].headers", None),
    "url as number": (tool({**MCP, "server_url": 5}), "server_url", "tools[0].server_url", None),
    "approval by guess": (tool({**MCP, "require_approval": "maybe"}), "require_approval", None, None),
    "unknown tool": (tool({"type": "magic"}), "Invalid value: 'magic'", "tools[0].type", INVALID),
    "tool without type": (tool({"name": "x"}), "Invalid value", "tools[0].type", INVALID),
    "tool as text": (tool("x"), "", None, None),
    "tools as object": (hi(tools={}), "tools must be", "tools", None),
    "function without name": (tool({"type": "function"}), "tools[0].name", "tools[0].name", MISSING),
    "choice as number": (hi(tool_choice=5), "tool_choice", "tool_choice", None),
    "choice of nothing": (hi(tool_choice={"type": "mcp", "server_label": "moon"}), "'moon'", "tool_choice", None),
    "choice of openai's": (hi(tool_choice={"type": "web_search"}), "'web_search'", "tool_choice", None),
    "allowed nothing": (hi(tool_choice={"type": "allowed_tools"}), "list of tools", "tool_choice.tools", None),
    "unknown form": (hi(text={"format": {"type": "xml"}}), "text.format", None, None),
    "form as text": (hi(text="json"), "text", "text", None),
    "stream as text": (hi(stream="true"), "stream must be", "stream", None),
    "store as number": (hi(store=1), "store must be", "store", None),
    "include as text": (hi(include="reasoning.encrypted_content"), "include must be", "include", None),
    "instructions as list": (hi(instructions=[USER]), "instructions must be", "instructions", None),
    "metadata as text": (hi(metadata="x"), "metadata must be", "metadata", None),
    "reasoning as text": (hi(reasoning="low"), "reasoning must be", "reasoning", None),
    "no tokens": (hi(max_output_tokens=0), "max_output_tokens must be", "max_output_tokens", None),
    "half a token": (hi(max_output_tokens=1.5), "max_output_tokens must be", "max_output_tokens", None),
    "calls as text": (hi(max_tool_calls="2"), "max_tool_calls must be", "max_tool_calls", None),
    "model as number": (hi(model=5), "model must be", "model", None),
    "too many items": ({"input": [USER] * 10_001}, "at most 10,000", "input", TOO_LONG),
    "too many parts": (
        {"input": [{"role": "user", "content": [{}] * 5_000}] * 3}, "not 15,003", "input", TOO_LONG,
    ),
    "too many tools": (hi(tools=[{"type": "web_search"}] * 10_001), "at most 10,000", "tools", TOO_LONG),
    "background unstored": (hi(background=True, store=False), "store", "background", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("how", ["whole", "streamed", "in the background"])
def test_what_cannot_be_served_is_a_400_that_names_it(app: AppServer, name: str, how: str):
    body, words, param, code = REQUESTS[name]
    app.upstream.seen.clear()
    extra = {"whole": {}, "streamed": {"stream": True}, "in the background": {"background": True}}[how]
    error = error_of(respond(app, {**extra, **body}), 400)
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert param in (None, error["param"])
    assert code in (None, error["code"])
    assert app.upstream.seen == []


def test_a_body_over_the_limit_is_a_413(app: AppServer):
    answer = respond(app, input="x" * 500_000)
    assert "TOOLWAY_MAX_BODY_BYTES" in error_of(answer, 413)["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "resp_gone"),
        ("DELETE", "resp_gone"),
        ("POST", "resp_gone/cancel"),
        ("GET", "resp_gone/input_items"),
        ("GET", "resp_gone?stream=true"),
        ("GET", "resp_%ff"),
        ("GET", "resp_" + "x" * 5000),
        ("GET", "resp_gone/what"),
        ("GET", "/"),
        ("GET", "input_tokens"),
    ],
)
def test_what_is_not_there_is_a_404(app: AppServer, method: str, path: str):
    answer = httpx2.request(method, f"{app.url}/v1/responses/{path}", timeout=60)
    error = error_of(answer, 404)
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "%00"),
        ("POST", "resp_gone"),
        ("PATCH", "resp_gone"),
        ("PUT", ""),
        ("DELETE", "resp_gone/input_items"),
    ],
)
def test_what_has_other_methods_is_a_405_that_names_them(app: AppServer, method: str, path: str):
    answer = httpx2.request(method, f"{app.url}/v1/responses/{path}", timeout=60)
    error = error_of(answer, 405)
    assert error["type"] == "invalid_request_error"
    assert all(known in error["message"] for known in answer.headers["allow"].split(", "))


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "9" * 30, ""])
def test_a_place_in_a_stream_is_a_number(app: AppServer, after: str):
    answer = get(app, "resp_gone", stream="true", starting_after=after)
    assert answer.status_code in (400, 404)
    if after:
        assert error_of(answer, 400)["param"] == "starting_after"


DEEP: Any = {}
for _ in range(300):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": DEEP},
        {"tools": [{"type": "function", "name": "x", "parameters": DEEP}]},
        {"input": [{"role": "user", "content": "Hi", "more": DEEP}]},
        {"whatever": DEEP},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": DEEP}}},
    ],
)
@pytest.mark.parametrize("how", ["whole", "streamed", "in the background"])
def test_what_is_nested_too_deep_is_refused(app: AppServer, more: dict[str, Any], how: str):
    extra = {"whole": {}, "streamed": {"stream": True}, "in the background": {"background": True}}[how]
    error_of(respond(app, {"input": "Hi", **extra, **more}), 400)


STRANGE: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], [[]], [None], {}, {"type": "x"}, {"a": {"b": []}}]


@pytest.mark.parametrize(
    "field",
    [
        *[
            "input",
            "model",
            "instructions",
            "tools",
            "tool_choice",
            "text",
            "reasoning",
            "metadata",
            "include",
        ],
        *["stream", "store", "background", "previous_response_id", "max_output_tokens", "max_tool_calls"],
        *[
            "parallel_tool_calls",
            "temperature",
            "top_p",
            "top_logprobs",
            "truncation",
            "user",
            "service_tier",
        ],
        *[
            "prompt_cache_key",
            "safety_identifier",
            "conversation",
            "prompt",
            "stream_options",
            "n",
            "messages",
        ],
    ],
)
def test_no_field_makes_a_500(app: AppServer, field: str):
    for value in STRANGE:
        answer = respond(app, {"input": "Hi", field: value})
        assert answer.status_code in (200, 400), (value, answer.text)


def test_no_item_makes_a_500(app: AppServer):
    kinds = [
        *["message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "mcp_call"],
        *["custom_tool_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_list_tools"],
        *["compaction", "item_reference", "compaction_trigger", "additional_tools", "web_search_call"],
    ]
    members = [
        *["content", "id", "call_id", "name", "arguments", "output", "input", "server_label", "error"],
        *["summary", "encrypted_content", "approval_request_id", "approve", "reason", "status", "tools"],
    ]
    texts = dict.fromkeys(members, "x")
    with httpx2.Client(timeout=60) as client:
        for kind, member, value in product(kinds, members, (None, 0, "", [None], {"a": []})):
            given = {**texts, "type": kind, "role": "user", member: value}
            body = {"model": "mock", "input": [USER, given]}
            answer = client.post(f"{app.url}/v1/responses", json=body)
            assert answer.status_code in (200, 400, 404), (kind, member, value, answer.text)


def test_no_tool_makes_a_500(app: AppServer):
    for kind in ("function", "custom", "mcp"):
        base = {"type": kind, "name": "x"} if kind != "mcp" else server(app)
        for member in ("name", "parameters", "description", "strict", "format", "allowed_tools", "headers",
                       "require_approval", "server_url", "authorization", "server_description"):  # fmt: skip
            for value in STRANGE:
                answer = respond(app, input="Hi", tools=[{**base, member: value}])
                assert answer.status_code in (200, 400), (kind, member, value, answer.text)


def test_an_output_that_is_too_late_is_refused(app: AppServer):
    """The call was answered before; a second answer belongs to nothing."""
    answer = respond(app, input=[USER, CALL, OUTPUT, USER, OUTPUT])
    assert "No tool call found" in error_of(answer, 400)["message"]


def test_an_open_call_must_be_answered_when_the_conversation_goes_on(app: AppServer):
    app.set_replies(turn("", tool_call("theirs", "{}", "open"), streamed=False))
    first = ask(app, tools=[THEIRS])
    app.set_replies(turn("Hello", streamed=False))
    answer = respond(app, input="And?", previous_response_id=first["id"])
    error = error_of(answer, 400)
    assert error["message"] == "No tool output found for function call open."
    assert (error["type"], error["param"]) == ("invalid_request_error", "input")
    assert app.upstream.seen == []
