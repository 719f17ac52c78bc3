"""Real servers for tests: an ASGI app on a real uvicorn, on a free port, for as long as a `with` lasts."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from tests.support.gate import DEADLINE

UseLoop = Callable[[asyncio.AbstractEventLoop], None]


class _Announced(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: UseLoop | None) -> None:
        super().__init__(config)
        self.up = threading.Event()
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start:
            self._on_start(asyncio.get_running_loop())
        self.up.set()


@contextmanager
def running(app: Any, *, port: int = 0, **config: Any) -> Iterator[str]:
    """Serve `app` in a thread; yields its base URL, `http://127.0.0.1:<port>`. Ends it when left."""
    options = {
        "log_level": "warning",
        "log_config": None,
        "ws": "none",
        "timeout_graceful_shutdown": 1,
        **config,
    }
    with running_server(uvicorn.Config(app, **options), port=port) as url:
        yield url


@contextmanager
def running_server(
    config: uvicorn.Config, *, port: int = 0, on_start: UseLoop | None = None
) -> Iterator[str]:
    """The same for a whole configuration of uvicorn; `on_start` is given its event loop."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = _Announced(config, on_start)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        if not server.up.wait(DEADLINE):
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(DEADLINE)
        listener.close()
        if thread.is_alive():
            raise RuntimeError("the server did not stop")


def free_port() -> int:
    """A port that nothing listens on now, below those that the system gives to whoever asks for any."""
    while True:
        port = 20_000 + secrets.randbelow(
            12_000
        )  # not by `random`: in every process it may begin with the same seed
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def until(client: socket.socket, mark: bytes) -> bytes:
    """What a socket brings, up to the read in which `mark` is there."""
    received = b""
    while mark not in received:
        part = client.recv(65536)
        assert part, received
        received += part
    return received
