"""Integers beyond 64 bits are the same on every way through the server, where JSON libraries make floats of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.tools import Raw, ToolService, document
from tests.support.upstream import Reply, chunk, sse, text_stream, tool_call

BIG = 17893421123456789012345
SCHEMA = {
    "type": "object",
    "properties": {"id": {"enum": [BIG, -BIG]}, "most": {"type": "integer", "maximum": 10**40}},
}


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    async def echo(arguments: Any) -> Raw:
        return Raw(json.dumps(arguments).encode())

    tools = ToolService(find=echo)
    tools.document = Raw(json.dumps(document({"find": SCHEMA})).encode())
    with app_server(tools=tools) as server:
        yield server


def written(reply: bytes) -> Reply:
    """A whole answer to the byte."""
    return Reply([reply], headers=[(b"content-type", b"application/json")])


def test_a_schema_reaches_the_model_and_the_client_as_it_came(app: AppServer):
    app.set_replies(text_stream("ok")).ask(stream=True)
    assert b'"enum":[%d,-%d]' % (BIG, BIG) in app.upstream.seen[0].body
    served = json.loads(httpx2.get(f"{app.url}/openapi.json").content)
    assert served["components"]["schemas"]["find"]["properties"] == SCHEMA["properties"]


@pytest.mark.parametrize("arguments", [f'{{"id":{BIG}}}', {"id": BIG}])
def test_arguments_reach_the_tool_and_its_result_the_model(app: AppServer, arguments: Any):
    call = json.dumps(chunk(tool_calls=[tool_call("find", arguments)])).encode()
    app.set_replies(sse(call, chunk(finish="tool_calls")), text_stream("ok")).ask(stream=True)
    assert app.tools.calls == [("find", {"id": BIG})]
    assert json.loads(app.upstream.seen[1].json["messages"][-1]["content"]) == {"id": BIG}


def test_members_of_a_request_reach_the_model_server(app: AppServer):
    theirs = {"type": "function", "function": {"name": "theirs", "parameters": SCHEMA}}
    body = {"model": "mock", "messages": QUESTION, "seed": BIG, "tools": [theirs], "stream": True}
    app.set_replies(text_stream("ok")).post(json.dumps(body).encode())
    sent = json.loads(app.upstream.seen[0].body)
    assert sent["seed"] == BIG
    assert sent["tools"][0] == theirs


def test_members_of_an_answer_reach_the_client(app: AppServer):
    odd = json.dumps({**chunk(content="hi"), "id_of": BIG}).encode()
    app.set_replies(sse(odd, chunk(finish="stop")))
    assert b'"id_of":%d' % BIG in app.ask(stream=True).content.replace(b" ", b"")
    message = {"role": "assistant", "content": "hi"}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "id_of": BIG}
    app.set_replies(written(json.dumps(answer).encode()))
    assert json.loads(app.ask().content)["id_of"] == BIG


def test_a_result_over_rest_is_exact(app: AppServer):
    answer = httpx2.post(f"{app.url}/tools/find", content=json.dumps({"id": BIG}))
    assert answer.status_code == 200
    assert json.loads(answer.content) == {"id": BIG}


def test_input_of_a_tool_is_exact_in_the_messages_api_in_both_directions(app: AppServer):
    theirs = {"name": "theirs", "input_schema": SCHEMA}
    use = {"type": "tool_use", "id": "toolu_1", "name": "theirs", "input": {"id": BIG}}
    messages: list[Any] = [
        {"role": "user", "content": "find it"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "no"}]},
    ]
    body = {"model": "mock", "max_tokens": 50, "messages": messages, "tools": [theirs]}
    call = {"id": "c", "type": "function", "function": {"name": "theirs", "arguments": {"id": BIG}}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    app.set_replies(written(json.dumps(answer).encode()))
    told = httpx2.post(f"{app.url}/v1/messages", content=json.dumps(body), headers={"x-api-key": "k"})
    sent = json.loads(app.upstream.seen[0].body)
    assert json.loads(sent["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"id": BIG}
    assert json.loads(told.content)["content"][-1]["input"] == {"id": BIG}
