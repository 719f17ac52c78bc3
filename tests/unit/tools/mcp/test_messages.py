"""JSON-RPC messages from bytes: whatever a server writes, each request gets its one answer."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import JSONRPCError, JSONRPCResponse

from toolway.tools.mcp.messages import MessageLines, parse, parse_answer
from toolway.tools.mcp.results import tool_result, tools

DEEP = b'{"a":' * 3000 + b"1" + b"}" * 3000
DIGITS = b"9" * 5000


def answer(result: bytes, *, id_last: bool = False) -> bytes:
    if id_last:
        return b'{"result":%s,"id":7,"jsonrpc":"2.0"}' % result
    return b'{"jsonrpc":"2.0","id":7,"result":%s}' % result


@pytest.mark.parametrize("id_last", [False, True])
@pytest.mark.parametrize(
    ("result", "said"),
    [
        (b'{"structuredContent":%s}' % DEEP, "nested too deeply"),
        (b'{"structuredContent":{"n":%s}}' % DIGITS, "too many digits"),
        (b'{"content":[{"type":"text","text":"x"', "not valid JSON"),
    ],
)
def test_an_answer_that_cannot_be_read_is_an_error_of_its_call(
    result: bytes, said: str, id_last: bool
) -> None:
    (message,) = parse(answer(result, id_last=id_last))
    assert isinstance(message, JSONRPCError)
    assert message.id == 7
    assert said in message.error.message


@pytest.mark.parametrize("schema", [DEEP, b'{"maximum":%s}' % DIGITS, b'{"a":' * 400 + b"1" + b"}" * 400])
def test_one_odd_schema_does_not_cost_a_list_of_tools(schema: bytes) -> None:
    listed = b'{"tools":[{"name":"odd","inputSchema":%s},{"name":"good","inputSchema":{}}]}' % schema
    (message,) = parse(answer(listed))
    assert isinstance(message, JSONRPCResponse)
    found, _ = tools(message.result["tools"], server="s", modern=False)
    assert [tool.name for tool in found] == ["odd", "good"]
    assert orjson.dumps([tool.parameters for tool in found])


def test_a_question_of_the_server_that_cannot_be_read_is_no_answer_to_ours() -> None:
    assert parse(b'{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":%s}' % DEEP) == []
    assert parse(b'{"method":"sampling/createMessage","params":%s,"id":7}' % DEEP) == []


def test_an_id_inside_of_an_answer_is_not_taken_for_its_own() -> None:
    broken = b'{"jsonrpc":"2.0","result":{"id":3,"n":%s},"id":7}' % DIGITS
    assert [message.id for message in parse(broken)] == [7]


VALUES = st.recursive(
    st.sampled_from(
        [
            b"null",
            b"1e999",
            b"NaN",
            b"-Infinity",
            b"9" * 30,
            DIGITS,
            DEEP,
            b'"\\ud83c"',
            b'"\xff"',
            b'""',
            b"[",
            b"}",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: b"[" + b",".join(parts) + b"]")
        | inner.map(lambda part: b'{"\\udc00":%s,"id":1}' % part)
    ),
    max_leaves=5,
)


@given(VALUES, st.booleans())
def test_every_answer_ends_its_call_and_what_is_read_of_it_can_be_written(
    value: bytes, id_last: bool
) -> None:
    for result in (value, b'{"content":%s}' % value, b'{"structuredContent":%s,"content":[]}' % value):
        (message,) = parse(answer(result, id_last=id_last))
        assert message.id == 7
        if isinstance(message, JSONRPCResponse):
            assert tool_result(message.result).text.encode()
        else:
            assert isinstance(message, JSONRPCError)
            assert message.error.message.encode()


@given(VALUES | st.binary(max_size=50))
def test_every_http_body_ends_its_call(body: bytes) -> None:
    for data in (body, answer(body), b"[%s]" % answer(body), b"data: %s\n\n" % body):
        messages = parse_answer(data, 7)
        ends = [message for message in messages if isinstance(message, JSONRPCResponse | JSONRPCError)]
        assert [message.id for message in ends] == [7]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "is empty"),
        (b"<html>login</html>", "web page"),
        (b"upstream timed out", "upstream timed out"),
        (b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"who?"}}', "who?"),
        (b'{"jsonrpc":"2.0","id":"other","error":{"code":1,"message":"who?"}}', "who?"),
        (b'{"jsonrpc":"2.0","error":{"code":1,"message":"who?"}}', "who?"),
        (b'{"jsonrpc":"2.0","id":8,"result":{"content":[]}}', "another id"),
        (b'[{"jsonrpc":"2.0","method":"notifications/x"}]', "not JSON-RPC"),
    ],
)
def test_a_body_without_the_answer_is_an_error_in_short_words(body: bytes, said: str) -> None:
    message = parse_answer(body, 7)[-1]
    assert isinstance(message, JSONRPCError)
    assert said in message.error.message
    assert len(message.error.message) < 300
    assert "pydantic" not in message.error.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":7,"result":{"a":1}}',
        b'{"jsonrpc":"2.0","id":"7","result":{"a":1}}',
        b'[{"jsonrpc":"2.0","method":"x"},{"jsonrpc":"2.0","id":7,"result":{"a":1}}]',
        b'event: message\ndata: {"jsonrpc":"2.0","id":7,"result":{"a":1}}\n\n',
    ],
)
def test_the_answer_is_found_in_any_of_its_wrappings(body: bytes) -> None:
    message = parse_answer(body, 7)[-1]
    assert isinstance(message, JSONRPCResponse)
    assert message.result == {"a": 1}


def pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


@given(st.integers(1, 50))
def test_a_message_over_several_lines_is_one(step: int) -> None:
    said = {"jsonrpc": "2.0", "id": 7, "result": {"content": [{"type": "text", "text": "x"}], "b": {}}}
    data = b"starting\n" + pretty(said) + json.dumps(said).encode() + b"\n" + pretty(said) + b"bye\n"
    lines = MessageLines(1000)
    found = [line for at in range(0, len(data), step) for line in lines.feed(data[at : at + step])]
    assert [message.id for line in found for message in parse(line)] == [7, 7, 7]
    assert lines.noise == len(b"starting\nbye\n")


def test_an_open_brace_does_not_swallow_what_follows() -> None:
    lines = MessageLines(100)
    assert lines.feed(b"{\n  oops\n" + answer(b"{}") + b"\n") == [answer(b"{}")]
    assert lines.feed(b"{\n" + b"x" * 60 + b"\n" + b"x" * 60 + b"\n") == []
    assert lines.feed(b"noise\n" + answer(b"{}") + b"\n") == [answer(b"{}")]
    assert lines.noise > 120
