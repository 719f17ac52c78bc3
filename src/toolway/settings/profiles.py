"""Profiles, which are sets of tools by name, and aliases of models, as settings name them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import orjson

_PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

SearchMode = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The tools that match one of `patterns`: names as models see them, or `server.tool`, with `*` and `?`."""

    name: str
    patterns: tuple[str, ...]
    tool_search: SearchMode | None = None
    """Whether its tools are searched; None: as the setting says."""


def parse_profiles(value: Any) -> tuple[Profile, ...]:
    """Profiles from `{"name": ["pattern", ...]}`, as an object or as its JSON text.

    A profile that says more than its tools is an object: `{"tools": [...], "tool_search": "on"}`.
    Profiles that are already parsed stay. Raises ValueError that names the first mistake.
    """
    if isinstance(value, tuple) and all(isinstance(entry, Profile) for entry in value):
        return value
    value = _from_text(value)
    if not isinstance(value, Mapping):
        raise ValueError('write a JSON object like {"research": ["search.*", "fetch"]}')
    return tuple(_profile(name, patterns) for name, patterns in value.items())


def _from_text(value: Any) -> Any:
    """What JSON text says; anything else as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None


def split_model(model: Any, profiles: Iterable[Profile]) -> tuple[Any, Profile | None]:
    """`qwen3@research` -> `qwen3` and that profile; a name without the suffix of a known profile stays whole."""
    bare, suffix = profile_suffix(model)
    found = next((profile for profile in profiles if bare and profile.name == suffix), None)
    return (bare, found) if found else (model, None)


def profile_suffix(model: Any) -> tuple[str, str]:
    """`qwen3@research` -> `qwen3` and `research`, whether there is such a profile or not; empty without one."""
    bare, _, suffix = model.rpartition("@") if isinstance(model, str) else ("", "", "")
    return bare, suffix


@dataclass(frozen=True, kw_only=True)
class ModelAlias:
    """Another name of a model; `*` and `?` in it stand for any letters."""

    name: str
    model: str

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for many names."""
        return any(sign in self.name for sign in "*?[")


def parse_aliases(value: Any) -> tuple[ModelAlias, ...]:
    """Aliases from `{"claude-*": "qwen3-8b"}`, as an object or as its JSON text. Raises ValueError."""
    if isinstance(value, tuple) and all(isinstance(entry, ModelAlias) for entry in value):
        return value
    value = _from_text(value)
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) and text for text in (*value.keys(), *value.values())
    ):
        raise ValueError('write a JSON object like {"claude-*": "qwen3-8b"}')
    return tuple(ModelAlias(name=name, model=model) for name, model in value.items())


def resolve_alias(model: Any, aliases: Iterable[ModelAlias]) -> Any:
    """The model that a name stands for; a name that is no alias stands for itself."""
    if not isinstance(model, str):
        return model
    return next((alias.model for alias in aliases if fnmatchcase(model, alias.name)), model)


def _profile(name: Any, patterns: Any) -> Profile:
    if not isinstance(name, str) or not _PROFILE_NAME.fullmatch(name):
        raise ValueError(f"{str(name)[:100]!r} is no name for a profile; use letters, digits, _ and -")
    tool_search = None
    if isinstance(patterns, Mapping):
        if unknown := patterns.keys() - {"tools", "tool_search"}:
            raise ValueError(f"the profile {name} has no member {min(map(str, unknown))[:50]!r}")
        tool_search, patterns = patterns.get("tool_search"), patterns.get("tools", ["*"])
        if tool_search not in (None, "auto", "on", "off"):
            raise ValueError(f"tool_search of the profile {name} must be auto, on or off")
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) and p for p in patterns):
        raise ValueError(f"the profile {name} must be a list of patterns like search.*")
    return Profile(name=name, patterns=tuple(patterns), tool_search=tool_search)
