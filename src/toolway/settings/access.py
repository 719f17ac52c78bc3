"""The pydantic models of who may do what: the keys, groups of keys and identity provider of `mcp.json`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, time
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.config import ConfigDict
from pydantic.json_schema import SkipJsonSchema

from toolway.dialects import DialectName
from toolway.settings.jsonc import Node
from toolway.settings.mcp_server import Address, Count, NonEmpty, Seconds
from toolway.settings.mistakes import Report, did_you_mean, explain
from toolway.settings.rules import RuleConfig, read_rules

Route = Literal[DialectName, "console", "passthrough"]
"""A family of routes: a dialect, the console, or `passthrough`, all that goes to the model server as it comes."""

KEY_MEMBERS = ("keys", "groups", "jwt")
ROOTS = (*KEY_MEMBERS, "rules")
"""Where a file says who may do what."""

MAX_NAME = 100
JWT_PREFIX = "jwt:"
"""What the names of those begin with who come with a JWT."""

_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_RATE = re.compile(r"([1-9]\d{0,8}) ?/ ?(?:([1-9]\d{0,4}) ?)?(second|minute|hour|day)s?")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class Rate(NamedTuple):
    """At most so many in so many seconds, wherever these begin."""

    most: int
    seconds: int

    def __str__(self) -> str:
        unit, seconds = next((u, s) for u, s in reversed(_SECONDS.items()) if self.seconds % s == 0)
        number = self.seconds // seconds
        return f"{self.most}/{unit}" if number == 1 else f"{self.most}/{number} {unit}s"


def _rate(value: Any) -> Any:
    if isinstance(value, Rate):
        return value
    found = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        raise ValueError(f'{value!r} is no rate like "60/minute", "5/10 seconds" or "1000/day"')
    return Rate(int(found[1]), int(found[2] or 1) * _SECONDS[found[3]])


def _digest(text: str) -> str:
    found = _DIGEST.fullmatch(text.lower())
    if not found:
        # It may be the key itself, which no message shows.
        raise ValueError('it is no digest; `toolway keys add NAME` makes a key and writes its "sha256:..."')
    return found[1]


def read_expiry(value: Any) -> float:
    """The Unix time of a date (its end, in UTC) or of a moment like 2027-01-31T12:00:00Z. Raises ValueError."""
    text = value if isinstance(value, str) else ""
    try:
        moment = datetime.fromisoformat(text)
        if _DATE.fullmatch(text):
            moment = datetime.combine(moment, time(23, 59, 59))
        return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is no date like 2027-01-31 or 2027-01-31T12:00:00Z") from None


def check_name(name: str) -> str:
    """The name of a key or a group. Raises ValueError for one that people could not tell or type."""
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"a name has 1 to {MAX_NAME} visible characters and no space at its ends")
    if name.startswith(JWT_PREFIX):
        raise ValueError(f"names that begin with {JWT_PREFIX} are those of people who come with a JWT")
    return name


def _alike(name: str) -> str:
    """What names share that look the same."""
    return unicodedata.normalize("NFKC", name).casefold()


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_RATE_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{_RATE.pattern}$"})
_TEXT_SCHEMA = WithJsonSchema({"type": "string"})
Patterns = tuple[NonEmpty, ...]
OneRate = Annotated[Rate, BeforeValidator(_rate), _RATE_SCHEMA]
Digest = Annotated[NonEmpty, AfterValidator(_digest)]
Expiry = Annotated[float, BeforeValidator(read_expiry), _TEXT_SCHEMA]
Audiences = Annotated[tuple[NonEmpty, ...], BeforeValidator(_as_list)]


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """How much may be used; what is left out is not bounded."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    requests: OneRate | None = None
    """Requests in a time, like "60/minute" or "5/10 seconds"."""
    tool_calls: OneRate | None = None
    """Calls of tools in a time."""
    concurrent_requests: Count | None = None
    """Requests at the same time."""
    concurrent_tool_calls: Count | None = None
    """Calls of tools at the same time."""
    tokens_per_day: Count | None = None
    """Tokens, of prompts and answers together, in 24 hours from the first use on."""


@dataclass(frozen=True, kw_only=True)
class Rights(Quotas):
    """What keys may do; what is left out is not narrowed."""

    where: SkipJsonSchema[str] = field(default="", compare=False)
    """File and line, for messages."""

    tools: Patterns | None = None
    """Patterns (*, ?, [abc]) of the tools that there are: names as models see them, or server.tool. Default: all."""
    exclude: Patterns = ()
    """Patterns of tools that there are not, whatever "tools" says."""
    models: Patterns | None = None
    """Patterns of the models that may be named. Default: all."""
    routes: tuple[Route, ...] | None = None
    """What may be asked. Default: all but the console."""
    tool_search: Literal["auto", "on", "off"] | None = None
    """Whether the tools are searched where the request does not say it. Default: TOOLWAY_TOOL_SEARCH."""
    max_rounds: Count | None = None
    """Rounds of tool calls in one request; never more than TOOLWAY_MAX_ROUNDS."""
    max_calls: Count | None = None
    """Calls of tools in one request."""
    max_seconds: Seconds | None = None
    """Seconds that the tools of one request may take."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig(Rights):
    """A group of keys. Each of its keys has these rights and quotas; what a key says itself narrows them further."""

    name: SkipJsonSchema[str] = ""

    shared: Quotas | None = None
    """Quotas that all keys of the group use up together."""


@dataclass(frozen=True, kw_only=True)
class KeyConfig(Rights):
    """A key, under the name of the one who has it."""

    name: SkipJsonSchema[str] = ""

    hash: Digest
    """SHA-256 of the key, as `toolway keys add` writes it."""
    group: NonEmpty | None = None
    """The group that it belongs to."""
    expires: Expiry | None = None
    """The last day on which it is valid (2027-01-31, in UTC), or the moment (2027-01-31T12:00:00Z)."""


@dataclass(frozen=True, kw_only=True)
class JwtConfig:
    """The identity provider whose tokens are as good as keys."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    issuer: Address
    """The `iss` of its tokens, where its OpenID configuration is found."""
    audience: Audiences
    """What the `aud` of a token must hold: what the provider calls this server; one or a list."""
    jwks_uri: Address | None = None
    """Where its public keys are. Default: asked of the issuer."""
    groups_claim: NonEmpty = "groups"
    """The claim that says in which groups somebody is; realm_access.roles is the member of a member."""
    groups: Mapping[str, NonEmpty] = field(default_factory=dict)
    """What the claim may hold -> the group here; the first that fits counts. Default: the same name."""
    default_group: NonEmpty | None = None
    """The group of those whose claim names none. Without it they are denied."""
    name_claim: NonEmpty = "sub"
    """The claim that people are called by, in the log and in rules, behind "jwt:"."""
    resource: Address | None = None
    """The URL of /mcp as clients know it. Default: made of the Host header."""
    scopes: Patterns = ()
    """The scopes that MCP clients are told to ask the provider for."""


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may do what. `is_declared` says whether the file has a word about it: then nobody may without a key."""

    is_declared: bool = False
    keys: tuple[KeyConfig, ...] = ()
    groups: tuple[GroupConfig, ...] = ()
    jwt: JwtConfig | None = None
    rules: tuple[RuleConfig, ...] = ()
    """What becomes of calls, whoever makes them; keys are not asked for because of them."""

    @property
    def has_quotas(self) -> bool:
        """Whether anything is counted for any key."""
        holders = [*self.keys, *self.groups, *(group.shared for group in self.groups if group.shared)]
        return any(getattr(one, f.name) is not None for one in holders for f in fields(Quotas))

    def group(self, name: str | None) -> GroupConfig | None:
        """The group of this name."""
        return next((group for group in self.groups if group.name == name), None)


UNDECLARED = AccessConfig()
"""Of a file that says nothing about it."""


_MODELS: Mapping[str, type[Any]] = {"keys": KeyConfig, "groups": GroupConfig, "jwt": JwtConfig}
_DESCRIPTIONS = {
    "keys": "The name of a key -> what it may do.",
    "groups": "The name of a group -> what its keys may do.",
}
_INNER = {"name", "where"}
_Expand = Callable[[str], str]


def read_access(root: Node, report: Report, expanded: _Expand) -> AccessConfig:
    """What a file says of access. Each mistake is a problem of the whole file: none may open more than was meant."""
    rules = read_rules(root.value.get("rules"), report)
    members: Mapping[str, Node] = {key: root.value[key] for key in KEY_MEMBERS if key in root.value}
    if not members:
        return AccessConfig(rules=rules)
    config = AccessConfig(
        is_declared=True,
        rules=rules,
        keys=tuple(_entries("keys", members, report, expanded)),
        groups=tuple(_entries("groups", members, report, expanded)),
        jwt=_checked("jwt", "", members["jwt"], report, expanded) if "jwt" in members else None,
    )
    _check_references(config, members, report)
    return config


def _entries(kind: str, members: Mapping[str, Node], report: Report, expanded: _Expand) -> Iterator[Any]:
    node = members.get(kind, Node(value={}, line=1))
    if not isinstance(node.value, dict):
        report.problem(node.line, kind, "it must be an object: a name -> its entry")
        return
    seen: dict[str, str] = {}
    for name, entry in node.value.items():
        try:
            check_name(name)
        except ValueError as error:
            report.problem(entry.line, f"{kind}.{name!r}", str(error))
            continue
        if (other := seen.setdefault(_alike(name), name)) is not name:
            report.problem(
                entry.line, f"{kind}.{name}", f"this name looks like {other!r}; each needs one of its own"
            )
        if checked := _checked(kind, name, entry, report, expanded):
            yield checked


def _checked(kind: str, name: str, node: Node, report: Report, expanded: _Expand) -> Any | None:
    """The model of an entry; None when the report has a problem with it."""
    label = f"{kind}.{name}" if name else kind
    if not isinstance(node.value, dict):
        report.problem(node.line, label, "it must be an object")
        return None
    keys = {f.name for f in fields(_MODELS[kind])}
    entry = {key: child.plain() for key, child in node.value.items()}
    if empty := [key for key, value in entry.items() if value is None and key in keys - _INNER]:
        for key in empty:
            report.problem(
                node.value[key].line,
                f"{label}.{key}",
                "null says nothing; leave it out, or write [] for none",
            )
        return None
    if unknown := _INNER & entry.keys():
        report.problem(node.value[min(unknown)].line, f"{label}.{min(unknown)}", "this key is not known")
        return None
    ours = {"name": name, "where": f"{report.path}:{node.line}"}
    entry |= {key: value for key, value in ours.items() if key in keys}
    try:
        return _adapter(kind).validate_python(entry, context=expanded)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            report.problem(*explain(label, node, mistake, keys - _INNER))
        return None


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_MODELS[kind])


def _check_references(config: AccessConfig, members: Mapping[str, Node], report: Report) -> None:
    """Whether what refers to something else refers to something that is there, and once."""
    groups = [group.name for group in config.groups]

    def check(name: str | None, line: int, label: str) -> None:
        if name is not None and name not in groups:
            known = did_you_mean(name, groups) or f"; the groups are: {', '.join(groups) or 'none'}"
            report.problem(line, label, f"there is no group {name!r}{known}")

    digests: dict[str, str] = {}
    for key in config.keys:
        node = members["keys"].value[key.name]
        check(key.group, _line(node, "group"), f"keys.{key.name}.group")
        if (other := digests.setdefault(key.hash, key.name)) is not key.name:
            report.problem(_line(node, "hash"), f"keys.{key.name}.hash", f"the key of {other!r} is the same")
    if config.jwt:
        check(config.jwt.default_group, _line(members["jwt"], "default_group"), "jwt.default_group")
        if not config.groups:
            report.problem(
                members["jwt"].line, "jwt", 'it needs "groups" beside it, or nobody may do anything'
            )
        for claim, name in config.jwt.groups.items():
            check(name, _line(members["jwt"], "groups"), f"jwt.groups.{claim}")


def _line(node: Node, key: str) -> int:
    child = node.value.get(key)
    return child.line if child else node.line


def json_schemas(schema_of: Callable[[type[Any]], dict[str, Any]]) -> dict[str, Any]:
    """The JSON Schemas of the members that a file may have for it; `schema_of` makes that of a model."""
    made = {kind: schema_of(model) for kind, model in _MODELS.items()}
    rules = {"description": "The first rule that fits a call decides about it.", "type": "array"}
    return {
        "rules": {**rules, "items": schema_of(RuleConfig)},
    } | {
        kind: {"description": _DESCRIPTIONS[kind], "type": "object", "additionalProperties": schema}
        if kind in _DESCRIPTIONS
        else schema
        for kind, schema in made.items()
    }
