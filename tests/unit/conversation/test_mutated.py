"""Recorded bytes, mutated and cut anywhere: nothing is raised that is not declared, and no cut changes the meaning."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import QUIRKS
from toolway.api.chat.chunks import ChunkWriter
from toolway.conversation.message import Message, MessageBuilder, read_answer
from toolway.errors import InvalidRequest, UpstreamError
from toolway.server.asgi import parse_object
from toolway.wire import lenient_json, sse

SAMPLES = [path.read_bytes() for path in sorted(QUIRKS.glob("*.sse"))]
REQUEST = orjson.dumps(
    {
        "model": "m",
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "é"}]}],
        "tools": [{"type": "function", "function": {"name": "t", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
    }
)
ANSWER = orjson.dumps(
    {
        "id": "c",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "é",
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "t", "arguments": "{}"}}
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"total_tokens": 1},
    }
)
BITS = (
    *(
        b"\n",
        b"\r",
        b"\n\n",
        b"data:",
        b"data: [DONE]\n\n",
        b": x\n",
        b"<html>",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\x00",
    ),
    *(
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"17893421123456789012345",
        b"9" * 5000,
        b"NaN",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\u",
        b"\\ud83d",
        b'"error":{}',
        b'"error":true,"message":"\\udc00"',
        b'data: [{"error":{"code":1}}]\n\n',
    ),
    *(b'"index":', b'"id":', b'"tool_calls":', b'"function":', b'"choices":', b'"delta":', b'"name":'),
    *(b'"arguments":', b'"finish_reason":"stop"', b'"usage":'),
)


@st.composite
def mutated(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample with up to four places overwritten, taken out, doubled or put in."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 30)))
        bit = draw(st.one_of(st.sampled_from(BITS), st.binary(max_size=4), st.just(data[start:end] * 2)))
        data = data[:start] + bit + data[end:]
    return data


def decoded(data: bytes, cuts: list[int]) -> list[bytes] | None:
    """The payloads of a stream that is cut there; None when it is no event stream."""
    decoder, payloads, start = sse.Decoder(), [], 0
    try:
        for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
            payloads += decoder.feed(data[start:cut])
            start = cut
        return payloads + decoder.close()
    except sse.NotAnEventStream:
        return None


@given(mutated(SAMPLES), st.lists(st.integers(0, 10_000), max_size=6))
def test_cuts_change_nothing(data: bytes, cuts: list[int]):
    assert_cuts_change_nothing(data, cuts)


@given(mutated(SAMPLES))
def test_any_stream_is_a_message_or_an_upstream_error(data: bytes):
    assert_stream(data)


@given(mutated([ANSWER]))
def test_any_whole_answer_is_a_message_or_an_upstream_error(data: bytes):
    assert_answer(data)


@given(st.one_of(st.binary(), mutated([REQUEST])))
def test_any_request_is_an_object_or_the_clients_fault(data: bytes):
    assert_request(data)


def assert_cuts_change_nothing(data: bytes, cuts: list[int]) -> None:
    assert decoded(data, cuts) == decoded(data, [])


def assert_stream(data: bytes) -> None:
    builder, writer = MessageBuilder(lambda name: name.startswith("client")), ChunkWriter("m")
    try:
        for payload in decoded(data, []) or ():
            chunk = chunk_of(payload)
            if chunk is not None and (visible := builder.feed(chunk)) is not None:
                written(writer.write([(visible, None)]))
    except UpstreamError:
        return
    message = builder.message()
    assert isinstance(message, Message)
    written(writer.end(message, message.usage))


def assert_answer(data: bytes) -> None:
    answer = chunk_of(data)
    if answer is not None:
        with suppress(UpstreamError):
            assert isinstance(read_answer(answer), Message)


def assert_request(data: bytes) -> None:
    with suppress(InvalidRequest):
        assert isinstance(parse_object(data), dict)


def chunk_of(payload: bytes) -> dict[str, Any] | None:
    try:
        value = lenient_json.loads(payload)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def written(data: bytes) -> None:
    """What goes to the client is an event stream of JSON, whatever came in; half a character stays half."""
    for payload in decoded(data, []) or ():
        assert payload == b"[DONE]" or lenient_json.loads(payload)
