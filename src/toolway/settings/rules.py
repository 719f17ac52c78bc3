"""The models of `"rules"` in an `mcp.json`: which calls run, which do not, and which wait for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema, WithJsonSchema

from toolway.dialects import DialectName
from toolway.settings.jsonc import Node
from toolway.settings.mistakes import Report, explain

if TYPE_CHECKING:
    import jsonschema_rs

Effect = Literal["allow", "deny", "ask"]
Hint = Literal["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"]


def _schema(value: Any) -> Any:
    """A JSON Schema that can be compiled, without references to anything outside of it."""
    try:
        compile_arguments(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON Schema: {str(error).splitlines()[0]}") from None
    return value


def compile_arguments(schema: Any) -> jsonschema_rs.Validator:
    """What tells whether arguments fit. Its patterns take time in proportion to the text, and nothing is fetched."""
    import jsonschema_rs  # noqa: PLC0415 - 5 MB, where a rule looks at arguments

    return jsonschema_rs.validator_for(
        schema, pattern_options=jsonschema_rs.RegexOptions(), offline=True, validate_formats=True
    )


Pattern = Annotated[str, Field(pattern=r"\S")]
Patterns = tuple[Pattern, ...]


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """One rule. It hits a call that fits all of its conditions; a condition that is left out fits every call."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    where: SkipJsonSchema[str] = field(default="", compare=False)
    """File and line, for messages."""

    effect: Effect
    """allow: it runs. deny: the model reads that it was denied. ask: a person is asked first."""
    name: str = ""
    """What the rule is called in explanations and in the audit log; by default its number."""
    reason: str = ""
    """Why, in words that the model (deny) or the person who is asked (ask) reads."""
    tools: Patterns = ()
    """Patterns (*, ?, [abc]) of tools: names as models see them, or server.tool."""
    servers: Patterns = ()
    """Patterns of the servers' names."""
    annotations: Mapping[Hint, Annotated[bool, Field(strict=True)]] = field(default_factory=dict)
    """MCP's hints about a tool -> what they must be. Only servers in trust are believed."""
    trust: tuple[str, ...] = ()
    """Names of the servers whose annotations are believed. Tools of all others count as writing, destructive, not idempotent and open to the world."""  # noqa: E501 - one text in the schema
    keys: Patterns = ()
    """Patterns of the names of keys."""
    groups: Patterns = ()
    """Patterns of the names of groups of keys."""
    models: Patterns = ()
    """Patterns of models, as requests name them."""
    dialects: tuple[DialectName, ...] = ()
    """The ways by which a call comes."""
    arguments: Annotated[
        Any, AfterValidator(_schema), WithJsonSchema({"$ref": "https://json-schema.org/draft/2020-12/schema"})
    ] = None
    """JSON Schema of the call's arguments."""


def read_rules(node: Node | None, report: Report) -> tuple[RuleConfig, ...]:
    """The rules of a file, in its order. A mistake in one is a problem of the file: a rule that is left out allows."""
    if node is None:
        return ()
    if not isinstance(node.value, list):
        report.problem(
            node.line, "rules", 'it must be a list of rules like {"tools": ["*"], "effect": "ask"}'
        )
        return ()
    return tuple(
        rule for number, entry in enumerate(node.value) if (rule := _rule(number, entry, report)) is not None
    )


def _rule(number: int, node: Node, report: Report) -> RuleConfig | None:
    label = f"rules[{number}]"
    if not isinstance(node.value, dict):
        report.problem(node.line, label, 'it must be an object like {"tools": ["*"], "effect": "ask"}')
        return None
    given: Mapping[str, Node] = node.value
    if "where" in given:
        report.problem(given["where"].line, label, "'where' is not known")
    entry = {name: child.plain() for name, child in given.items()}
    try:
        rule = _ADAPTER.validate_python({**entry, "where": f"{report.path}:{node.line}"})
    except ValidationError as error:
        known = [f.name for f in fields(RuleConfig) if f.name != "where"]
        for mistake in error.errors(include_url=False):
            report.problem(*explain(label, node, mistake, known))
        return None
    empty = [name for name in _CONDITIONS if name in given and not entry[name] and entry[name] is not None]
    for name in empty:
        report.problem(
            given[name].line, f"{label}.{name}", "it is empty, and would fit nothing; leave it out"
        )
    return rule


_CONDITIONS = ("tools", "servers", "annotations", "keys", "groups", "models", "dialects")
_ADAPTER = TypeAdapter(RuleConfig)
