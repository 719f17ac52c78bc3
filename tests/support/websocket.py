"""A server that speaks WebSocket as Toolway does, and what a test says to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.servers import running_server
from toolway.server.auth import AuthMiddleware
from toolway.server.process import server_config
from toolway.server.websocket import WebSocket, serve_websocket
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings

HANDSHAKE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

Talk = Callable[[WebSocket], Awaitable[None]]


class Talking:
    """An app that talks over each WebSocket, and answers "plain" to everything else."""

    def __init__(self, settings: Settings, talk: Talk) -> None:
        self.settings, self.talk = settings, talk
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await serve_websocket(scope, receive, send, self.settings.server, self.talk)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"plain"})


class WebSocketServer:
    """A running server."""

    def __init__(self, app: Talking, url: str, stop: Callable[[], None]) -> None:
        self.app = app
        self.url = url.replace("http", "ws", 1)
        self.port = int(url.rpartition(":")[2])
        self.stop = stop

    def connect(self, path: str = "/v1/responses", **options: Any) -> ClientConnection:
        options = {"compression": None, "open_timeout": 60, **options}
        connection: ClientConnection = connect(self.url + path, **options)
        return connection

    @contextmanager
    def raw(self, handshake: bytes = HANDSHAKE) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(handshake)
            yield client


@contextmanager
def websocket_server(
    talk: Talk, *, config: dict[str, Any] | None = None, **settings: Any
) -> Iterator[WebSocketServer]:
    """Toolway's own server and guard around `talk`. `stop` tells the server to stop and does not wait."""
    chosen = load_settings({}, None, **settings)
    app = Talking(chosen, talk)
    options = {"lifespan": "off", **(config or {})}
    server = running_server(server_config(AuthMiddleware(app, chosen.server), chosen.server, **options))
    url = server.__enter__()
    stopping = threading.Thread(target=server.__exit__, args=(None, None, None))

    def stop() -> None:
        if stopping.ident is None:
            stopping.start()

    try:
        yield WebSocketServer(app, url, stop)
    finally:
        stop()
        stopping.join()


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """A frame as a client sends it, masked with zeros."""
    size = len(payload)
    assert size < 2**16
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
    return bytes([0x80 * fin | opcode]) + length + bytes(4) + payload
