"""The server process: where it listens, whom it refuses to be exposed to, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import pytest

from toolway.errors import ConfigError
from toolway.server.process import MAX_FILES, check_exposure, listen, run, server_config
from toolway.settings.settings import ServerSettings, Settings

if sys.platform != "win32":
    import resource

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=60)

    def signal(self, number: int) -> None:
        """Send it, and wait until the process acts on it: it closes the connections that nobody uses."""
        with self.connect() as unused:
            unused.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert unused.recv(65536)
            self.process.send_signal(number)
            to_end(unused)

    def ended(self) -> tuple[int, str]:
        """Status and all that was said on stderr."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def served(*arguments: str, shell: str = "", **settings: object) -> Iterator[Served]:
    """The server; what `shell` says is done before it."""
    env = {f"TOOLWAY_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "tests.unit.server.echo", *arguments]
    process = subprocess.Popen(
        ["sh", "-c", f'{shell}; exec "$@"', "sh", *command] if shell else command,
        env={**os.environ, "TOOLWAY_PORT": "0", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield Served(process, process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


@contextmanager
def streaming(server: Served) -> Iterator[socket.socket]:
    """A client in the middle of an answer."""
    with server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        received = b""
        while b"first" not in received:
            received += client.recv(65536)
        yield client


def to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def test_it_may_open_as_many_files_as_the_system_permits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served(shell="ulimit -Sn 256") as server:
        assert httpx2.get(server.url).status_code == 200
        most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (most, hard)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_quietly_with_status_0(number: int) -> None:
    with served() as server:
        assert httpx2.get(server.url).status_code == 200
        server.signal(number)
        assert server.ended() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_answer_under_way_may_end(number: int) -> None:
    with served() as server, streaming(server) as client:
        server.signal(number)
        client.sendall(b"4\r\nlast\r\n0\r\n\r\n")
        received = to_end(client)
        assert b"last" in received
        assert received.endswith(b"0\r\n\r\n")
        assert server.ended() == (0, "")


def test_an_answer_that_does_not_end_is_cut_after_the_grace() -> None:
    with served(shutdown_grace=0.2) as server, streaming(server) as client:
        server.signal(signal.SIGTERM)
        assert not to_end(client).endswith(b"0\r\n\r\n")
        assert server.ended() == (0, "")


def test_a_second_ctrl_c_ends_at_once() -> None:
    with served(shutdown_grace=60) as server, streaming(server) as client:
        server.signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        assert not to_end(client).endswith(b"0\r\n\r\n")
        assert server.ended() == (0, "")


def test_workers_share_the_port_and_end_together() -> None:
    with served(workers=2) as server, streaming(server) as client:
        assert httpx2.get(server.url).text != str(server.process.pid)
        server.signal(signal.SIGTERM)
        client.sendall(b"0\r\n\r\n")
        assert to_end(client).endswith(b"0\r\n\r\n")
        assert server.ended() == (0, "")


def test_workers_end_when_their_parent_is_killed() -> None:
    with served(workers=2, shutdown_grace=0.2) as server, streaming(server) as client:
        server.process.kill()
        to_end(client)
        # The workers hold its pipes, which end with the last of them.
        assert server.ended()[0] == -signal.SIGKILL


def test_a_worker_that_needs_long_to_start_is_not_killed_for_it() -> None:
    # A worker answers its supervisor when it has imported everything; the test would need as long to see it killed.
    assert server_config(None, ServerSettings(workers=2)).timeout_worker_healthcheck >= 60


def test_workers_that_cannot_start_end_it_all() -> None:
    with served("broken", workers=2) as server:
        status, said = server.ended()
        assert status == 1
        assert "not today" in said
        assert "Traceback" not in said


def test_an_app_that_cannot_start_says_why() -> None:
    with served("broken") as server:
        status, said = server.ended()
        assert status == 1
        assert "not today" in said
        assert "Traceback" not in said


def test_a_taken_port_is_named_with_a_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"Port {port} on 127\.0\.0\.1 is taken .* --port or TOOLWAY_PORT"
        ):
            run(Settings(server=ServerSettings(port=port)), lambda settings: pytest.fail())


@pytest.mark.parametrize(
    ("host", "says"),
    [("no-such-host.invalid", "not the name"), ("192.0.2.1", "not an address of this machine")],
)
def test_an_address_that_is_not_here_is_explained(host: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        listen(host, 0)


def test_localhost_is_one_port_on_all_its_addresses() -> None:
    sockets = listen("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in sockets}) == 1
        port = sockets[0].getsockname()[1]
        assert ServerSettings(host="localhost").local_url(port) == f"http://localhost:{port}"
        assert ServerSettings(host="0.0.0.0").local_url(port) == f"http://127.0.0.1:{port}"
        assert ServerSettings(host="::1").local_url(port) == f"http://[::1]:{port}"
        assert ServerSettings(host="::", port=9).local_url() == "http://[::1]:9"
    finally:
        for listener in sockets:
            listener.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.example.com"])
def test_without_keys_it_does_not_listen_where_others_can_reach_it(host: str) -> None:
    with pytest.raises(ConfigError, match="TOOLWAY_API_KEYS"):
        run(Settings(server=ServerSettings(host=host, port=0)), lambda settings: pytest.fail())
    check_exposure(ServerSettings(host=host, api_keys=("k",)))
    check_exposure(ServerSettings(host=host, insecure=True))


def test_any_origin_needs_keys() -> None:
    with pytest.raises(ConfigError, match=r"TOOLWAY_CORS_ORIGINS=\*"):
        check_exposure(ServerSettings(cors_origins=("*",)))
    check_exposure(ServerSettings(cors_origins=("*",), api_keys=("k",)))
    check_exposure(ServerSettings(cors_origins=("http://localhost:3000",)))
