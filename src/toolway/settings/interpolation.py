"""`${VAR}` in configuration values: expanded, and never to an empty string by accident."""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(text: str, env: Mapping[str, str]) -> str:
    """`${VAR}`, `${env:VAR}` and either with `:-default` replaced; `$${` is a plain `${`.

    Raises:
        ValueError: A variable is not set (or empty) and has no default; the message says what to do.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return "${"
        name, separator, default = match[1].removeprefix("env:").partition(":-")
        if name.startswith("input:"):
            wanted = name[6:].upper().replace("-", "_")
            raise ValueError(f"${{{name}}} is asked for by another program; write ${{{wanted}}} and set that")
        if not _NAME.fullmatch(name):
            raise ValueError(f"${{{match[1]}}} names no variable; for a plain ${{ write $${{")
        if found := env.get(name):
            return found
        if not separator:
            raise ValueError(f"the variable {name} is not set; set it, or write ${{{name}:-default}}")
        return default

    return _REFERENCE.sub(value, text)
