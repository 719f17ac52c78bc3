"""A real Redis (or Valkey) for a test, with nothing on disk, gone at the end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.servers import free_port

BINARY = shutil.which("redis-server") or shutil.which("valkey-server")


@dataclass
class RedisServer:
    """One server on a port and on a Unix socket; `options` as in its configuration file."""

    socket: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Run it; returns when it answers."""
        assert BINARY
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        nothing_kept = ["--save", "", "--appendonly", "no", "--dir", str(self.socket.parent)]
        self.process = subprocess.Popen(
            [BINARY, *place, *nothing_kept, *self.options], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        said = ""
        while "Ready to accept connections" not in said:
            line = self.process.stdout.readline()
            assert line, f"Redis did not start: {said}"
            said += line

    def stop(self) -> None:
        if self.process:
            with self.process:
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            self.process = None

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A running server; skips the test when there is none to run."""
    if BINARY is None:
        pytest.skip("there is no redis-server or valkey-server here")
    # A socket's path may have a hundred characters; pytest's folders take more.
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(folder / "redis.sock", options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`TOOLWAY_STORE` for an empty store of each kind."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis").url)
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'store.db'}"
