"""The event decoder: what a stream means must not depend on how it is cut or how sloppy its lines are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.wire import sse


def decode(*parts: bytes) -> list[bytes]:
    decoder = sse.Decoder()
    return [payload for part in parts for payload in decoder.feed(part)] + decoder.close()


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        (b'data: {"a":1}\n\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"]),
        (b'data:{"a":1}\r\n\r\ndata:[DONE]\r\n\r\n', [b'{"a":1}', b"[DONE]"]),
        (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
        (b": OPENROUTER PROCESSING\n\ndata: 1\n\n", [b"1"]),
        (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"event: x\nid: 7\nretry: 10\ndata: 1\n\n", [b"1"]),
        (b"data: 1\n\ndata: 2", [b"1", b"2"]),
        (b"data: 1\n\n\n\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"nonsense\ndata: 1\n\n", [b"1"]),
        (b"", []),
    ],
)
def test_each_way_to_write_an_event(stream: bytes, payloads: list[bytes]):
    assert decode(stream) == payloads


@given(st.data())
def test_the_cuts_between_reads_mean_nothing(data: st.DataObject):
    eol = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    texts = data.draw(st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1), max_size=6))
    payloads = [text.encode(errors="replace") for text in texts]
    stream = b"".join(b"data: " + payload + eol + eol for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*parts) == payloads
    assert decode(*[bytes([byte]) for byte in stream]) == payloads


@pytest.mark.parametrize(
    ("before", "payload"),
    [(b"data: 1", b"1data: 2"), (b"data: 1\n", b"1\n2"), (b"data: 1\r", b"1\n2"), (b"id: 1\n", b"2")],
)
def test_what_looks_like_an_event_of_its_own_may_be_the_rest_of_one(before: bytes, payload: bytes):
    assert decode(before, b"data: 2\n\n") == decode(before + b"data: 2\n\n") == [payload]


def test_lines_that_end_with_a_carriage_return_may_make_one_event():
    assert decode(b"data: 1\rdata: 2\n\n") == [b"1\n2"]


ODD = [
    b"data: 1\n\n",
    b"data:2\n\n",
    b"data: \n\n",
    b"data: a\ndata: b\n\n",
    b": c\n\n",
    b"\n",
    b"event: e\ndata: 3\n\n",
]


@given(st.lists(st.sampled_from(ODD), max_size=8))
def test_plain_events_among_others_are_read_as_they_are_line_by_line(events: list[bytes]):
    stream = b"".join(events)
    assert decode(stream) == decode(*[bytes([byte]) for byte in stream])


@pytest.mark.parametrize(
    "intruder",
    [b'{"error": {"message": "no"}}\n', b"<html><body>502</body></html>\n", b'  {"detail": 1}\n\n'],
)
def test_json_and_html_between_events_are_an_error_that_quotes_them(intruder: bytes):
    with pytest.raises(sse.NotAnEventStream) as caught:
        decode(b"data: 1\n\n" + intruder)
    assert caught.value.text.strip() == intruder.strip()


def test_a_line_without_end_is_an_error_and_not_a_memory_leak():
    decoder = sse.Decoder()
    with pytest.raises(sse.NotAnEventStream):
        for _ in range(2 + sse.MAX_EVENT_BYTES // 2**20):
            decoder.feed(b"x" * 2**20)


@given(st.binary())
def test_any_bytes_are_events_or_one_declared_error(data: bytes):
    try:
        decode(data)
    except sse.NotAnEventStream:
        pass


@given(st.binary().filter(lambda payload: b"\r" not in payload))
def test_an_encoded_payload_is_read_back(payload: bytes):
    assert decode(sse.encode(payload)) == [payload]


def test_a_carriage_return_before_the_last_line_is_a_line_end_wherever_the_stream_was_cut():
    decoder = sse.Decoder()
    assert decoder.feed(b"data: one\r") == []
    assert decoder.feed(b"data: two") == []
    assert decoder.close() == [b"one\ntwo"]
