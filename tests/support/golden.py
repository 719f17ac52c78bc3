"""Files of cases, each with what comes out of it: JSON that people read, as long as it fits on a line on one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolway.types import JSON

WIDTH = 160

Work = Callable[[JSON], JSON]
"""What comes out of a case: the members to add to it."""


def cases(file: Path) -> list[JSON]:
    """The cases of a file."""
    read: list[JSON] = json.loads(file.read_text())
    return read


def regenerate(file: Path, inputs: frozenset[str], work: Work) -> None:
    """Write what comes out now into the file: to be read by a person before it is committed."""
    kept = [{key: value for key, value in case.items() if key in inputs} for case in cases(file)]
    file.write_text(written([{**case, **work(case)} for case in kept]) + "\n")


def written(value: Any, indent: int = 0) -> str:
    """JSON text, broken only where a line would be too long."""
    line = json.dumps(value, ensure_ascii=_is_odd(value))
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    inner = " " * (indent + 2)
    if isinstance(value, list):
        members = [written(member, indent + 2) for member in value]
    else:
        members = [f"{json.dumps(key)}: {written(member, indent + 2)}" for key, member in value.items()]
    left, right = "[]" if isinstance(value, list) else "{}"
    return f"{left}\n{inner}" + f",\n{inner}".join(members) + f"\n{' ' * indent}{right}"


def _is_odd(value: Any) -> bool:
    """Whether there is half a character in it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False
