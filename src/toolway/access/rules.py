"""Rules: the first one that fits a call decides whether it runs, is denied or waits for a person."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cached_property
from weakref import WeakKeyDictionary

from toolway.schema.keywords import members_of, names_in
from toolway.settings.access import Rights
from toolway.settings.rules import Effect, RuleConfig, compile_arguments
from toolway.settings.settings import Settings
from toolway.types import JSON, Choice, Tool

WORST: Mapping[str, bool] = {
    "readOnlyHint": False,
    "destructiveHint": True,
    "idempotentHint": False,
    "openWorldHint": True,
}
"""What MCP says of a tool without annotations; what is held of each whose server is not trusted."""


def hints_of(tool: Tool) -> Mapping[str, bool]:
    """MCP's hints about a tool, with the defaults of the protocol; what only reads destroys nothing."""
    hints = {name: value for name, value in tool.annotations.items() if isinstance(value, bool)}
    harmless = {"destructiveHint": False} if hints.get("readOnlyHint") else {}
    return {**WORST, **harmless, **hints}


@dataclass(frozen=True, kw_only=True)
class CallOrigin:
    """Where a call comes from: the names of its key and group (empty without), the model, the request's dialect."""

    key: str = ""
    group: str = ""
    model: str = ""
    dialect: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a call, and the rule that says so; `rule` is empty when none did."""

    effect: Effect = "allow"
    rule: str = ""
    reason: str = ""


ALLOWED = Decision()


class Rule:
    """One rule, compiled. `number` counts from 1."""

    def __init__(self, config: RuleConfig, number: int, servers: Collection[str]) -> None:
        self.config = config
        self.label = config.name or f"rule {number}"
        self.decision = Decision(effect=config.effect, rule=self.label, reason=config.reason)
        self._tools = _Patterns(map(plain, config.tools))
        self._servers = _Patterns(config.servers)
        self._keys, self._groups = _Patterns(config.keys), _Patterns(config.groups)
        self._models = _Patterns(config.models)
        self._dialects = frozenset(config.dialects)
        # A server that a request brings along may call itself what it likes.
        self._trusted = frozenset(config.trust).intersection(servers)
        self._arguments = None if config.arguments is None else compile_arguments(config.arguments)

    def fits_tool(self, name: str, tool: Tool) -> bool:
        """Whether it is about this tool, which models see as `name`."""
        return not self._unfit_tool(name, tool)

    def fits_server(self, label: str) -> bool:
        """Whether it may be about tools of the server with this label."""
        return self._servers.take(label)

    def _unfit_tool(self, name: str, tool: Tool) -> str:
        """The condition that the tool does not fit; empty when it fits all."""
        names = {plain(name), plain(tool.name), plain(f"{tool.server}.{tool.name}")}
        if not any(map(self._tools.take, names)):
            return "tools"
        if not self.fits_server(tool.server):
            return "servers"
        hints = hints_of(tool) if tool.server in self._trusted else WORST
        wrong = (hint for hint, wanted in self.config.annotations.items() if hints[hint] is not wanted)
        return next((f"annotations.{hint}" for hint in wrong), "")

    def fits_origin(self, origin: CallOrigin) -> bool:
        """Whether it is about calls that come from there."""
        return not self._unfit_origin(origin)

    def _unfit_origin(self, origin: CallOrigin) -> str:
        if not self._keys.take(origin.key):
            return "keys"
        if not self._groups.take(origin.group):
            return "groups"
        if not self._models.take(origin.model):
            return "models"
        return "dialects" if self._dialects and origin.dialect not in self._dialects else ""

    def fits_arguments(self, arguments: JSON) -> bool:
        """Whether it is about such arguments. Those that cannot be judged fit each rule but one that allows."""
        if self._arguments is None:
            return True
        try:
            return self._arguments.is_valid(arguments)
        except (ValueError, RecursionError):
            return self.config.effect != "allow"

    def why_not(self, name: str, tool: Tool, origin: CallOrigin, arguments: JSON) -> str:
        """The first condition that a call does not fit; empty when the rule hits."""
        unfit = self._unfit_tool(name, tool) or self._unfit_origin(origin)
        return unfit or ("" if self.fits_arguments(arguments) else "arguments")

    def covers(self, other: Rule) -> bool:
        """Whether each call that `other` fits is certain to fit this one, so that behind it it is never asked."""
        mine, its = self.config, other.config
        if mine.arguments is not None and mine.arguments != its.arguments:
            return False
        if mine.annotations and not (
            mine.annotations.items() <= its.annotations.items() and mine.trust == its.trust
        ):
            return False
        if mine.dialects and not (its.dialects and set(its.dialects) <= set(mine.dialects)):
            return False
        lists = (
            (mine.tools, its.tools),
            (mine.servers, its.servers),
            (mine.keys, its.keys),
            (mine.groups, its.groups),
            (mine.models, its.models),
        )
        return all(_cover(wide, narrow) for wide, narrow in lists)


class Rules:
    """The rules in force, in their order. `servers` are the labels of the configured servers."""

    def __init__(self, configs: Sequence[RuleConfig] = (), servers: Collection[str] = ()) -> None:
        self.rules = tuple(Rule(config, number, servers) for number, config in enumerate(configs, 1))
        self._of_tools: WeakKeyDictionary[Tool, tuple[str, tuple[Rule, ...]]] = WeakKeyDictionary()

    def decide(self, name: str, tool: Tool, origin: CallOrigin, arguments: JSON) -> Decision:
        """What becomes of a call of the tool that models see as `name`; what no rule fits is allowed."""
        for rule in self._about(name, tool):
            if rule.fits_origin(origin) and rule.fits_arguments(arguments):
                return rule.decision
        return ALLOWED

    def may_ask(self, name: str, tool: Tool) -> bool:
        """Whether a person may have to be asked about some call of this tool."""
        return any(rule.config.effect == "ask" for rule in self._about(name, tool))

    def _about(self, name: str, tool: Tool) -> tuple[Rule, ...]:
        known = self._of_tools.get(tool)
        if known is None or known[0] != name:
            known = (name, tuple(rule for rule in self.rules if rule.fits_tool(name, tool)))
            self._of_tools[tool] = known
        return known[1]

    def explain(
        self, name: str, tool: Tool, origin: CallOrigin, arguments: JSON
    ) -> Iterator[tuple[Rule, str]]:
        """Each rule up to the one that hits, with the condition that did not fit; empty for the one that hits."""
        for rule in self.rules:
            unfit = rule.why_not(name, tool, origin, arguments)
            yield rule, unfit
            if not unfit:
                return

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about rules that can never hit, or say something else than they seem to."""
        return tuple(sentence for number in range(len(self.rules)) for sentence in self._warnings_of(number))

    def _warnings_of(self, number: int) -> Iterator[str]:
        rule = self.rules[number]
        config, where = rule.config, f"{rule.config.where}: {rule.label}"
        if wider := next((earlier for earlier in self.rules[:number] if earlier.covers(rule)), None):
            yield f"{where} can never hit: all that it fits is decided by {wider.label} before it"
        if config.annotations and not config.trust:
            hits = all(WORST[hint] is wanted for hint, wanted in config.annotations.items())
            what = "every tool is taken to be so" if hits else "it can never hit"
            yield f"{where} believes no server's annotations, so that {what}; name those it may believe in trust"
        if config.trust and not config.annotations:
            yield f"{where} trusts annotations but asks for none"
        if config.effect == "allow" and isinstance(config.arguments, dict):
            loose = set(members_of(config.arguments)) - set(names_in(config.arguments.get("required")))
            if loose:
                names = ", ".join(sorted(loose))
                yield f"{where} allows calls without {names} too; name what must be there in arguments.required"

    def unmatched_names(
        self,
        tools: Mapping[str, Tool],
        servers: Collection[str],
        keys: Collection[str],
        groups: Collection[str],
        unknown: Collection[str] = (),
    ) -> Iterator[str]:
        """Sentences about what rules name and is not there: `tools` as models see them, the names of all others.

        What may be about a tool of servers whose tools are `unknown` is not told.
        """
        for rule in self.rules:
            config, where = rule.config, f"{rule.config.where}: {rule.label}"
            for name in config.trust:
                if name not in servers:
                    yield f"{where}: trust: there is no server {name!r}"
            named = (
                ("server", config.servers, servers),
                ("key", config.keys, keys),
                ("group", config.groups, groups),
            )
            for kind, patterns, names in named:
                for pattern in patterns:
                    if not any(fnmatchcase(name, pattern) for name in names):
                        yield f"{where}: {kind}s: {pattern!r} fits no {kind}"
            if not any(map(rule.fits_server, unknown)):
                yield from _unmatched_tools(rule, where, tools)


def _unmatched_tools(rule: Rule, where: str, tools: Mapping[str, Tool]) -> Iterator[str]:
    names = [
        plain(full)
        for name, tool in tools.items()
        for full in (name, tool.name, f"{tool.server}.{tool.name}")
    ]
    unfit = [p for p in rule.config.tools if not any(fnmatchcase(name, plain(p)) for name in names)]
    for pattern in unfit:
        yield f"{where}: tools: {pattern!r} fits no tool"
    about = [tool for name, tool in tools.items() if rule.fits_tool(name, tool)]
    if not about and not unfit:
        yield f"{where} can never hit: no tool fits its conditions"
    elif isinstance(rule.config.arguments, dict):
        known = {name for tool in about for name in members_of(tool.parameters)}
        for name in set(members_of(rule.config.arguments)) | set(
            names_in(rule.config.arguments.get("required"))
        ):
            if about and name not in known:
                yield f"{where}: arguments: no tool that it is about has an argument {name!r}"


def plain(name: str) -> str:
    """A name in which letters that look or count alike are one: no spelling of it gets past a rule."""
    return unicodedata.normalize("NFKC", name).casefold()


class _Patterns:
    """Patterns of which one must fit; none fit everything."""

    def __init__(self, patterns: Iterable[str]) -> None:
        whole = "|".join(map(translate, patterns))
        self._fits = re.compile(whole).match if whole else None

    def take(self, text: str) -> bool:
        """Whether one of the patterns fits."""
        return self._fits is None or self._fits(text) is not None


def _cover(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether what one of the `narrow` patterns fits is certain to fit one of the `wide` ones; none are all."""
    if not wide or "*" in wide:
        return True
    return bool(narrow) and all(
        pattern in wide or ("[" not in pattern and any(_covers_all(other, pattern) for other in wide))
        for pattern in narrow
    )


def _covers_all(wide: str, pattern: str) -> bool:
    """Whether a pattern fits all that another one fits, whose stars may stand for much and for nothing."""
    samples = (pattern.replace("*", star).replace("?", "\0") for star in ("", "\0\0\0"))
    return all(fnmatchcase(sample, wide) for sample in samples)


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
