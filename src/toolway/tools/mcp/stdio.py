"""A stdio server as a pair of message streams, without a task of its own: the pipes call straight in."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from mcp.shared.message import SessionMessage

from toolway.errors import SourceError
from toolway.tools.mcp import watch
from toolway.tools.mcp.jsonlines import Lines, TooLong, parse

PATIENCE = 2.0
"""Seconds between closing a server's standard input, SIGTERM and SIGKILL."""

BACKLOG = 256
"""Messages waiting to be read at which the server's output is no longer read."""

STDERR_LINE = 64 * 1024
"""Bytes of one line on standard error that are looked at."""

INHERITED = frozenset(
    (
        *(
            "HOME",
            "LOGNAME",
            "PATH",
            "SHELL",
            "TERM",
            "USER",
            "LANG",
            "LANGUAGE",
            "TZ",
            "TMPDIR",
            "TEMP",
            "TMP",
        ),
        *("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("APPDATA", "LOCALAPPDATA", "COMSPEC", "PATHEXT", "PROGRAMFILES", "SYSTEMDRIVE", "SYSTEMROOT"),
        *("USERNAME", "USERPROFILE", "WINDIR", "HOMEDRIVE", "HOMEPATH", "PROCESSOR_ARCHITECTURE"),
    )
)
INHERITED_PREFIXES = ("LC_", "XDG_", "UV_", "PIP_", "NPM_CONFIG_", "npm_config_", "NVM_", "VOLTA_")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a server inherits: paths, locale and proxies, never Toolway's keys; `extra` comes on top."""
    ours = {k: v for k, v in os.environ.items() if k in INHERITED or k.startswith(INHERITED_PREFIXES)}
    return {**ours, **extra}


class Server(asyncio.SubprocessProtocol):
    """One running server: its process group, what it said, and whether it takes more."""

    def __init__(self, *, limit: int, on_stderr: Callable[[bytes], None]) -> None:
        self.exited = anyio.Event()
        self.returncode: int | None = None
        self._lines = Lines(limit)
        self._stderr = Lines(STDERR_LINE)
        self._on_stderr = on_stderr
        self._inbox: deque[SessionMessage] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._writable = asyncio.Event()
        self._writable.set()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        """The server wrote to standard output (1) or standard error (2)."""
        if fd == 2:
            for line in self._stderr.feed(cast(bytes, data)):
                self._on_stderr(line.head if isinstance(line, TooLong) else line)
            return
        for line in self._lines.feed(cast(bytes, data)):
            self._inbox.extend(map(SessionMessage, parse(line)))
        self._news.set()
        if len(self._inbox) > BACKLOG:
            self._pipe(1).pause_reading()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The server closed a pipe; without its standard output it has nothing more to say."""
        if fd == 1:
            self._end()

    def process_exited(self) -> None:
        """The process is gone: what it started goes too, and holds no pipe of ours open."""
        self.returncode = self._transport.get_returncode()
        self.exited.set()
        self._writable.set()
        watch.end_group(self.pid)
        # A process that left the group may keep the pipe: the rest of the output gets a moment, not more.
        asyncio.get_running_loop().call_later(0.5, self._end)

    def pause_writing(self) -> None:
        """The pipe to the server is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The pipe to the server has room."""
        self._writable.set()

    def _end(self) -> None:
        self._ended = True
        self._news.set()
        self._writable.set()

    def _pipe(self, fd: int) -> asyncio.ReadTransport:
        return cast(asyncio.ReadTransport, self._transport.get_pipe_transport(fd))

    # -- called by the streams

    async def receive(self) -> SessionMessage:
        """The next message.

        Raises:
            anyio.EndOfStream: There will be none.
        """
        while not self._inbox:
            if self._ended:
                raise anyio.EndOfStream
            self._news.clear()
            await self._news.wait()
        message = self._inbox.popleft()
        if len(self._inbox) == BACKLOG // 2 and not self._ended:
            self._pipe(1).resume_reading()
        return message

    async def send(self, message: SessionMessage) -> None:
        """Write one message; waits while the server reads nothing.

        Raises:
            anyio.ClosedResourceError: The server is gone.
        """
        await self._writable.wait()
        pipe = cast(asyncio.WriteTransport | None, self._transport.get_pipe_transport(0))
        if self._ended or self.exited.is_set() or pipe is None or pipe.is_closing():
            raise anyio.ClosedResourceError
        pipe.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

    async def stop(self) -> None:
        """End the process group: closed input, SIGTERM, SIGKILL, each with a moment to act on it."""
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with anyio.move_on_after(PATIENCE):
                await self.exited.wait()
                break
            watch.signal_group(self.pid, number)
        await self.exited.wait()
        self._transport.close()


class Reading(ObjectReceiveStream[SessionMessage]):
    """What the server says."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def receive(self) -> SessionMessage:
        """See `Server.receive`."""
        return await self._server.receive()

    async def aclose(self) -> None:
        """Nothing: the process owns its pipes."""


class Writing(ObjectSendStream[SessionMessage]):
    """What is said to the server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def send(self, item: SessionMessage, /) -> None:
        """See `Server.send`."""
        await self._server.send(item)

    async def aclose(self) -> None:
        """Nothing: the process owns its pipes."""


@asynccontextmanager
async def open_stdio(
    command: list[str],
    *,
    env: Mapping[str, str],
    cwd: str | None,
    limit: int,
    on_stderr: Callable[[bytes], None],
) -> AsyncIterator[Server]:
    """Run `command`, and end its whole process group when left. `limit`: the longest line in bytes.

    Raises:
        SourceError: The command cannot be started.
    """
    whole = environment(env)
    program, where = _resolve(command[0], whole, cwd)
    argv, fds = watch.watched([program, *command[1:]])
    try:
        # Shielded: a cancelled start would leave a process that nobody knows.
        with anyio.CancelScope(shield=True):
            _, server = await asyncio.get_running_loop().subprocess_exec(
                lambda: Server(limit=limit, on_stderr=on_stderr),
                *argv,
                env=whole,
                cwd=where,
                start_new_session=True,
                pass_fds=fds,
            )
    except OSError as error:
        raise SourceError(f"{command[0]!r} cannot be started: {error}", stage="start") from None
    try:
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


def _resolve(command: str, env: Mapping[str, str], cwd: str | None) -> tuple[str, Path | None]:
    where = Path(cwd).expanduser() if cwd else None
    if where is not None and not where.is_dir():
        raise SourceError(f"the working directory {cwd!r} does not exist", stage="start")
    command = str(Path(command).expanduser())
    program = shutil.which(command, path=env.get("PATH")) or shutil.which(str((where or Path()) / command))
    if program is None:
        raise SourceError(
            f"the command {command!r} was not found: is it installed, and in PATH?", stage="start"
        )
    return program, where
