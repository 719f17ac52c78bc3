"""The stdio transport: a subprocess as a stream of messages, without a task of its own: the pipes call straight in.

It runs under the watch of the reaper (`reaper.py`), which ends its process group however Toolway ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import cast

import anyio
from anyio.abc import ObjectStream

from toolway.errors import SourceError
from toolway.settings.mcp_server import StdioServerConfig, with_home
from toolway.tools.mcp import reaper
from toolway.tools.mcp.messages import Lines, MessageLines, TooLong, parse
from toolway.tools.mcp.options import DEPTH, LogBudget, ServerLog, depth
from toolway.tools.mcp.sdk import SessionMessage

KILL_GRACE = 2.0
"""Seconds between closing a server's standard input, SIGTERM and SIGKILL."""

BACKLOG = 256
"""Messages waiting to be read at which the server's output is no longer read."""

NOISE_RATE, NOISE_BURST = 256 * 1024, 16 * 2**20
"""Bytes of standard error, and of output that is no message, that are read in a second, and at once."""

STDERR_LINE = 64 * 1024
"""Bytes of one line on standard error that are looked at."""

_REAPER = [sys.executable, "-I", "-S", str(Path(reaper.__file__).resolve())]

_INHERITED = """
HOME LOGNAME PATH SHELL TERM USER LANG LANGUAGE TZ TMPDIR TEMP TMP
NODE_EXTRA_CA_CERTS SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE
HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy
APPDATA LOCALAPPDATA COMSPEC PATHEXT PROGRAMFILES SYSTEMDRIVE SYSTEMROOT
USERNAME USERPROFILE WINDIR HOMEDRIVE HOMEPATH PROCESSOR_ARCHITECTURE
"""
INHERITED = frozenset(_INHERITED.split())
INHERITED_PREFIXES = ("LC_", "XDG_", "UV_", "PIP_", "NPM_CONFIG_", "npm_config_", "NVM_", "VOLTA_")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a server inherits: paths, locale and proxies, never Toolway's keys; `extra` comes on top."""
    ours = {k: v for k, v in os.environ.items() if k in INHERITED or k.startswith(INHERITED_PREFIXES)}
    return {**ours, **extra}


class StdioServer(asyncio.SubprocessProtocol, ObjectStream[SessionMessage]):
    """One running server as a stream of messages: its process group, what it said, and whether it takes more."""

    def __init__(self, *, limit: int, log: ServerLog) -> None:
        self.exited = anyio.Event()
        self.returncode: int | None = None
        self._lines = MessageLines(limit, log.add_stdout)
        self._stderr = Lines(STDERR_LINE)
        self._log = log
        self._noise = LogBudget(rate=NOISE_RATE, burst=NOISE_BURST)
        self._inbox: deque[bytes | TooLong] = deque()
        self._parsed: deque[SessionMessage] = deque()
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
                self._log.add_stderr(line.head if isinstance(line, TooLong) else line)
            self._slow_down(2, len(data))
            return
        self._inbox.extend(self._lines.feed(cast(bytes, data)))
        self._news.set()
        if len(self._inbox) > BACKLOG:
            self._pipe(1).pause_reading()
        else:
            self._slow_down(1, self._lines.noise)
        self._lines.noise = 0

    def _slow_down(self, fd: int, noise: int) -> None:
        """Do not read a pipe for a while on which more noise comes than anybody wants: it blocks its server alone."""
        pause = self._noise.overdraw(noise) if noise else 0.0
        if pause:
            self._pipe(fd).pause_reading()
            asyncio.get_running_loop().call_later(pause, self._resume, fd)

    def _resume(self, fd: int) -> None:
        pipe = self._transport.get_pipe_transport(fd)
        if pipe is not None and not pipe.is_closing() and (fd == 2 or len(self._inbox) <= BACKLOG):
            cast(asyncio.ReadTransport, pipe).resume_reading()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The server closed a pipe; without its standard output it has nothing more to say."""
        if fd == 1:
            self._inbox.extend(self._lines.feed(b"\n"))  # a last line may have no end
            self._end()

    def process_exited(self) -> None:
        """The process is gone: what it started goes too, and holds no pipe of ours open."""
        self.returncode = self._transport.get_returncode()
        self.exited.set()
        self._writable.set()
        _end_group(self.pid)
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

    # -- called by the session

    async def receive(self) -> SessionMessage:
        """The next message.

        Raises:
            anyio.EndOfStream: There will be none.
        """
        while not self._parsed:
            line = await self._line()
            messages = parse(line)
            if not messages:  # it only began like one, as the line of a log does: [INFO] ...
                self._log.add_stdout(line.head if isinstance(line, TooLong) else line)
            self._parsed.extend(map(SessionMessage, messages))
        return self._parsed.popleft()

    async def _line(self) -> bytes | TooLong:
        while not self._inbox:
            if self._ended:
                raise anyio.EndOfStream
            self._news.clear()
            await self._news.wait()
        line = self._inbox.popleft()
        if len(self._inbox) == BACKLOG // 2 and not self._ended:
            self._pipe(1).resume_reading()
        return line

    async def send(self, item: SessionMessage, /) -> None:
        """Write one message; waits while the server reads nothing.

        Raises:
            anyio.ClosedResourceError: The server is gone.
        """
        await self._writable.wait()
        pipe = cast(asyncio.WriteTransport | None, self._transport.get_pipe_transport(0))
        if self._ended or self.exited.is_set() or pipe is None or pipe.is_closing():
            raise anyio.ClosedResourceError
        pipe.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")

    async def send_eof(self) -> None:
        """Nothing: the process owns its pipes."""

    async def aclose(self) -> None:
        """Nothing: the process owns its pipes."""

    async def stop(self) -> None:
        """End the process group: closed input, SIGTERM, SIGKILL, each with a moment to act on it."""
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with anyio.move_on_after(KILL_GRACE):
                await self.exited.wait()
                break
            _signal_group(self.pid, number)
        await self.exited.wait()
        self._transport.close()


@asynccontextmanager
async def open_stdio(config: StdioServerConfig, *, limit: int, log: ServerLog) -> AsyncIterator[StdioServer]:
    """Run the server's command, and end its whole process group when left. `limit`: the longest line in bytes.

    Raises:
        SourceError: The command cannot be started.
    """
    whole = {**environment(config.env), DEPTH: str(depth() + 1)}
    program, where = _resolve(config.command, whole, config.cwd)
    argv, fds = _under_watch([program, *config.args])
    try:
        # Shielded: a cancelled start would leave a process that nobody knows.
        with anyio.CancelScope(shield=True):
            _, server = await asyncio.get_running_loop().subprocess_exec(
                lambda: StdioServer(limit=limit, log=log),
                *argv,
                env=whole,
                cwd=where,
                start_new_session=True,
                pass_fds=fds,
            )
    except OSError as error:
        raise SourceError(f"{config.command!r} cannot be started: {error}", stage="start") from None
    try:
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop()


def _resolve(command: str, env: Mapping[str, str], cwd: str | None) -> tuple[str, Path | None]:
    where = with_home(cwd) if cwd else None
    if where is not None and not where.is_dir():
        raise SourceError(f"the working directory {cwd!r} does not exist", stage="start")
    command = str(with_home(command))
    program = shutil.which(command, path=env.get("PATH")) or shutil.which(str((where or Path()) / command))
    if program is None:
        raise SourceError(
            f"the command {command!r} was not found: is it installed, and in PATH?", stage="start"
        )
    return program, where


@cache
def _reaper_pipe() -> int:
    """The write end of the reaper's pipe. It is never closed on purpose: its end is the signal."""
    theirs, ours = os.pipe()
    os.posix_spawn(
        sys.executable,
        [*_REAPER, "watch"],
        {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, theirs, 0),
            # Whoever reads Toolway's output to its end must not wait for the reaper.
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    os.close(theirs)
    return ours


def _under_watch(command: list[str]) -> tuple[list[str], tuple[int, ...]]:
    """The command line that runs `command` under the reaper's watch, and the descriptors it needs."""
    if os.name != "posix":
        return command, ()
    return [*_REAPER, "start", str(_reaper_pipe()), *command], (_reaper_pipe(),)


def _end_group(group: int) -> None:
    """Kill what is left of a process group, and take it off the reaper's list."""
    if os.name != "posix":
        return
    _signal_group(group, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.write(_reaper_pipe(), b"-%d\n" % group)


def _signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
