"""Profiles: named choices of tools, which a client takes by its model's name, `qwen3@research`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The tools that match one of `patterns`: names as models see them, or `server.tool`, with `*` and `?`."""

    name: str
    patterns: tuple[str, ...]


def parse_profiles(value: Any) -> tuple[Profile, ...]:
    """Profiles from `{"name": ["pattern", ...]}`, as an object or as its JSON text.

    Profiles that are already parsed stay. Raises ValueError that names the first mistake.
    """
    if isinstance(value, tuple) and all(isinstance(entry, Profile) for entry in value):
        return value
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise ValueError('write a JSON object like {"research": ["search.*", "fetch"]}')
    return tuple(_profile(name, patterns) for name, patterns in value.items())


def split_model(model: Any, profiles: Iterable[Profile]) -> tuple[Any, Profile | None]:
    """`qwen3@research` -> `qwen3` and that profile; a name without the suffix of a known profile stays whole."""
    if not isinstance(model, str):
        return model, None
    bare, _, suffix = model.rpartition("@")
    found = next((profile for profile in profiles if bare and profile.name == suffix), None)
    return (bare, found) if found else (model, None)


def _profile(name: Any, patterns: Any) -> Profile:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{str(name)[:100]!r} is no name for a profile; use letters, digits, _ and -")
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f"the profile {name} must be a list of patterns like search.*")
    return Profile(name=name, patterns=tuple(patterns))
