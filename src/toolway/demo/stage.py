"""The programs of the demo: the model server, the tool servers, and Toolway as anybody would start it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from toolway.config import Settings
from toolway.demo import DemoError
from toolway.demo.child import Child, OnLine, running_child
from toolway.demo.model import running_model
from toolway.demo.services import SERVICES, running_service
from toolway.demo.weights import cache_folder
from toolway.types import JSON

HOST = "127.0.0.1"
READY_SECONDS = 60.0
POLL_SECONDS = 0.05

_OURS = re.compile(r"TOOLWAY_.*|OPENAI_.*|MCP_.*|DEBUG_OUTPUT")
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy set in the environment is not for this machine's own addresses."""


class Stage:
    """What runs, until `house` is closed. `heard` gets each line that a program prints: who, what."""

    def __init__(self, house: ExitStack, heard: Callable[[str, str], None]) -> None:
        self._house = house
        self._heard = heard
        self._children: list[Child] = []
        self._env: dict[str, str] = {}

    @property
    def settings(self) -> Mapping[str, str]:
        """The environment variables that Toolway was started with."""
        return {name: value for name, value in self._env.items() if _OURS.fullmatch(name)}

    def check(self) -> None:
        """Raise the `DemoError` of a program that has ended."""
        for child in self._children:
            child.check()

    def start_services(self) -> dict[str, Child]:
        """Each `wait_ready()` gives its base URL."""
        running = {name: running_service(name, on_line=self._ear(name)) for name in SERVICES}
        return {name: self._keep(service) for name, service in running.items()}

    def start_model(self, weights: Path) -> Child:
        """Its `wait_ready()` gives the base URL for clients."""
        return self._keep(running_model(weights, on_line=self._ear("model")))

    def start_toolway(self, port: int, model_url: str, services: Mapping[str, str]) -> str:
        """`toolway serve`, ready with all its servers; its base URL."""
        self._env = _environment(model_url, services)
        command = ("toolway", "serve", "--host", HOST, "--port", str(port))
        child = self._keep(
            running_child(
                "Toolway", *command, on_line=self._ear("toolway"), env=self._env, cwd=cache_folder()
            )
        )
        _wait_until_ready(child, f"http://{HOST}:{port}/readyz")
        return f"http://{HOST}:{port}/v1"

    def list_tools(self) -> list[JSON]:
        """What `toolway tools --json` prints, with the same settings."""
        command = [sys.executable, "-m", "toolway", "tools", "--json"]
        listing = subprocess.run(  # noqa: S603  (our own command)
            command,
            env=self._env,
            cwd=cache_folder(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=READY_SECONDS,
            check=False,
        )
        if listing.returncode != 0:
            raise DemoError(f"`toolway tools` failed: {listing.stderr.strip()}")
        tools: list[JSON] = json.loads(listing.stdout)
        return tools

    def _keep(self, running: AbstractContextManager[Child]) -> Child:
        child = self._house.enter_context(running)
        self._children.append(child)
        return child

    def _ear(self, source: str) -> OnLine:
        return lambda line: self._heard(source, line)


def choose_port(wanted: int | None) -> int:
    """`wanted` if it is free; without a wish Toolway's usual port, or a free one when that is taken."""
    port = Settings.port if wanted is None else wanted
    if port and _is_free(port):
        return port
    if wanted:
        raise DemoError(f"Port {wanted} is taken. Choose another with --port, or leave it out.")
    with socket.create_server((HOST, 0)) as free:
        return int(free.getsockname()[1])


def _is_free(port: int) -> bool:
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def _environment(model_url: str, services: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with the demo's settings in place of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    return {
        **kept,
        "OPENAI_BASE_URL": model_url,
        "MCP_SERVER_ENDPOINTS": ",".join(f"{name}={url}" for name, url in services.items()),
        "DEBUG_OUTPUT": "true",
    }


def _wait_until_ready(toolway: Child, url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        toolway.check()
        state = _state(url)
        if state.get("status") == "ready":
            return
        if time.monotonic() > deadline:
            raise DemoError(
                f"Toolway was not ready within {READY_SECONDS:.0f} s; {url} says: {state or 'nothing'}"
            )
        time.sleep(POLL_SECONDS)


def _state(url: str) -> JSON:
    """What /readyz says, whatever its status; nothing when nobody listens yet."""
    try:
        with _direct.open(url, timeout=READY_SECONDS) as answer:
            state: JSON = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            state = json.load(error)
    except OSError:
        return {}
    return state
