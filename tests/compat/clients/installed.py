"""The clients as `make clients` installs them, and how a test asks with one of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.app_server import AppServer
from tests.support.paths import ROOT

PLACE = Path(os.environ.get("TOOLWAY_CLIENTS", ROOT / ".clients"))
PYTHON = PLACE / "venv" / "bin" / "python"
SCRIPTS = Path(__file__).parent / "scripts"
TIMEOUT = 60
"""Seconds after which a client hangs; some import for several."""


def missing() -> str:
    """Why the clients cannot be run, or nothing."""
    if not (PLACE / ".installed").exists():
        return f"the clients are not installed in {PLACE}; make clients does it"
    return "" if shutil.which("node") else "node is not installed; half of the clients need it"


@dataclass(frozen=True, kw_only=True)
class Client:
    """A script in `scripts/`, and the manner in which it uses its client."""

    name: str
    script: str
    manner: str = ""
    apis: tuple[str, ...] = ("chat",)
    modes: tuple[str, ...] = ("streamed", "whole")
    tools: tuple[str, ...] = ("none", "own")
    another: bool = False
    """Whether it is one before it in another manner, which is tried only where manners differ."""


@dataclass(frozen=True, kw_only=True)
class ClientRun:
    """A client, the API that it speaks, and what it asks for: see `scripts/case.py`."""

    client: Client
    api: str
    mode: str
    tools: str

    def __str__(self) -> str:
        return f"{self.client.name} {self.api} {self.mode} {self.tools}".replace(" ", "-")

    def told(self, app: AppServer, *questions: str) -> dict[str, Any]:
        """Ask, and return what the user was told."""
        with self.begun(app, *questions) as answer:
            return answer.told()

    @contextmanager
    def begun(self, app: AppServer, *questions: str) -> Iterator[Answer]:
        """Ask, for as long as the `with` lasts."""
        declares = self.tools in ("never", "approve", "deny")
        tools = f"{self.tools}={app.settings.tools.endpoints[0].label}" if declares else self.tools
        script = SCRIPTS / self.client.script
        # Node looks for packages next to the script, but where it is started when it reads the script as input.
        program = ["node", "--input-type=module"] if script.suffix == ".mjs" else [str(PYTHON)]
        source = "-" if script.suffix == ".mjs" else str(script)
        told = [f"{app.url}/v1", self.api, self.mode, tools, self.client.manner, *questions]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with (
            script.open() as text,
            subprocess.Popen(
                [*program, source, *told], stdin=text, cwd=PLACE, env=_environment(), **pipes
            ) as process,
        ):
            try:
                yield Answer(process)
            finally:
                process.kill()


class Answer:
    """What a running client will tell."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def told(self) -> dict[str, Any]:
        """What it told its user in the end. Fails when it hangs or crashes."""
        output, errors = self._process.communicate(timeout=TIMEOUT)
        assert self._process.returncode == 0, errors
        told: dict[str, Any] = json.loads(output.splitlines()[-1])
        return told


def _environment() -> dict[str, str]:
    """Nothing of the developer's own settings: no keys, no proxies."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
