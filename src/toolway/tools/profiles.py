"""Profiles: named choices of tools, as far as a caller may know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from toolway.errors import NotFound
from toolway.settings.profiles import Profile
from toolway.types import Choice, Selection, Tool, is_selected


def narrowed(
    selection: Selection, name: str, profiles: Iterable[Profile], tools: Mapping[str, Tool]
) -> Selection:
    """What a profile leaves of a selection; `tools` are all that there are. Raises NotFound for no profile of ours."""
    for profile in profiles:
        if profile.name == name:
            return [*selection, [Choice(patterns=profile.patterns)]]
    raise no_such_profile(name, profiles, selection, tools)


def no_such_profile(
    name: str,
    profiles: Iterable[Profile],
    selection: Selection,
    tools: Mapping[str, Tool],
    *,
    param: str | None = None,
) -> NotFound:
    """The error for a profile that is not there; it names those that have tools for this caller."""
    known = [profile.name for profile in profiles if not selection or _has_tools(profile, selection, tools)]
    names = ", ".join(sorted(known)) or "none"
    message = f"There is no profile {name[:100]!r} here; those that are: {names}."
    return NotFound(message, param=param, code="profile_not_found")


def _has_tools(profile: Profile, selection: Selection, tools: Mapping[str, Tool]) -> bool:
    both = [*selection, [Choice(patterns=profile.patterns)]]
    return any(is_selected(name, tool, both) for name, tool in tools.items())
