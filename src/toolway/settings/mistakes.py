"""Mistakes in a configuration file: where they stand and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from toolway.settings.jsonc import Node


class Report:
    """Collects sentences: `problems` forbid the file or the entry, `warnings` do not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def problem(self, line: int, key: str, message: str) -> None:
        """It cannot be used as it is."""
        self.problems.append(f"{self.path}:{line}: {key}: {message}.")

    def warning(self, line: int, key: str, message: str) -> None:
        """Something in it is not used."""
        self.warnings.append(f"{self.path}:{line}: {key}: {message}.")


_SENTENCES = {
    "bool_type": "{input!r} is neither true nor false",
    "float_type": "{input!r} is no number above 0",
    "finite_number": "{input!r} is no number above 0",
    "int_type": "{input!r} is no whole number above 0",
    "greater_than": "{input!r} is no number above 0",
    "string_pattern_mismatch": "it is empty",
    "tuple_type": "it must be a list of strings",
    "dict_type": "it must be an object with strings as values",
    "dataclass_type": "it must be an object with strings as values",
}
"""What is said for pydantic's errors. Those of our own validators are sentences already."""


def explain(
    label: str, node: Node, mistake: Mapping[str, Any], known: Iterable[str] = ()
) -> tuple[int, str, str]:
    """Line, key and sentence for an error of pydantic; `known` are the keys that an unknown one may have meant."""
    path: Sequence[str | int] = mistake["loc"]
    match mistake["type"]:
        case "missing":
            *path, name = path
            sentence = f'it needs a "{name}"'
        case "unexpected_keyword_argument":
            *path, name = path
            sentence = f"{name!r} is not known{did_you_mean(str(name), known)}"
        case "literal_error":
            legal = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
            sentence = f"{mistake['input']!r} is none of {', '.join(legal)}"
            sentence += did_you_mean(str(mistake["input"]), legal)
        case "value_error":
            sentence = str(mistake["ctx"]["error"])
        case kind:
            sentence = _SENTENCES.get(kind, mistake["msg"]).format(input=mistake["input"])
    key, line = label, node.line
    for step in path:
        if step == "[key]":  # what is wrong is the key itself
            break
        node = node.value[step]
        line = node.line
        key += f"[{step}]" if isinstance(step, int) else f".{step}"
    return line, key, sentence


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """ "; did you mean ...", when one of the known names is near."""
    close = get_close_matches(key, dict.fromkeys(known), 1, 0.7)
    return f"; did you mean {close[0]!r}" if close else ""
