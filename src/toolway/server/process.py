"""The process behind `toolway serve`: sockets, uvicorn, workers, and a deadline for slow senders."""

from __future__ import annotations

import asyncio
import errno
import gc
import multiprocessing
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from toolway.errors import ConfigError
from toolway.server.lane_protocol import LaneProtocol
from toolway.server.websocket import PONG_SECONDS
from toolway.settings.settings import ServerSettings, Settings
from toolway.telemetry.logging import configure_logging

if sys.platform != "win32":
    import resource

MAX_FILES = 65_536
_BACKLOG = 2048
SWITCH_SECONDS = 0.001
"""How long a thread that reads a document may hold the interpreter while the event loop waits for it (else 5 ms)."""
SILENT_WORKER_SECONDS = 60
"""How long a worker may not answer its supervisor before it is killed and replaced.

uvicorn's 5 are less than a worker needs to import everything on a slow machine, which it would then do for ever.
"""
_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

CreateApp = Callable[[Settings], ASGIApp]


def run(settings: Settings, create_app: CreateApp, on_listening: Callable[[str], None] | None = None) -> None:
    """Serve `create_app(settings)` until SIGTERM or Ctrl-C, then let answers end for `shutdown_grace` seconds.

    With several workers each calls `create_app`, which must be a function of a module then. `on_listening` is
    told the base URL as soon as connections are accepted into the queue. A second Ctrl-C ends at once.
    Raises ConfigError when it would be unsafe, or the address cannot be listened on; SystemExit when the app
    does not start.
    """
    check_exposure(settings.server, has_keys=settings.access.is_declared)
    allow_open_files()
    sockets = listen(settings.server.host, settings.server.port)
    config = server_config(partial(_build, create_app, settings), settings.server, factory=True)
    try:
        if on_listening:
            on_listening(settings.server.local_url(sockets[0].getsockname()[1]))
        with suppress(KeyboardInterrupt), _metrics(settings):
            if settings.server.workers == 1:
                _Server(config).run(sockets)
            else:
                _run_workers(config, sockets)
    except SystemExit:
        raise SystemExit(1) from None
    finally:
        for listener in sockets:
            listener.close()


def allow_open_files() -> None:
    """Let this process have as many connections as the system permits, up to MAX_FILES.

    Shells give a program 1,024 files, which are five hundred streams: each has a client's socket and a model server's.
    """
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS permits fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _metrics(settings: Settings) -> AbstractContextManager[None]:
    if not settings.metrics.address:
        return nullcontext()
    from toolway.server.metrics import exposition  # noqa: PLC0415 - needs 14 MB

    return exposition(settings.metrics, settings.server.workers)


def check_exposure(settings: ServerSettings, *, has_keys: bool = False) -> None:
    """Raise ConfigError for settings that would let strangers run tools; `has_keys` says whether the file has some."""
    if settings.insecure or settings.api_keys or has_keys:
        return
    if settings.is_exposed:
        raise ConfigError(
            f"On {settings.host} everybody who can reach this machine could run your tools. Make a key for each client "
            "with `toolway keys add NAME`, or set TOOLWAY_API_KEYS to keys that clients must send, or say --insecure "
            "(TOOLWAY_INSECURE=true) if that is what you want."
        )
    if "*" in settings.cors_origins:
        raise ConfigError(
            "With TOOLWAY_CORS_ORIGINS=* any web page that you open could run your tools. Name the origins, or set "
            "TOOLWAY_API_KEYS, or say --insecure (TOOLWAY_INSECURE=true) if that is what you want."
        )


def listen(host: str, port: int) -> list[socket.socket]:
    """A bound socket for each address of `host`, all on one port. Raises ConfigError that says what to do."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise ConfigError(
            f"{host} is not the name of this machine or of one of its addresses. Choose another with --host "
            "or TOOLWAY_HOST; 127.0.0.1 is for this machine alone."
        ) from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in sorted({(info[0], info[4]) for info in found}):
        try:
            sockets.append(_bound(family, (address[0], port, *address[2:]), dual=host == "::"))
            port = sockets[0].getsockname()[1]
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_ADDRESS:
                break
    # "localhost" names an IPv6 address even on machines without IPv6.
    if failure and not (sockets and failure.errno in _NO_SUCH_ADDRESS):
        for opened in sockets:
            opened.close()
        raise ConfigError(_why_not(failure, host, port))
    return sockets


def _bound(family: int, address: tuple[Any, ...], *, dual: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # There SO_REUSEADDR would let two programs share the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.bind(address)
        # Not left to uvicorn: two programs may bind one port, only one may listen, and we want to know now.
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    choose = "choose another port with --port or TOOLWAY_PORT"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is taken by another program. Stop that program, or {choose}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"This user may not listen on port {port} (below 1024 that needs privileges); {choose}."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine. Choose another with --host or TOOLWAY_HOST."
    return f"Cannot listen on port {port} of {host}: {error.strerror or error}."


def server_config(app: Any, settings: ServerSettings, **more: Any) -> uvicorn.Config:
    """uvicorn's configuration; what it would add to answers and logs by itself is off."""
    options: dict[str, Any] = {
        "http": partial(
            LaneProtocol, settings.receive_timeout, settings.send_timeout, settings.keepalive_interval
        ),
        "ws": _websocket_protocol,
        "ws_max_size": settings.max_body_bytes,
        "ws_ping_interval": settings.keepalive_interval,
        "ws_ping_timeout": PONG_SECONDS,
        # A small compressed message can be a huge one.
        "ws_per_message_deflate": False,
        "interface": "asgi3",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
        "backlog": _BACKLOG,
        "workers": settings.workers,
        "timeout_worker_healthcheck": SILENT_WORKER_SECONDS,
        "timeout_keep_alive": settings.idle_timeout,
        "timeout_graceful_shutdown": settings.shutdown_grace,
    }
    return uvicorn.Config(app, **{**options, **more})


def _websocket_protocol(**given: Any) -> asyncio.Protocol:
    from toolway.server.websocket_protocol import WebSocketProtocol  # noqa: PLC0415 - 3 MB

    return WebSocketProtocol(**given)


def _build(create_app: CreateApp, settings: Settings) -> ASGIApp:
    configure_logging(settings)
    _stop_with_parent()
    sys.setswitchinterval(SWITCH_SECONDS)
    app = create_app(settings)
    freeze_garbage_collector()
    return app


def _stop_with_parent() -> None:
    """Have a worker end, as by SIGTERM, when the process that looks after it is gone without a word."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            signal.raise_signal(signal.SIGTERM)

        threading.Thread(target=watch, name="parent", daemon=True).start()


def freeze_garbage_collector() -> None:
    """Have the garbage collector look at what requests make, not again and again at the program itself."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class _Server(uvicorn.Server):
    """Ends with status 0 when told to, where uvicorn would raise the signal once more."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Workers(Multiprocess):
    def terminate_all(self) -> None:
        """Refuse new connections at once; in the queue of a socket that nobody serves they would hang."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()


def _run_workers(config: uvicorn.Config, sockets: list[socket.socket]) -> None:
    supervisor = _Workers(config, sockets)
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise SystemExit(STARTUP_FAILURE)
