"""The steps of `toolway demo`, from the weights to the answers; everything that it prints is what happened."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from toolway.demo.child import DemoError
from toolway.demo.model import ALIAS, SMOLLM2, cache_folder, ensure_weights
from toolway.demo.programs import Programs, choose_port, write_config
from toolway.demo.screen import Screen
from toolway.settings.settings import ServerSettings

EXTRA = ("openai", "xllamacpp")
"""The modules of `toolway[demo]`."""

WATCH_SECONDS = 1.0
INTERRUPTED = 130

_STAMP = re.compile(r"^[\d-]+ [\d:]+ (info|debug) +\w+: ")
_OF_SERVER = re.compile(r"^[\d-]+ [\d:]+ \w+ +server\.(\w+): ")
"""What stands in Toolway's log before a line that an MCP server wrote to its standard error."""
_CALL = re.compile(r"\bcall \S+ of ")
_SERVED = {"weather": re.compile(" -> 200 "), "calculator": re.compile("^tools/call add .* -> ")}
"""The tool servers, and what their lines hold when a call was answered."""


def run_demo(*, port: int | None = None, stay: bool | None = None) -> int:
    """Run the demo and return the exit status: 0 when everything worked.

    `port` is Toolway's (None: its usual one, or a free one if that is taken); `stay` keeps everything up
    afterwards until Ctrl-C (None: on a terminal).
    """
    if missing := [module for module in EXTRA if find_spec(module) is None]:
        sys.stderr.write(
            f"The demo needs {' and '.join(missing)}. Install: pip install 'toolway[demo]' (in a clone: make demo)\n"
        )
        return 1
    if stay is None:
        stay = sys.stdin.isatty() and sys.stdout.isatty()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    path = cache_folder() / "demo.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("w", encoding="utf-8")
    except OSError as error:
        sys.stderr.write(
            f"{path} cannot be written: {error.strerror}. Set TOOLWAY_CACHE to another folder.\n"
        )
        return 1
    with log:
        return _run(Screen(log), port, stay, path)


def _run(screen: Screen, port: int | None, stay: bool, log: Path) -> int:
    try:
        with ExitStack() as stack:
            demo = Walkthrough(screen, stack)
            try:
                demo.run(port, stay, log)
            finally:
                # A second Ctrl-C must not keep the programs from being ended.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        screen.answer_ends()
        screen.say("\nStopped. Everything that was started has ended.")
        return 0 if demo.worked else INTERRUPTED
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        screen.answer_ends()
        screen.say(f"✗ {error}", style="bold red")
        screen.say(f"The log of all programs: {log}")
        return 1
    return 0


class Walkthrough:
    """One run of the demo; `stack` ends the programs."""

    def __init__(self, screen: Screen, stack: ExitStack) -> None:
        self._screen = screen
        self._programs = Programs(stack, self.on_line)
        self._served = {name: threading.Event() for name in _SERVED}
        self.worked = False

    def run(self, port: int | None, stay: bool, log: Path) -> None:
        """Every step in its order; raises at the first that fails."""
        self._screen.say("Toolway between a model and its tools, all of it real and on this machine.", "bold")
        self._screen.say(
            "The model is tiny, 135 million parameters: it shows that everything works, no more.\n"
        )
        base_url = self._start(port)
        self._tools()
        self._talk(base_url)
        self.worked = True
        if stay:
            self._stay(base_url, log)
        else:
            self._screen.say(f"\nEverything worked. The log of all programs: {log}", "bold")

    def _start(self, port: int | None) -> str:
        """Start every program; the base URL for clients."""
        weather = self._programs.start_weather()
        with self._screen.step("Weights", f"checks or fetches {SMOLLM2.name}") as step:
            weights = ensure_weights(on_progress=step.bytes_there)
            step.outcome = f"{SMOLLM2.name}, {SMOLLM2.size / 1e6:.0f} MB, in {weights.parent}"
        with self._screen.step("Model", "llama.cpp loads the weights") as step:
            model_url = self._programs.start_model(weights).wait_ready()
            step.outcome = f"llama.cpp with {ALIAS} at {model_url}"
        with self._screen.step("Service", "starts") as step:
            weather_url = weather.wait_ready()
            step.outcome = f"weather at {weather_url}, described by {weather_url}/openapi.json"
        return self._start_toolway(port, model_url, weather_url)

    def _start_toolway(self, port: int | None, model_url: str, weather_url: str) -> str:
        chosen = choose_port(port)
        if port is None and chosen != ServerSettings.port:
            self._screen.say(
                f"  Port {ServerSettings.port} is taken, perhaps by another Toolway: {chosen} instead."
            )
        config = write_config(chosen, weather_url)
        self._screen.labelled("  mcp.json", "an MCP server that Toolway starts, and the service:")
        for line in config.read_text(encoding="utf-8").splitlines():
            self._screen.labelled("", line, text_style="dim")
        with self._screen.step(
            "Toolway", "starts the MCP server and reads the service's openapi.json"
        ) as step:
            base_url = self._programs.start_toolway(chosen, model_url, config)
            step.outcome = f"at {base_url}, started as"
        for line in (f"OPENAI_BASE_URL={model_url} \\", f"toolway serve --port {chosen} --config {config}"):
            self._screen.labelled("", line, text_style="dim")
        return base_url

    def _tools(self) -> None:
        with self._screen.step("Tools", "toolway tools") as step:
            tools = self._programs.list_tools()
            step.outcome = f"{len(tools)} found"
        for tool in tools:
            self._screen.labelled("", f"{tool['name']:<13} of {tool['server']}: {tool['description']}")
        if not tools:
            raise DemoError("Toolway found no tools at its servers.")

    def _talk(self, base_url: str) -> None:
        """Ask all questions. A program that ended meanwhile is a better reason than the client's error."""
        # It takes a second to import; the programs have been starting since.
        from toolway.demo.conversation import QUESTIONS, Conversation, open_client  # noqa: PLC0415

        with open_client(base_url) as client:
            conversation = Conversation(client, self._screen, self._served)
            try:
                for question in QUESTIONS:
                    conversation.ask(question)
            except DemoError:
                self._programs.check()
                raise

    def _console(self, base_url: str) -> None:
        """Where to see the conversation that was just had."""
        page = self._programs.conversation_page(base_url.removesuffix("/v1"))
        self._screen.say(f"\nSee what happened, message by message: {page}", "bold")
        if sys.stdout.isatty() and _has_desktop():
            webbrowser.open(page)

    def _stay(self, base_url: str, log: Path) -> None:
        """Stay up until Ctrl-C; a program that ends by itself ends the demo with its `DemoError`."""
        self._console(base_url)
        self._screen.say("\nEverything worked, and stays up until Ctrl-C. Talk to it:\n", "bold")
        self._screen.say(_HOW_TO_TALK.format(base_url=base_url, model=ALIAS) + "\n")
        self._screen.labelled(
            "Servers", f"{self._programs.config}; Toolway reads it again when you change it"
        )
        self._screen.labelled("Log", f"{log}\n")
        while True:
            self._programs.check()
            time.sleep(WATCH_SECONDS)

    def on_line(self, source: str, line: str) -> None:
        """A program printed a line: show it, and remember that a tool server was called and could answer."""
        shown = _STAMP.sub("", line)
        if source == "toolway" and (found := _OF_SERVER.match(line)):
            source, shown = found[1], line[found.end() :]
        served = _SERVED.get(source)
        if served and served.search(shown):
            self._served[source].set()
        matters = served is not None or bool(_CALL.search(line))
        self._screen.program_said(source, line, shown=shown, matters=matters)


def _has_desktop() -> bool:
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


_HOW_TO_TALK = """\
curl         curl {base_url}/chat/completions -H 'Content-Type: application/json' \\
               -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the weather in Tokyo?"}}]}}'

Python       from openai import OpenAI
             client = OpenAI(base_url="{base_url}", api_key="none")
             question = {{"role": "user", "content": "What is the weather in Oslo?"}}
             print(client.chat.completions.create(model="{model}", messages=[question]).choices[0].message.content)

Open WebUI   Admin Settings > Connections > OpenAI API: {base_url}, any key"""
