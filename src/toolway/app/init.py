"""`toolway init`: a commented `mcp.json` out of what is found on this machine, after a yes for each part of it."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from toolway.settings.jsonc import MistakeError, parse
from toolway.types import JSON

MODEL_SERVERS: Mapping[str, str] = {
    "LM Studio": "http://127.0.0.1:1234/v1",
    "Ollama": "http://127.0.0.1:11434/v1",
    "llama.cpp": "http://127.0.0.1:8080/v1",
    "vLLM": "http://127.0.0.1:8000/v1",
}
"""Where model servers listen that nobody told otherwise."""
ANSWER_SECONDS = 1.5
ROOTS = ("mcpServers", "servers", "mcp_servers")

_direct = build_opener(ProxyHandler({}))
"""A proxy set in the environment is not for this machine's own addresses."""

_EXAMPLES = (
    "    // A program that speaks MCP on its standard input and output:",
    '    // "files": {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-filesystem", "${HOME}/x"]},',
    "    // A server at a URL; its key comes from the environment:",
    '    // "search": {"url": "https://mcp.example.com/mcp", "headers": {"X-Key": "${SEARCH_KEY}"}},',
    "    // A service with an openapi.json:",
    '    // "weather": {"type": "openapi", "url": "http://localhost:8011"},',
)

Confirm = Callable[[str], bool]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FoundServers:
    """The tool servers in the configuration of another program."""

    program: str
    path: Path
    entries: Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model server that answers on this machine."""

    program: str
    url: str
    models: Sequence[str]


def find_model_servers(places: Mapping[str, str] = MODEL_SERVERS) -> list[FoundModel]:
    """Those that answer, in the order of `places`."""
    with ThreadPoolExecutor(len(places)) as pool:
        found = pool.map(lambda place: _ask(*place), places.items())
        return [model for model in found if model]


def _ask(program: str, url: str) -> FoundModel | None:
    try:
        with _direct.open(f"{url}/models", timeout=ANSWER_SECONDS) as answer:
            listed = json.load(answer)["data"]
        return FoundModel(program=program, url=url, models=[str(model["id"]) for model in listed])
    except (URLError, OSError, ValueError, KeyError, TypeError):
        return None


def config_files(home: Path, platform: str = sys.platform) -> dict[str, list[Path]]:
    """Where other programs keep their MCP servers, on this kind of machine."""
    if platform == "darwin":
        data = home / "Library" / "Application Support"
    elif platform == "win32":
        data = Path(os.environ.get("APPDATA", home / "AppData" / "Roaming"))
    else:
        data = home / ".config"
    return {
        "Claude Desktop": [data / "Claude" / "claude_desktop_config.json"],
        "Claude Code": [home / ".claude.json"],
        "Cursor": [home / ".cursor" / "mcp.json"],
        "VS Code": [data / "Code" / "User" / "mcp.json"],
        "LM Studio": [home / ".lmstudio" / "mcp.json", home / ".cache" / "lm-studio" / "mcp.json"],
        "Codex": [home / ".codex" / "config.toml"],
    }


def find_servers(files: Mapping[str, Sequence[Path]]) -> list[FoundServers]:
    """The servers in these files; what cannot be read holds none."""
    found = []
    for program, paths in files.items():
        for path in paths:
            if entries := _entries(path):
                found.append(FoundServers(program=program, path=path, entries=entries))
                break
    return found


def _entries(path: Path) -> dict[str, JSON]:
    try:
        text = path.read_text(encoding="utf-8")
        root = tomllib.loads(text) if path.suffix == ".toml" else parse(text).plain()
    except (OSError, UnicodeDecodeError, MistakeError, tomllib.TOMLDecodeError, RecursionError):
        return {}
    holders = [root[key] for key in ROOTS if isinstance(root, dict) and isinstance(root.get(key), dict)]
    return {
        label: entry
        for holder in holders
        for label, entry in holder.items()
        if isinstance(entry, dict) and not entry.get("disabled")
    }


def config_text(chosen: Sequence[FoundServers]) -> str:
    """The text of an `mcp.json` with these servers; of two with one name the first is in it."""
    lines = [
        "// Tool servers of Toolway. It reads this file again whenever it changes; comments may stand anywhere.",
        "// What each key means: mcp.example.json, or the form of the console at http://127.0.0.1:8484/#/servers/add",
        "{",
        '  "mcpServers": {',
    ]
    taken: set[str] = set()
    for found in chosen:
        entries = {label: entry for label, entry in found.entries.items() if label not in taken}
        taken |= entries.keys()
        if entries:
            lines.append(f"    // from {found.program}: {found.path}")
        for label, entry in entries.items():
            written = json.dumps(entry, indent=2, ensure_ascii=False).replace("\n", "\n    ")
            lines.append(f"    {json.dumps(label, ensure_ascii=False)}: {written},")
    if not taken:
        lines += _EXAMPLES
    return "\n".join([*lines, "  }", "}", ""])


def initialise(
    folder: Path, *, confirm: Confirm, say: Say, models: Sequence[FoundModel], servers: Sequence[FoundServers]
) -> bool:
    """Write `mcp.json`, and the model server's address into `.env`, as far as `confirm` says yes; False: nothing.

    What is there already is not touched.
    """
    path, dotenv = folder / "mcp.json", folder / ".env"
    if path.exists():
        say(f"{path} is there already; nothing is changed.")
        return False
    chosen = []
    for found in servers:
        names = ", ".join(found.entries)
        if confirm(f"{found.program} has {len(found.entries)} tool servers ({names}). Take them over?"):
            chosen.append(found)
    path.write_text(config_text(chosen), encoding="utf-8")
    path.chmod(0o600)
    say(f"{path} is written, with {len({label for found in chosen for label in found.entries})} servers.")
    _choose_model(dotenv, models, confirm, say)
    say("Next: toolway serve, then open http://127.0.0.1:8484")
    return True


def _choose_model(dotenv: Path, models: Sequence[FoundModel], confirm: Confirm, say: Say) -> None:
    known = dotenv.read_text(encoding="utf-8") if dotenv.exists() else ""
    if url := os.environ.get("OPENAI_BASE_URL"):
        found = _ask("", url)
        answer = f"it answers, with {len(found.models)} models" if found else "`toolway doctor` tries it"
        say(f"OPENAI_BASE_URL is {url}, and stays so: {answer}.")
        return
    if not models:
        usual = ", ".join(MODEL_SERVERS)
        say(
            f"No model server answers on the usual ports ({usual}). Start one, or set OPENAI_BASE_URL to its address."
        )
        return
    for found in models:
        say(f"{found.program} answers at {found.url}, with {len(found.models)} models.")
    if "OPENAI_BASE_URL" in known:
        return
    for found in models:
        if confirm(f"Have Toolway stand before {found.program}?"):
            begin = known if not known or known.endswith("\n") else f"{known}\n"
            dotenv.write_text(f"{begin}OPENAI_BASE_URL={found.url}\n", encoding="utf-8")
            say(f"OPENAI_BASE_URL={found.url} is in {dotenv} now.")
            return
