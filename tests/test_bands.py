"""The house keeps its shape: a module imports only its own band and those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "toolway"
MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))

BANDS = [
    {"types", "errors"},
    {"jsonc", "variables", "server_config", "mcp_entry", "mcp_json", "endpoints", "profiles", "store_url", "config"}
    | {"allowlist", "declared"}
    | {"lax", "sse", "inflate", "refrain", "calls", "deltas", "envelope", "content", "overflow"}
    | {"schema", "arguments", "names", "textcalls", "repair", "compiler", "definitions", "inline", "patterns", "rules"}
    | {"items"},
    {"egress", "http_client", "http_connection", "http_fault", "upstream", "modelinfo", "backend", "catalog"}
    | {"sources", "stores"},
    {"offer", "turn", "loop", "governor", "mixed", "results", "replay", "selection"}
    | {"quarantine", "culprits", "spoken", "attempt", "history"},
    {"respond", "request", "wishes", "progress", "models", "runner"}
    | {"live", "observe", "auth", "protocol", "departure", "passthrough", "dialects"}
    | {"websocket", "websocket_protocol"},
    {"app", "reload", "serve", "cli", "demo", "doctor", "__main__"},
]  # fmt: skip
"""From the ground up. A module that is in no band has no place yet: put it where it belongs."""


def band_of(module: str) -> int:
    room = module.split("/", maxsplit=1)[0]
    if room == "__init__":
        return -1
    found = [number for number, band in enumerate(BANDS) if room in band]
    assert found, f"{module} has no place in the house"
    return found[0]


def imports_of(module: str) -> set[str]:
    tree = ast.parse((SOURCE / f"{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolway":
            inner = (node.module or "").split(".")[1:]
            found |= {"/".join([*inner, alias.name]) if not inner or is_package(inner) else "/".join(inner)
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.Import):
            found |= {
                "/".join(name.name.split(".")[1:]) for name in node.names if name.name.startswith("toolway.")
            }
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} has a relative import"
    return {name for name in found if name and name != "__version__"}


def is_package(parts: list[str]) -> bool:
    return (SOURCE.joinpath(*parts)).is_dir()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str):
    upward = {name for name in imports_of(module) if band_of(name) > band_of(module)}
    assert not upward


@pytest.mark.parametrize("package", ["dialects", "sources"])
def test_dialects_and_sources_do_not_know_each_other(package: str):
    for module in MODULES:
        rooms = module.split("/")
        if rooms[0] == package and len(rooms) > 1 and rooms[1] != "__init__":
            strangers = {
                name
                for name in imports_of(module)
                if name.split("/")[0] == package
                and len(name.split("/")) > 1
                and name.split("/")[1] != rooms[1]
            }
            assert not strangers, f"{module} imports {strangers}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_passes_400_lines(module: str):
    assert len((SOURCE / f"{module}.py").read_text().splitlines()) <= 400
