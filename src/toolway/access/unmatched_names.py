"""Finds what the configuration names and is not there: a misspelt pattern that excludes excludes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from toolway.access.rules import Rules
from toolway.settings.access import Rights
from toolway.settings.settings import Settings
from toolway.types import Choice, Tool


def unmatched_names(
    settings: Settings, rules: Rules, tools: Mapping[str, Tool], unknown: Collection[str]
) -> list[str]:
    """Sentences about what rules, keys, groups and profiles name, while these are the tools, as models see them.

    A pattern that fits none of them may mean one of a server whose tools are `unknown`: then nothing is said of it.
    """
    of_rules = unmatched_in_rules(settings, rules, tools, unknown)
    if unknown:
        return of_rules
    return [*of_rules, *_of_rights(settings, tools), *_of_profiles(settings, tools)]


def unmatched_in_rules(
    settings: Settings, rules: Rules, tools: Mapping[str, Tool], unknown: Collection[str]
) -> list[str]:
    """Sentences about what the rules name and is not there; keys may be those of people with a JWT."""
    access = settings.access
    has_jwt = access.jwt is not None
    keys = [key.name for key in access.keys]
    groups = [group.name for group in access.groups]
    found = rules.unmatched_names(tools, settings.labels, keys, groups, unknown)
    return [sentence for sentence in found if not (has_jwt and ": keys: " in sentence)]


def unmatched_patterns(rights: Rights, tools: Mapping[str, Tool]) -> list[str]:
    """The patterns of a key or group that no tool fits now."""
    return _unmatched([*(rights.tools or ()), *rights.exclude], tools)


def _of_rights(settings: Settings, tools: Mapping[str, Tool]) -> Iterator[str]:
    for kind, owners in (("group", settings.access.groups), ("key", settings.access.keys)):
        for one in owners:
            for pattern in unmatched_patterns(one, tools):
                yield f"{one.where}: the {kind} {one.name}: {pattern!r} fits no tool"


def _of_profiles(settings: Settings, tools: Mapping[str, Tool]) -> Iterator[str]:
    for profile in settings.tools.profiles:
        for pattern in _unmatched(profile.patterns, tools):
            yield f"the profile {profile.name}: {pattern!r} fits no tool"


def _unmatched(patterns: Sequence[str], tools: Mapping[str, Tool]) -> list[str]:
    return [p for p in patterns if not any(Choice(patterns=(p,)).takes(*tool) for tool in tools.items())]
