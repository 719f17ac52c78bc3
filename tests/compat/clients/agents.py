"""Coding agents as they come from npm, each in a home of its own: how one is set up, asked, and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.compat.clients.installed import PLACE, TIMEOUT
from tests.support.gate import Gate

MODEL = "mock"
BIN = PLACE / "node_modules" / ".bin"


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A program, and its own tool with which it runs `echo forty-two`.

    `files` are what it finds in its home, and `env` what in its environment, for Toolway at a URL. `command` is what is
    run for one question, perhaps `again` in the same conversation.
    """

    name: str
    own: tuple[str, str]
    files: Callable[[str], dict[str, Any]]
    command: Callable[[str, bool], Sequence[str]]
    env: Callable[[str], dict[str, str]] = lambda url: {}
    program: Path
    rewrites_questions: bool = False
    """Whether it changes earlier messages of its user's: Qwen Code has the date and its skills in them at times."""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def set_up(self, home: Path, url: str) -> None:
        """Write its files."""
        for name, content in self.files(url).items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def says(self, home: Path, url: str, question: str, *, again: bool) -> str:
        """What it prints."""
        with self._running(home, url, question, again=again) as process:
            output, errors = process.communicate(timeout=2 * TIMEOUT)
        assert process.returncode == 0, errors + output
        return output

    def interrupt(self, home: Path, url: str, question: str, gate: Gate) -> None:
        """Ask again, and end it as Ctrl-C does when somebody has come to the gate."""
        with self._running(home, url, question, again=True) as process:
            gate.wait_for_arrival()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=TIMEOUT)

    @contextmanager
    def _running(
        self, home: Path, url: str, question: str, *, again: bool
    ) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [str(self.program), *self.command(question, again)],
            cwd=home,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "CI": "1", **self.env(url)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def _shell(name: str, **more: Any) -> tuple[str, str]:
    # As clients write it again, who know their own calls as objects.
    return name, json.dumps({"command": "echo forty-two", **more}, separators=(",", ":"))


def _pi(url: str) -> dict[str, Any]:
    models = [{"id": MODEL, "reasoning": True, "contextWindow": 100_000}]
    provider = {
        "baseUrl": f"{url}/v1",
        "apiKey": "unused",
        "api": "openai-completions",
        "models": models,
    }
    return {".pi/agent/models.json": {"providers": {"toolway": provider}}}


def _opencode(package: str) -> Callable[[str], dict[str, Any]]:
    def files(url: str) -> dict[str, Any]:
        models = {MODEL: {"name": MODEL, "limit": {"context": 100_000, "output": 4_000}}}
        options = {"baseURL": f"{url}/v1", "apiKey": "unused"}
        provider = {"npm": package, "name": "Toolway", "options": options, "models": models}
        named = {"model": f"toolway/{MODEL}", "small_model": f"toolway/{MODEL}", "permission": "allow"}
        more = {"autoupdate": False, "share": "disabled", **named}
        return {"opencode.json": {"provider": {"toolway": provider}, **more}}

    return files


def _continue(url: str) -> dict[str, Any]:
    model = {
        "name": MODEL,
        "provider": "openai",
        "model": MODEL,
        "apiBase": f"{url}/v1",
        "apiKey": "unused",
        "capabilities": ["tool_use"],
        "roles": ["chat"],
    }
    # JSON is YAML.
    return {"config.yaml": {"name": "local", "version": "0.0.1", "schema": "v1", "models": [model]}}


def _qwen(api: str) -> Agent:
    def env(url: str) -> dict[str, str]:
        address = {"OPENAI_BASE_URL": f"{url}/v1", "ANTHROPIC_BASE_URL": url}
        return {**address, "OPENAI_API_KEY": "unused", "ANTHROPIC_API_KEY": "unused"}

    def command(question: str, again: bool) -> list[str]:
        return [*(["--continue"] if again else []), "--auth-type", api, "-m", MODEL, "--yolo", question]

    quiet = {"telemetry": {"enabled": False}, "privacy": {"usageStatisticsEnabled": False}}
    settings = {**quiet, "general": {"disableAutoUpdate": True}}
    return Agent(
        name=f"qwen {api}",
        program=BIN / "qwen",
        own=_shell("run_shell_command", is_background=False),
        files=lambda url: {".qwen/settings.json": settings},
        env=env,
        command=command,
        rewrites_questions=True,
    )


def _opencode_with(package: str) -> Agent:
    return Agent(
        name=f"opencode {package}",
        program=BIN / "opencode",
        own=_shell("bash", description="Counts"),
        files=_opencode(package),
        env=lambda url: {"OPENCODE_DISABLE_MODELS_FETCH": "1"},
        command=lambda question, again: ["run", *(["--continue"] if again else []), question],
    )


AGENTS = (
    Agent(
        name="pi",
        program=BIN / "pi",
        own=_shell("bash"),
        files=_pi,
        env=lambda url: {"PI_OFFLINE": "1"},
        command=lambda question, again: [
            *["-p", "--offline", *(["--continue"] if again else [])],
            *["--provider", "toolway", "--model", MODEL, question],
        ],
    ),
    *map(_qwen, ("openai", "openai-responses", "anthropic")),
    *map(_opencode_with, ("@ai-sdk/openai-compatible", "@ai-sdk/anthropic")),
    Agent(
        name="continue",
        program=BIN / "cn",
        own=_shell("Bash"),
        files=_continue,
        env=lambda url: {"CONTINUE_TELEMETRY_ENABLED": "0"},
        command=lambda question, again: [
            *["-p", "--auto", *(["--resume"] if again else [])],
            *["--config", "config.yaml", question],
        ],
    ),
    Agent(
        name="claude code",
        program=PLACE / "node_modules" / "@anthropic-ai" / "claude-code-linux-x64" / "claude",
        own=_shell("Bash", description="Counts"),
        files=lambda url: {},
        env=lambda url: {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "unused",
            "ANTHROPIC_MODEL": MODEL,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        command=lambda question, again: [
            *["-p", question, "--allowedTools", "Bash(echo:*)"],
            *(["--continue"] if again else []),
        ],
    ),
)
