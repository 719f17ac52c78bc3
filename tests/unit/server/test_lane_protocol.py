"""What happens on a connection between an answer of the lane and the request that came behind it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.server.test_http_protocol import KEEP_ALIVE, POST, App, DecliningLane, served, to_end
from toolway.server.lane_protocol import LANE, UNDER_WAY, LaneProtocol, header_lines


def request(body: bytes, more: bytes = b"") -> bytes:
    return POST + more + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def answer(body: bytes) -> bytes:
    """As the lane gives it."""
    return b"HTTP/1.1 200 OK\r\nx-lane: 1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class EchoingLane(DecliningLane):
    """Answers with what it was sent; something comes behind the first request, and happens behind its answer."""

    def __init__(self, behind: bytes, then: Callable[[LaneProtocol], None]) -> None:
        self.behind = behind
        self.then = then
        self.begun: list[bytes] = []

    def begin(self, sender: Any, body: bytes, responder: Any) -> Any:
        self.begun.append(body)
        responder.loop.call_soon(self.answer, responder, body)
        return Pending()

    def answer(self, responder: LaneProtocol, body: bytes) -> None:
        is_first = len(self.begun) == 1
        if is_first:
            responder.data_received(self.behind)
        responder.answer(header_lines([(b"x-lane", b"1")]), body)
        if is_first:
            self.then(responder)


class Pending:
    """Is always answered."""

    def hand_over(self) -> None:
        raise AssertionError("what came behind is a request")

    def client_left(self) -> None:
        pass


@contextmanager
def lane_served(lane: EchoingLane) -> Iterator[tuple[App, socket.socket]]:
    state: dict[str, Any] = {LANE: lane}

    class WithEchoingLane(LaneProtocol):
        def __init__(self, *timeouts: float, **given: Any) -> None:
            super().__init__(*timeouts, KEEP_ALIVE, **{**given, "app_state": state})

    with served(protocol=WithEchoingLane, timeout_keep_alive=1) as (app, client):
        client.sendall(request(b"one"))
        yield app, client
    assert state[UNDER_WAY] == set()


def test_a_request_that_came_behind_one_takes_the_lane_after_it() -> None:
    lane = EchoingLane(request(b"two"), lambda _: None)
    with lane_served(lane) as (app, client):
        assert to_end(client) == answer(b"one") + answer(b"two")
    assert (lane.begun, app.requests) == ([b"one", b"two"], [])


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_the_rest_of_it_that_comes_before_it_is_taken_stands_behind_it(cut: int) -> None:
    whole = request(b"two")
    lane = EchoingLane(whole[:cut], lambda protocol: protocol.data_received(whole[cut:]))
    with lane_served(lane) as (_, client):
        assert to_end(client) == answer(b"one") + answer(b"two")


def test_more_requests_that_come_before_it_is_taken_are_answered_in_their_order() -> None:
    lane = EchoingLane(request(b"two"), lambda protocol: protocol.data_received(request(b"three")))
    with lane_served(lane) as (app, client):
        client.settimeout(60)
        to_end(client)
    assert lane.begun == [b"one"]
    assert app.requests == [("POST", b"two"), ("POST", b"three")]


def test_a_server_that_stops_before_it_is_taken_answers_it_and_closes() -> None:
    lane = EchoingLane(request(b"two"), LaneProtocol.shutdown)
    with lane_served(lane) as (app, client):
        first, _, second = to_end(client).partition(answer(b"one"))
    assert first == b""
    assert b" 200 " in second
    assert b"connection: close" in second
    assert app.requests == [("POST", b"two")]


def test_a_client_that_leaves_before_it_is_taken_has_it_begun_by_nobody() -> None:
    lane = EchoingLane(request(b"two"), lambda protocol: protocol.transport.abort())
    with lane_served(lane) as (app, client):
        to_end(client)
    assert (lane.begun, app.requests) == ([b"one"], [])


def test_a_connection_that_was_long_idle_is_not_closed_before_it_is_taken() -> None:
    def be_due(protocol: Any) -> None:
        protocol._idle_since = -1e9
        protocol.timeout_keep_alive_handler()

    lane = EchoingLane(request(b"two"), be_due)
    with lane_served(lane) as (_, client):
        assert to_end(client) == answer(b"one") + answer(b"two")
