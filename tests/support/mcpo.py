"""A real mcpo, in an environment of its own that is made once and used again, in front of a real MCP server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
import uv

from tests.support.servers import free_port

PACKAGES = ("mcpo==0.0.20", "mcp<2", "fastapi==0.128.0")
SERVER = Path(__file__).with_name("mcp_time_server.py")
TIMEOUT = 90.0
"""Seconds for a start; mcpo connects to its servers one after the other before it listens."""


@pytest.fixture(scope="session")
def mcpo_python() -> Path:
    """The interpreter of mcpo's environment, or a skip that says why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "toolway" / "tests" / f"mcpo-0.0.20-py{sys.version_info.major}.{sys.version_info.minor}"
    python = home / "bin" / "python"
    made = home / ".made"
    if made.exists() and python.exists():
        return python
    try:
        _run("venv", "--clear", "--python", sys.executable, str(home))
        _run("pip", "install", "--python", str(python), *PACKAGES)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"mcpo cannot be installed: {said.strip()[-300:]}")
    made.touch()
    return python


def _run(*arguments: str) -> None:
    command = [uv.find_uv_bin(), *arguments, "--quiet"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


@contextmanager
def mcpo(python: Path, *options: str, names: Sequence[str] = ()) -> Iterator[Callable[[], str]]:
    """Start mcpo in front of one server, or of one for each name.

    Yields a function that waits until it listens and returns its URL, so that several can start side by side.
    """
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(python.with_name("mcpo")), "--host", "127.0.0.1", "--port", str(port), *options]
    with TemporaryDirectory() as folder:
        if names:
            config = Path(folder, "config.json")
            entry = {"command": str(python), "args": [str(SERVER)]}
            config.write_text(json.dumps({"mcpServers": dict.fromkeys(names, entry)}))
            command += ["--config", str(config)]
        else:
            command += ["--", str(python), str(SERVER)]
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        with process:
            try:
                yield lambda: _listening(url, process, log)
            finally:
                process.kill()  # it takes seconds to end by itself


def _listening(url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            httpx2.get(f"{url}/openapi.json", timeout=TIMEOUT)
        except httpx2.ConnectError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
                raise RuntimeError(f"mcpo did not start: {log.read_text()[-2000:]}") from None
        else:
            return url
        assert time.monotonic() < deadline, log.read_text()[-2000:]
