"""The main figures of each run by commit, one JSON object a line, so that growth from version to version is seen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from bench.processes import HERE

FILE = HERE / "history.jsonl"
SHOWN = 8
FIGURES = {
    "whole-16": "whole, 16",
    "whole-1": "whole, 1",
    "stream-16": "events, 16",
    "response-16": "Responses, 16",
    "message-16": "Messages, 16",
    "tool-streamed-16": "tool round, 16",
}


def remember(result: dict[str, Any], file: Path = FILE) -> None:
    """Add a run in which all was measured. What is not committed is told by a + behind the commit."""
    scenarios = result["scenarios"]
    if not all("toolway" in scenarios.get(key, {}) for key in FIGURES):
        return
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "src") else "")
    row = {"date": result["run"]["date"], "commit": commit, "cpu": result["machine"]["cpu"]}
    for key in FIGURES:
        ours = scenarios[key]["toolway"]
        row[key] = {"cpu_us": round(ours["cpu_us"], 1), "of_envoy": _rounded(ours.get("of_envoy"))}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def rows(file: Path = FILE) -> list[dict[str, Any]]:
    """The last runs, the newest last."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][-SHOWN:]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _git(*words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return answer.stdout.strip()
