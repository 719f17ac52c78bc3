"""One field of a JSON object, when it is of the kind that it must be.

All of these give None, or an empty list or object, for a field that is null or missing, and raise InvalidRequest with
the field's name for one of another kind; `where` is what stands before the name, as in "tools[0].".
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from toolway.errors import InvalidRequest
from toolway.types import JSON


def flag(body: JSON, name: str, where: str = "") -> bool | None:
    """True or false."""
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise wrong(where + name, "true or false")


def whole(body: JSON, name: str, *, least: int = 1) -> int | None:
    """A whole number that is not too small."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise wrong(name, f"a whole number from {least} on")
    return value


def number(body: JSON, name: str) -> float | None:
    """Any finite number."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise wrong(name, "a number")
    return value


def text(body: JSON, name: str, where: str = "") -> str | None:
    """A text."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong(where + name, "a text")


def required(body: JSON, name: str, where: str = "", *, may_be_empty: bool = False) -> str:
    """A text that must be there. A missing one is told as OpenAI tells it."""
    value = text(body, name, where)
    if value is None or not (value or may_be_empty):
        raise missing(where + name)
    return value


def one_of(body: JSON, name: str, known: Collection[str], where: str = "") -> str | None:
    """One of a few texts."""
    value = text(body, name, where)
    if value is None or value in known:
        return value
    raise InvalidRequest(
        f"Invalid value: {value[:50]!r}. Supported values are: {', '.join(sorted(known))}.",
        param=where + name,
        code="invalid_value",
    )


def texts(body: JSON, name: str, where: str = "") -> list[str]:
    """A list of texts."""
    value: Any = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise wrong(where + name, "a list of texts")
    return value


def member(body: JSON, name: str, where: str = "") -> JSON:
    """An object."""
    value: Any = body.get(name)
    if value is None or isinstance(value, dict):
        return value or {}
    raise wrong(where + name, "an object")


def named_texts(body: JSON, name: str, where: str = "") -> dict[str, str]:
    """An object of texts."""
    value = member(body, name, where)
    if not all(isinstance(entry, str) for entry in value.values()):
        raise wrong(where + name, "an object of texts")
    return value


def wrong(name: str, kind: str) -> InvalidRequest:
    """The error for a field that is not of its kind."""
    return InvalidRequest(f"{name} must be {kind}.", param=name, code="invalid_type")


def missing(name: str) -> InvalidRequest:
    """The error for a field that must be there."""
    return InvalidRequest(
        f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
    )
