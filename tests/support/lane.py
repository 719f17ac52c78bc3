"""The fast lane under test: what came of each request in it, and exchanges with it to the byte."""

from __future__ import annotations

import socket
from collections.abc import Coroutine, Iterator
from typing import Any

import httptools
import httpx2
import pytest

from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.upstream import Reply, whole
from toolway.conversation.events import Chunks
from toolway.conversation.message import Message
from toolway.engine.fast_lane import FastLane
from toolway.engine.lane_exchange import ExchangeHandover, LaneRequest, MessageResponder, ModelExchange
from toolway.upstream.client import AnswerHead, StartedRequest

CAME: list[str] = []
"""What came of each request that took the lane."""


class Watched:
    """The responder of a request in the lane; notes what comes of it."""

    def __init__(self, responder: MessageResponder) -> None:
        self._responder = responder

    def answer(self, message: Message, head: AnswerHead) -> None:
        CAME.append("answered")
        self._responder.answer(message, head)

    @property
    def is_blocked(self) -> bool:
        return self._responder.is_blocked

    def start(self, head: AnswerHead) -> None:
        self._responder.start(head)

    def write(self, chunks: Chunks) -> None:
        self._responder.write(chunks)

    def end(self, message: Message) -> None:
        CAME.append("streamed")
        self._responder.end(message)

    def take_over(self, handover: ExchangeHandover) -> None:
        CAME.append("handed over, begun" if handover.reader else "handed over")
        self._responder.take_over(handover)

    def run_detached(self, work: Coroutine[Any, Any, None]) -> None:
        CAME.append("left")
        self._responder.run_detached(work)


@pytest.fixture(scope="module", autouse=True)
def watched() -> Iterator[None]:
    """Has CAME told what comes of each request."""
    follow = FastLane.follow

    def watch(
        self: FastLane, request: LaneRequest, started: StartedRequest, responder: MessageResponder
    ) -> ModelExchange:
        return follow(self, request, started, Watched(responder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastLane, "follow", watch)
        yield


@pytest.fixture(scope="module")
def lane() -> Iterator[AppServer]:
    """A Toolway with the lane."""
    with app_server() as server:
        yield server


@pytest.fixture(scope="module")
def ordinary() -> Iterator[AppServer]:
    """The same without it."""
    with app_server(has_lane=False) as server:
        yield server


@pytest.fixture
def taken() -> list[str]:
    """What comes of each request that takes the lane in this test."""
    CAME.clear()
    return CAME


_WORDS = whole({"content": "Well."})


def warm(app: AppServer, *replies: Reply) -> None:
    """Have a connection to the model server open and idle, which the lane needs; and these answers come next."""
    app.set_replies(_WORDS).ask()
    app.set_replies(*replies)
    CAME.clear()


def asked(app: AppServer) -> list[Any]:
    """What the model server was asked, but for its own address."""
    return [
        (seen.path, seen.query, seen.body, [header for header in seen.headers if header[0] != b"host"])
        for seen in app.upstream.seen
    ]


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Own: kept\r\n"
    b"Authorization: Bearer x\r\nContent-Length: %d\r\nUser-Agent: mine\r\n\r\n"
)


def request(body: bytes, head: bytes = HEAD) -> bytes:
    return head % len(body) + body


class Answers:
    """Reads answers from a socket, byte for byte."""

    def __init__(self) -> None:
        self.whole = 0
        self.body = b""
        """The bodies, without the frames of their chunks, which are those of network reads."""

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.whole += 1

    def read(self, client: socket.socket, count: int) -> bytes:
        """So many answers, or what comes until the server closes."""
        received, parser = b"", httptools.HttpResponseParser(self)
        while self.whole < count and (part := client.recv(65536)):
            received += part
            parser.feed_data(part)
        return received


def connected(app: AppServer) -> socket.socket:
    host, port = app.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=DEADLINE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def counted(app: AppServer) -> dict[str, float]:
    """What is counted of requests and conversations."""
    lines = httpx2.get(f"{app.url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    named = ("toolway_http_requests_total", "toolway_conversations", "toolway_rounds", "toolway_tokens")
    return {name: float(value) for name, value in pairs if name.startswith(named) and "/metrics" not in name}
