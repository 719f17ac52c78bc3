"""The programs of the demo: the model server, a tool service, and Toolway as anybody would start it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from toolway.demo.child import Child, DemoError, OnLine, running_child
from toolway.demo.model import cache_folder, running_model
from toolway.demo.weather import running_weather
from toolway.settings.settings import ServerSettings
from toolway.types import JSON

HOST = "127.0.0.1"
READY_SECONDS = 60.0
POLL_SECONDS = 0.05

_OURS = re.compile(r"TOOLWAY_.*|OPENAI_.*|MCP_.*|DEBUG_OUTPUT")
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy set in the environment is not for this machine's own addresses."""


class Programs:
    """What runs, until `stack` is closed. `on_line` gets each line that a program prints: who, what."""

    def __init__(self, stack: ExitStack, on_line: Callable[[str, str], None]) -> None:
        self._stack = stack
        self._on_line = on_line
        self._children: list[Child] = []
        self._env: dict[str, str] = {}
        self.config = Path()
        """The `mcp.json` that Toolway was started with."""

    def check(self) -> None:
        """Raise the `DemoError` of a program that has ended."""
        for child in self._children:
            child.check()

    def start_weather(self) -> Child:
        """Its `wait_ready()` gives its base URL."""
        return self._keep(running_weather(on_line=self._line_handler("weather")))

    def start_model(self, weights: Path) -> Child:
        """Its `wait_ready()` gives the base URL for clients."""
        return self._keep(running_model(weights, on_line=self._line_handler("model")))

    def start_toolway(self, port: int, model_url: str, config: Path) -> str:
        """`toolway serve` with the servers of `config`, ready with all of them; its base URL.

        The folder of `config` goes when the demo ends: the addresses in the file are good for this one alone.
        """
        self._stack.callback(shutil.rmtree, config.parent, ignore_errors=True)
        self._env, self.config = _environment(model_url), config
        serve = ("serve", "--host", HOST, "--port", str(port), "--config", str(config))
        child = self._keep(
            running_child(
                "Toolway",
                "toolway",
                *serve,
                on_line=self._line_handler("toolway"),
                env=self._env,
                cwd=cache_folder(),
            )
        )
        _wait_until_ready(child, f"http://{HOST}:{port}/readyz")
        return f"http://{HOST}:{port}/v1"

    def list_tools(self) -> list[JSON]:
        """What `toolway tools --json` prints, with the same settings."""
        command = [sys.executable, "-m", "toolway", "tools", "--json", "--config", str(self.config)]
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

    def conversation_page(self, url: str) -> str:
        """The page of the console that shows the newest conversation of the Toolway at `url`."""
        try:
            with _direct.open(f"{url}/console/api/conversations?limit=1", timeout=READY_SECONDS) as answer:
                newest = json.load(answer)["conversations"][0]["id"]
        except (OSError, ValueError, LookupError):
            return f"{url}/#/conversations"
        return f"{url}/#/conversations/{newest}"

    def _keep(self, running: AbstractContextManager[Child]) -> Child:
        child = self._stack.enter_context(running)
        self._children.append(child)
        return child

    def _line_handler(self, source: str) -> OnLine:
        return lambda line: self._on_line(source, line)


def choose_port(wanted: int | None) -> int:
    """`wanted` if it is free; without a wish Toolway's usual port, or a free one when that is taken."""
    port = ServerSettings.port if wanted is None else wanted
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


def write_config(port: int, weather_url: str) -> Path:
    """The `mcp.json` for Toolway at `port`: an MCP server that it starts itself, and an OpenAPI service.

    A folder for each port: another demo at the same time must not change the servers of this one.
    """
    calculator = {"command": sys.executable, "args": ["-m", "toolway.demo.calculator"]}
    weather = {"type": "openapi", "url": weather_url}
    entries = ",\n".join(
        f"    {json.dumps(name)}: {json.dumps(entry)}"
        for name, entry in {"calculator": calculator, "weather": weather}.items()
    )
    path = cache_folder() / f"demo-{port}" / "mcp.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{\n  "mcpServers": {{\n{entries}\n  }}\n}}\n', encoding="utf-8")
    return path


def _environment(model_url: str) -> dict[str, str]:
    """This process's environment with the demo's settings in place of the user's own."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.fullmatch(name)}
    return {**kept, "OPENAI_BASE_URL": model_url, "DEBUG_OUTPUT": "true"}


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
