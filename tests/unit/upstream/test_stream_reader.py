"""Whatever pieces a stream comes in, message and client's bytes are those of chunks that are parsed one by one."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.api.chat.chunks import ChunkWriter
from toolway.conversation.chunk_template import TextRun
from toolway.conversation.message import Message, MessageBuilder
from toolway.errors import UpstreamError
from toolway.upstream.model_call import StreamReader
from toolway.wire import sse

TEXT = st.text(alphabet=st.sampled_from('abc é日"\\\n'), max_size=5)
CHUNK = st.one_of(
    TEXT.map(lambda text: {"content": text}),
    TEXT.map(lambda text: {"content": text}),
    TEXT.map(lambda text: {"reasoning_content": text}),
    st.just({"role": "assistant", "content": ""}),
    st.just({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]}),
)
LINES = st.sampled_from(
    [b"data: %b\n\n", b"data:%b\n\n", b"data: %b\r\n\r\n", b": x\n\ndata: %b\n\n", b"id: 1\ndata: %b\n\n"]
)


def event_of(line: bytes, delta: dict[str, Any]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return line % orjson.dumps(chunk)


def parsed(stream: bytes) -> tuple[bytes, Message]:
    """The bytes for the client and the message, by a parser alone."""
    decoder, builder, writer = sse.Decoder(), MessageBuilder(lambda _: True), ChunkWriter("m")
    written = b""
    for payload in [*decoder.feed(stream), *decoder.close()]:
        if payload == sse.DONE:
            break
        chunk = orjson.loads(payload)
        visible = builder.feed(chunk)
        if visible is not None:
            written += writer.write([(visible, payload if visible is chunk else None)])
    message = builder.message()
    return written + writer.end(message, None), message


def read(reads: list[list[bytes]]) -> tuple[bytes, Message]:
    """The same of what network reads brought, each in the pieces that the server made."""
    writer, builder = ChunkWriter("m"), MessageBuilder(lambda _: True)
    reader = StreamReader(builder)
    read = chain(chain.from_iterable(reader.read(*pieces) for pieces in reads), reader.close())
    written = b"".join(writer.write(chunks.items) for chunks in read)
    message = builder.message()
    return written + writer.end(message, None), message


@given(
    st.lists(CHUNK, min_size=1, max_size=40), LINES, st.lists(st.integers(0, 9999), max_size=6), st.booleans()
)
def test_pieces_and_shortcuts_change_nothing(deltas: list[Any], line: bytes, cuts: list[int], has_end: bool):
    stream = b"".join(event_of(line, delta) for delta in deltas) + (sse.STREAM_END if has_end else b"")
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    assert read([[piece] for piece in pieces]) == parsed(stream)
    assert read([pieces]) == parsed(stream)


@given(
    st.lists(CHUNK, min_size=1, max_size=40), LINES, st.lists(st.integers(0, 9999), max_size=4), st.booleans()
)
def test_events_that_are_pieces_of_their_own_are_read_like_any(
    deltas: list[Any], line: bytes, cuts: list[int], has_end: bool
):
    events = [event_of(line, delta) for delta in deltas] + [sse.STREAM_END] * has_end
    edges = [0, *sorted(cut % (len(events) + 1) for cut in cuts), len(events)]
    assert read([events[start:end] for start, end in pairwise(edges)]) == parsed(b"".join(events))


def test_chunks_that_are_alike_are_passed_on_as_the_bytes_they_came_in():
    events = [event_of(b"data: %b\n\n", {"content": "word"}) for _ in range(40)]
    read = StreamReader(MessageBuilder(lambda _: True)).read(b"".join(events))
    runs = [chunks.items.events for chunks in read if isinstance(chunks.items, TextRun)]
    assert b"".join(runs) == b"".join(events[1:])


@pytest.mark.parametrize("before", [b"data: ", b": x\n", b"data:\n", sse.STREAM_END])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_pieces_behind_half_an_event_or_the_end_are_read_like_any(before: bytes, count: int):
    alike = [event_of(b"data: %b\n\n", {"content": text}) for text in ("one", "two", "ten")]

    def shown(*reads: list[bytes]) -> tuple[bytes, str]:
        reader, writer, written = StreamReader(MessageBuilder(lambda _: True)), ChunkWriter("m"), b""
        try:
            for pieces in reads:
                for chunks in reader.read(*pieces):
                    written += writer.write(chunks.items)
        except UpstreamError as error:
            return written, str(error)
        return written, ""

    whole = b"".join([*alike[:count], before, *alike])
    assert shown(alike[:count], [before], alike) == shown([whole])
    assert shown([*alike[:count], before, *alike]) == shown([whole])


def test_the_runs_are_found_of_events_that_are_pieces_of_their_own():
    first = event_of(b"data: %b\n\n", {"role": "assistant", "content": ""})
    events = [event_of(b"data: %b\n\n", {"content": f"é{n}"}) for n in range(300)]
    read = StreamReader(MessageBuilder(lambda _: True)).read(first, *events, sse.STREAM_END)
    runs = [chunks.items.events for chunks in read if isinstance(chunks.items, TextRun)]
    assert runs == [b"".join(events[1:])]


@given(
    st.lists(st.integers(0, 9999), max_size=3),
    st.sampled_from([b"error: full\n\n", b'{"error": "full"}\n\n']),
)
def test_what_came_before_an_error_is_shown_wherever_the_stream_was_cut(cuts: list[int], error: bytes):
    events = [event_of(b"data: %b\n\n", {"content": text}) for text in ("one", "two", "three")]
    stream = b"".join([*events, error])
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    reader = StreamReader(MessageBuilder(lambda _: True))
    shown: list[bytes | None] = []
    with pytest.raises(UpstreamError, match="full"):
        for start, end in pairwise(edges):
            for chunks in reader.read(stream[start:end]):
                shown += [raw for _, raw in chunks.items]
    assert shown == [event[6:-2] for event in events]


@pytest.mark.parametrize("behind", [b"foo: bar\n", b'{"error": "late"}\n\n', b"error: late\n", b"<html>\n"])
def test_what_stands_behind_the_end_means_nothing_wherever_it_is_cut(behind: bytes):
    said = event_of(b"data: %b\n\n", {"content": "word"})
    for pieces in ([said + sse.STREAM_END + behind], [said, sse.STREAM_END, behind], [said + sse.STREAM_END]):
        reader = StreamReader(MessageBuilder(lambda _: True))
        for piece in pieces:
            list(reader.read(piece))
        assert list(reader.close()) == []
        assert reader.message().fields["content"] == "word"
