"""The reader of answers: a head that it knows changes nothing of what it finds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toolway.net.connection import MAX_UNKNOWN, Response
from toolway.net.errors import HttpError

HEADS = [
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length:%d \r\nx-request-id: one\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: %d\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: %d\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 103 Hints\r\nContent-Length: %d\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
    b"HTTP/1.1 200 OK\nX: 1\r\nContent-Length: %d\n\n",
    b"HTTP/1.1 204 No Content\r\nContent-Length: %d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0%d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n",
]


def answer(head: bytes, body: bytes) -> bytes:
    end = b"\r\n0\r\n\r\n" if b"chunked" in head else b""
    return head % ((len(body),) * head.count(b"%")) + body + end


def read(reader: Response, method: str, parts: list[bytes]) -> Any:
    """What a reader finds in one answer; it is the next one of a connection."""
    reader.begin(method)
    failure = None
    try:
        for part in parts:
            reader.feed(part)
    except HttpError as error:
        failure = (error.fault, str(error))
    found = (reader.status, reader.headers, b"".join(reader.parts), reader.complete, reader.keeps_alive)
    reader.parts.clear()
    return failure, found


HINTED = HEADS[8] % (2, 2)
"""An interim answer that tells a length of its own, and the head behind it."""
FEIGNED = HINTED.replace(b"h: 2", b"h: %d" % len(HINTED.partition(b"\r\n\r\n")[2]), 1)
"""The same; the length is that of what comes behind it."""

NO_BODY = b"HTTP/1.1 304 Not Modified\r\nContent-Length: %d\r\n\r\n"


answers = st.tuples(
    st.sampled_from(["POST", "POST", "POST", "HEAD"]),
    st.builds(answer, st.sampled_from(HEADS), st.sampled_from([b"", b"{}", b"x" * 12])),
    st.sampled_from([b"", b"", b"", b"more"]),
    st.integers(0, 100),
)


@example([("POST", answer(HEADS[12], b"{}"), b"", 0)] * 3)
@example([("POST", answer(HEADS[9], b"{}"), b"", 0)] * 2)
@example([("POST", HINTED + b"{}", b"", 0), ("POST", FEIGNED, b"", 0)])
@example([("POST", NO_BODY % 1, b"", 0), ("POST", NO_BODY % 1 + b"x", b"", 0)])
@given(st.lists(answers, min_size=2, max_size=6))
def test_what_was_read_before_changes_nothing(given_answers: list[tuple[str, bytes, bytes, int]]) -> None:
    reader = Response("POST")
    for method, data, behind, cut in given_answers:
        parts = [part for part in (data[:cut], data[cut:] + behind) if part]
        expected = read(Response(method), method, parts)
        assert read(reader, method, parts) == expected
        failure, (*_, complete, keeps_alive) = expected
        if failure or not (complete and keeps_alive):
            return  # no other answer follows on such a connection


def test_a_known_head_needs_no_parser() -> None:
    reader = Response("POST")
    read(reader, "POST", [answer(HEADS[0], b"{}")])
    reader.close()  # it has no parser from now on
    _, (status, headers, body, complete, keeps_alive) = read(reader, "POST", [answer(HEADS[0], b"longer")])
    assert (status, body, complete, keeps_alive) == (200, b"longer", True, True)
    assert headers == [(b"content-type", b"application/json"), (b"content-length", b"6")]


@pytest.mark.parametrize("count", [MAX_UNKNOWN - 1, MAX_UNKNOWN])
def test_heads_that_never_come_again_are_not_looked_for(count: int) -> None:
    reader = Response("POST")
    for number in range(count):
        read(
            reader,
            "POST",
            [b"HTTP/1.1 200 OK\r\nx-request-id: %d\r\n" % number + b"Content-Length: 2\r\n\r\n{}"],
        )
    before = reader._last
    read(reader, "POST", [answer(HEADS[0], b"{}")])
    assert (reader._last is before) == (count == MAX_UNKNOWN)
