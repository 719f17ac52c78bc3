"""WebSocket with a real client: who may open one, what is bounded, and how each side leaves."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.app_server import app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.servers import until
from tests.support.websocket import HANDSHAKE, WebSocketServer, frame, websocket_server
from toolway.server.asgi import ClientGone
from toolway.server.caller import PRINCIPAL_KEY, upstream_headers
from toolway.server.cancellation import SHUTDOWN
from toolway.server.websocket import MAX_QUEUED, WebSocket
from toolway.server.websocket_protocol import MAX_FRAGMENTS
from toolway.settings.load import load_settings

KEY = "a-client-key"


async def echo(socket: WebSocket) -> None:
    async for text in socket:
        await socket.send_text(text.encode())


class Work:
    """Takes until it is told to end; `ended` holds how each time ended."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.ended: list[str] = []
        self._end = threading.Semaphore(0)

    async def __call__(self) -> str:
        how = "done"
        try:
            await self.gate()
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            self.ended.append(how)
            self._end.release()
        return how

    def wait_for_end(self) -> None:
        assert self._end.acquire(timeout=DEADLINE), "the work goes on"


async def work_for_each(socket: WebSocket, work: Work) -> None:
    """Answer each message with the message, after some work."""
    async for text in socket:
        await socket.while_open(work)
        await socket.send_text(text.encode())


def closed(client: Any) -> tuple[int, str]:
    """How the server closes; what it says before is passed over."""
    with pytest.raises(ConnectionClosed) as caught:
        for _ in range(10_000):
            client.recv(DEADLINE)
    assert caught.value.rcvd is not None, "the connection broke"
    return caught.value.rcvd.code, caught.value.rcvd.reason


def refusal(server: WebSocketServer, **options: Any) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as caught, server.connect(**options):
        pass
    return caught.value.response.status_code, orjson.loads(caught.value.response.body)


def to_end(client: socket.socket) -> bytes:
    received = b""
    try:
        while part := client.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


# What is said


def test_texts_go_both_ways_in_order_and_whole():
    texts = ["hello", "", "snow \u2603", "x" * 2_000_000, *map(str, range(100))]
    with websocket_server(echo) as server, server.connect(max_size=None) as client:
        for text in texts[:4]:
            client.send(text)
            assert client.recv(DEADLINE) == text
        for text in texts[4:]:
            client.send(text)
        assert [client.recv(DEADLINE) for _ in texts[4:]] == texts[4:]


def test_a_message_may_come_in_pieces():
    with websocket_server(echo) as server, server.connect() as client:
        client.send(["one ", "two ", "three"])
        assert client.recv(DEADLINE) == "one two three"


def test_many_connections_do_not_mix():
    with websocket_server(echo) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for n, client in enumerate(clients):
            client.send(str(n))
        assert [client.recv(DEADLINE) for client in clients] == [str(n) for n in range(20)]


def test_nothing_is_compressed():
    with websocket_server(echo) as server, server.connect(compression="deflate") as client:
        assert client.response.headers.get("sec-websocket-extensions") is None


def test_the_end_of_the_talk_is_a_normal_close():
    async def talk(socket: WebSocket) -> None:
        await socket.send_text(b"bye")

    with websocket_server(talk) as server, server.connect() as client:
        assert client.recv(DEADLINE) == "bye"
        assert closed(client) == (1000, "")


def test_a_bug_in_the_talk_is_logged_and_told_without_its_words(caplog):
    async def talk(socket: WebSocket) -> None:
        raise ValueError("secret")

    with websocket_server(talk) as server, server.connect() as client:
        code, reason = closed(client)
    assert code == 1011
    assert "secret" not in reason
    assert "ValueError: secret" in caplog.text


# Who may open one, and where


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/responses/", "/v1/%72esponses", "/", "/v1/chat/completions"]
)
def test_elsewhere_an_offer_is_declined(path: str):
    with websocket_server(echo) as server, pytest.raises(InvalidStatus) as caught, server.connect(path):
        pass
    assert caught.value.response.status_code == 200
    assert caught.value.response.body == b"plain"


def test_a_query_may_follow_the_path():
    with websocket_server(echo) as server, server.connect("/v1/responses?a=b"):
        assert server.app.scopes[0]["query_string"] == b"a=b"


NO_UPGRADES = {
    "a POST": HANDSHAKE.replace(b"GET", b"POST"),
    "HTTP/1.0": HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another protocol": HANDSHAKE.replace(b"websocket\r\n", b"h2c\r\n", 1),
    "a body": HANDSHAKE.replace(b"Host:", b"Content-Length: 2\r\nHost:") + b"{}",
    "an absolute URL": HANDSHAKE.replace(b"GET /", b"GET http://localhost/"),
    "something behind it": HANDSHAKE + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "something before it": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + HANDSHAKE,
}


@pytest.mark.parametrize("name", NO_UPGRADES)
def test_what_is_no_plain_offer_is_a_request_like_any(name: str):
    with websocket_server(echo) as server, server.raw(NO_UPGRADES[name]) as client:
        received = until(client, b"plain")
        assert b" 200 " in received.split(b"\r\n")[0]
        assert b" 101 " not in received


BAD_HANDSHAKES = {
    "no version": HANDSHAKE.replace(b"Sec-WebSocket-Version: 13\r\n", b""),
    "an old version": HANDSHAKE.replace(b"Version: 13", b"Version: 8"),
    "no key": HANDSHAKE.replace(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""),
    "a short key": HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl"),
    "two keys": HANDSHAKE.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
}


@pytest.mark.parametrize("name", BAD_HANDSHAKES)
def test_a_broken_handshake_is_told(name: str):
    with websocket_server(echo) as server, server.raw(BAD_HANDSHAKES[name]) as client:
        head, _, body = to_end(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert "Sec-WebSocket-Version: 13" in orjson.loads(body)["error"]["message"]


def test_large_and_many_headers_are_none_of_its_affair():
    headers = {"authorization": "Bearer " + "x" * 20_000, **{f"x-{n}": "y" for n in range(300)}}
    with websocket_server(echo) as server, server.connect(additional_headers=headers):
        seen = dict(server.app.scopes[0]["headers"])
    assert seen[b"authorization"] == headers["authorization"].encode()
    assert seen[b"x-299"] == b"y"


def test_without_a_key_there_is_no_connection():
    with websocket_server(echo, api_keys=KEY) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"api-key={KEY}"}):
            status, body = refusal(server, additional_headers=headers)
            assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        with server.raw() as client:
            assert b"www-authenticate: bearer" in to_end(client).lower()


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"api-key": KEY}, {"x-api-key": KEY}]
)
def test_a_key_opens_and_goes_no_further(headers: dict[str, str]):
    with websocket_server(echo, api_keys=KEY) as server, server.connect(additional_headers=headers):
        scope = server.app.scopes[0]
    assert scope[PRINCIPAL_KEY]
    assert KEY.encode() not in b" ".join(value for _, value in scope["headers"])


def test_pages_of_other_origins_are_refused():
    with websocket_server(echo, cors_origins="http://friend.example") as server:
        for origin in ("http://evil.example", "null"):
            status, body = refusal(server, origin=origin)
            assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
        for origin in ("http://friend.example", f"http://127.0.0.1:{server.port}"):
            with server.connect(origin=origin) as client:
                client.send("hi")
                assert client.recv(DEADLINE) == "hi"


@pytest.mark.parametrize(
    ("host", "status"), [(b"evil.example", 403), (b"a b", 400), (b"localhost\r\nHost: localhost", 400)]
)
def test_other_hosts_are_refused(host: bytes, status: int):
    with websocket_server(echo) as server, server.raw(HANDSHAKE.replace(b"localhost", host)) as client:
        head, _, body = to_end(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert orjson.loads(body)["error"]["type"] == "invalid_request_error"


def test_where_nobody_talks_yet_the_answer_says_what_to_do():
    with app_server(responses="passthrough") as server:
        status, body = refusal(WebSocketServer(None, server.url, None))
    assert status == 404
    assert "POST" in body["error"]["message"]


def test_what_goes_upstream_has_nothing_of_the_handshake():
    settings = load_settings({}, None, openai_api_key="upstream-key")
    with websocket_server(echo) as server:
        with server.connect(subprotocols=["a"], additional_headers={"x-mine": "1", "openai-beta": "b"}):
            pass
        kept = upstream_headers(server.app.scopes[0], settings.upstream)
    kept = [header for header in kept if header[0] != b"user-agent"]
    assert kept == [(b"x-mine", b"1"), (b"openai-beta", b"b"), (b"authorization", b"Bearer upstream-key")]


# Bounds


def test_a_message_that_is_too_large_closes():
    with websocket_server(echo, max_body_bytes=1000) as server:
        for message in ("x" * 1001, ["x" * 600, "y" * 600]):
            with server.connect() as client:
                client.send("x" * 1000)
                assert client.recv(DEADLINE) == "x" * 1000
                client.send(message)
                assert closed(client)[0] == 1009


def test_a_client_that_still_sends_hears_why_it_is_too_much():
    with websocket_server(echo, max_body_bytes=1000) as server:
        for _ in range(10):
            with server.connect() as client:
                with suppress(ConnectionClosed):
                    client.send("x" * 20_000_000)
                assert closed(client)[0] == 1009


def test_a_binary_message_closes():
    with websocket_server(echo) as server, server.connect() as client:
        client.send(b"x")
        assert closed(client) == (1003, "Messages must be text, not binary.")


def test_text_that_is_no_utf_8_closes():
    with websocket_server(echo) as server, server.raw() as client:
        until(client, b"\r\n\r\n")
        client.sendall(frame(b"\xff\xfe"))
        assert to_end(client)[2:4] == (1007).to_bytes(2, "big")


def test_a_broken_frame_closes():
    with websocket_server(echo) as server, server.raw() as client:
        until(client, b"\r\n\r\n")
        client.sendall(b"\x01\x05hello")
        assert to_end(client)[2:4] == (1002).to_bytes(2, "big")


def test_a_message_of_endless_empty_pieces_closes():
    with websocket_server(echo) as server, server.raw() as client:
        until(client, b"\r\n\r\n")
        client.sendall(frame(b"", fin=False) + frame(b"", 0, fin=False) * MAX_FRAGMENTS)
        assert to_end(client)[2:4] == (1008).to_bytes(2, "big")


def test_a_client_that_says_nothing_for_long_is_let_go():
    with websocket_server(echo, websocket_idle_timeout=0.2) as server, server.connect() as client:
        assert closed(client) == (1001, "Nothing was sent for 0.2 seconds.")


def test_a_client_that_answers_pings_may_be_silent():
    pings = threading.Semaphore(0)
    short = {"receive_timeout": 0.5, "idle_timeout": 0.5}  # for requests, not for this
    with websocket_server(echo, keepalive_interval=0.1, **short) as server, server.connect() as client:
        pong = client.protocol.recv_frame

        def count(arrived: Any) -> None:
            pings.release()
            pong(arrived)

        client.protocol.recv_frame = count
        for _ in range(10):
            assert pings.acquire(timeout=DEADLINE)
        client.send("hi")
        assert client.recv(DEADLINE) == "hi"


def test_a_client_that_answers_no_ping_is_let_go():
    config = {"ws_ping_timeout": 0.7}
    work = Work()
    with (
        websocket_server(lambda s: work_for_each(s, work), config=config, keepalive_interval=0.3) as server,
        server.raw() as client,
    ):
        until(client, b"\r\n\r\n")
        client.sendall(frame(b"go"))
        work.wait_for_end()
        assert b"keepalive" in to_end(client)
    assert work.ended == ["cancelled"]


def test_a_client_that_never_reads_is_let_go():
    gone = threading.Event()
    sent = []

    async def talk(socket: WebSocket) -> None:
        try:
            while True:
                await socket.send_text(b"x" * 100_000)
                sent.append(1)
        except ClientGone:
            gone.set()
            raise

    config = {"ws_ping_timeout": 0.2}
    with websocket_server(talk, config=config, keepalive_interval=0.2) as server, server.raw():
        assert gone.wait(DEADLINE)
    assert len(sent) < 1000


def test_a_client_that_only_pings_and_never_reads_fills_no_memory():
    full = Gate()

    async def talk(socket: WebSocket) -> None:
        with anyio.move_on_after(0.5):
            while True:
                await socket.send_text(b"x" * 100_000)
        await full()

    with websocket_server(talk) as server, server.raw() as client:
        full.wait_for_arrival()
        ping = frame(b"p" * 100, 9)
        for _ in range(100):
            client.sendall(ping * 1000)
        client.shutdown(socket.SHUT_WR)
        pongs = to_end(client).count(b"p" * 100)
        full.open()
    assert pongs < 20_000


# Leaving


def close(client: socket.socket) -> None:
    client.sendall(frame((1000).to_bytes(2, "big"), 8))


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [close, reset, half_close, lambda client: client.close()])
@pytest.mark.parametrize("waiting", [0, 3])
def test_work_ends_when_its_client_leaves(leave: Any, waiting: int):
    work = Work()
    with websocket_server(lambda s: work_for_each(s, work)) as server, server.raw() as client:
        until(client, b"\r\n\r\n")
        client.sendall(frame(b"go"))
        work.gate.wait_for_arrival()
        client.sendall(frame(b"more") * waiting)
        leave(client)
        work.wait_for_end()
    assert work.ended == ["cancelled"]


def test_messages_that_come_during_work_wait_their_turn():
    work = Work()
    with websocket_server(lambda s: work_for_each(s, work)) as server, server.connect() as client:
        client.send("1")
        work.gate.wait_for_arrival()
        client.send("2")
        client.send("3")
        work.gate.open()
        assert [client.recv(DEADLINE) for _ in range(3)] == ["1", "2", "3"]
    assert work.ended == ["done"] * 3


@pytest.mark.parametrize("messages", [["x"] * (MAX_QUEUED + 1), ["x" * 900, "y" * 900]])
def test_too_many_messages_during_work_close(messages: list[str]):
    work = Work()
    with (
        websocket_server(lambda s: work_for_each(s, work), max_body_bytes=1000) as server,
        server.connect() as client,
    ):
        client.send("go")
        work.gate.wait_for_arrival()
        for message in messages:
            client.send(message)
        assert closed(client)[0] == 1008
        work.wait_for_end()
    assert work.ended == ["cancelled"]


def test_a_failure_of_the_work_is_raised_as_it_is():
    async def fail() -> None:
        raise KeyError("mine")

    async def talk(socket: WebSocket) -> None:
        try:
            await socket.while_open(fail)
        except KeyError as error:
            await socket.send_text(str(error).encode())

    with websocket_server(talk) as server, server.connect() as client:
        assert client.recv(DEADLINE) == "'mine'"


def test_to_send_to_a_client_that_left_says_so():
    left = Gate()
    gone = threading.Event()

    async def talk(socket: WebSocket) -> None:
        await left()
        try:
            while True:
                await socket.send_text(b"x" * 10_000)
        except ClientGone:
            gone.set()

    with websocket_server(talk) as server:
        with server.raw() as client:
            until(client, b"\r\n\r\n")
            left.wait_for_arrival()
        left.open()
        assert gone.wait(DEADLINE)


# The stop of the server


def test_a_stop_says_goodbye_to_who_waits():
    with websocket_server(echo) as server, server.connect() as client:
        client.send("hi")
        assert client.recv(DEADLINE) == "hi"
        server.stop()
        assert closed(client) == (1001, "The server is stopping.")


def test_a_stop_lets_work_end_and_begins_no_other():
    work = Work()
    with websocket_server(lambda s: work_for_each(s, work)) as server, server.connect() as client:
        client.send("1")
        work.gate.wait_for_arrival()
        client.send("2")
        told = threading.Event()
        server.app.scopes[0]["extensions"][SHUTDOWN].add_callback(told.set)
        server.stop()
        assert told.wait(DEADLINE)
        work.gate.open()
        assert client.recv(DEADLINE) == "1"
        assert closed(client) == (1001, "The server is stopping.")
    assert work.ended == ["done"]


def test_work_that_takes_longer_than_the_grace_is_cancelled(caplog):
    work = Work()
    with (
        websocket_server(lambda s: work_for_each(s, work), shutdown_grace=0.2) as server,
        server.connect() as client,
    ):
        client.send("1")
        work.gate.wait_for_arrival()
        server.stop()
        assert closed(client) == (1001, "The server is stopping.")
        work.wait_for_end()
    assert work.ended == ["cancelled"]
    news = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all(r.exc_info is None or isinstance(r.exc_info[1], asyncio.CancelledError) for r in news)


def test_it_works_under_uvicorns_own_protocol_too():
    work = Work()
    config = {"ws": "websockets-sansio", "http": "httptools"}
    with websocket_server(lambda s: work_for_each(s, work), config=config) as server:
        assert refusal(server, origin="http://evil.example")[0] == 403
        with server.connect() as client:
            client.send("go")
            work.gate.wait_for_arrival()
        work.wait_for_end()
    assert work.ended == ["cancelled"]
