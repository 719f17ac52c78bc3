"""Rules: the first that fits decides, what servers claim is believed of named ones alone, mistakes are told."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from toolway.access.rules import WORST, CallOrigin, Decision, Rules, hints_of
from toolway.errors import ConfigError
from toolway.settings.mcp_json import parse_config
from toolway.settings.rules import RuleConfig
from toolway.types import Tool

JSON = dict[str, Any]
ANYONE = CallOrigin(dialect="chat")


def tool(name: str = "delete_file", server: str = "files", **more: Any) -> Tool:
    parameters = {"type": "object", "properties": {"path": {"type": "string"}}}
    return Tool(name=name, server=server, description="", parameters=parameters, **more)


def rules(*entries: JSON, servers: tuple[str, ...] = ("files", "web")) -> Rules:
    text = orjson.dumps({"mcpServers": {}, "rules": entries}).decode()
    return Rules(parse_config(text, {}).access.rules, servers)


def decide(made: Rules, target: Tool | None = None, origin: CallOrigin = ANYONE, **arguments: Any) -> str:
    target = target or tool()
    return made.decide(target.name, target, origin, arguments).effect


DENY: JSON = {"effect": "deny"}


def test_the_first_rule_that_fits_decides() -> None:
    made = rules(
        {"tools": ["delete_*"], "effect": "ask", "reason": "it is gone then", "name": "no accidents"},
        {"tools": ["files.*"], "effect": "deny"},
    )
    found = made.decide("delete_file", tool(), ANYONE, {})
    assert found == Decision(effect="ask", rule="no accidents", reason="it is gone then")
    assert made.decide("read_file", tool("read_file"), ANYONE, {}) == Decision(effect="deny", rule="rule 2")
    assert decide(made, tool("read_file", "web")) == "allow"


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({}, True),
        ({"tools": ["read_*", "delete_*"]}, True),
        ({"tools": ["files.delete_file"]}, True),
        ({"tools": ["web.*"]}, False),
        ({"tools": ["delete"]}, False),
        ({"servers": ["f*"]}, True),
        ({"servers": ["web"]}, False),
        ({"keys": ["kid-*"]}, True),
        ({"keys": ["parent"]}, False),
        ({"groups": ["family"]}, True),
        ({"groups": ["guests"]}, False),
        ({"models": ["qwen*"]}, True),
        ({"models": ["gpt-*"]}, False),
        ({"dialects": ["chat", "mcp"]}, True),
        ({"dialects": ["mcp"]}, False),
        ({"arguments": {"properties": {"path": {"pattern": "^/etc/"}}, "required": ["path"]}}, True),
        ({"arguments": {"properties": {"path": {"pattern": "^/home/"}}}}, False),
        ({"arguments": {"required": ["recursive"]}}, False),
        ({"tools": ["delete_*"], "keys": ["parent"]}, False),
    ],
)
def test_all_conditions_of_a_rule_must_fit(conditions: JSON, fits: bool) -> None:
    origin = CallOrigin(key="kid-1", group="family", model="qwen3", dialect="chat")
    assert decide(rules({**conditions, **DENY}), origin=origin, path="/etc/passwd") == (
        "deny" if fits else "allow"
    )


@pytest.mark.parametrize("name", ["delete_file", "Delete_File", "DELETE_FILE", "ｄｅｌｅｔｅ_ｆｉｌｅ"])
def test_no_spelling_of_a_name_gets_past_a_rule(name: str) -> None:
    assert decide(rules({"tools": ["delete_*"], **DENY}), tool(name)) == "deny"


def test_a_rule_goes_by_the_name_that_models_see_too() -> None:
    assert (
        rules({"tools": ["files__now"], **DENY}).decide("files__now", tool("now"), ANYONE, {}).effect
        == "deny"
    )


HARMLESS = {"readOnlyHint": True}


def test_annotations_are_believed_of_named_servers_alone() -> None:
    made = rules(
        {"annotations": {"readOnlyHint": True}, "trust": ["files"], "effect": "allow"}, {"effect": "ask"}
    )
    assert decide(made, tool(annotations=HARMLESS)) == "allow"
    assert decide(made, tool(server="web", annotations=HARMLESS)) == "ask"
    assert decide(made, tool()) == "ask"


def test_a_tool_of_a_server_that_is_not_trusted_counts_as_destructive() -> None:
    made = rules({"annotations": {"destructiveHint": True}, "trust": ["files"], "effect": "ask"})
    assert decide(made, tool(server="web", annotations={"destructiveHint": False})) == "ask"
    assert decide(made, tool(annotations={"destructiveHint": False})) == "allow"
    assert decide(made, tool(annotations=HARMLESS)) == "allow"


def test_a_server_that_takes_a_trusted_name_without_being_configured_is_not_believed() -> None:
    made = rules(
        {"annotations": HARMLESS, "trust": ["brought"], "effect": "allow"},
        {"effect": "deny"},
        servers=("files",),
    )
    assert decide(made, tool(server="brought", annotations=HARMLESS)) == "deny"


@given(
    st.dictionaries(st.sampled_from([*WORST, "title"]), st.none() | st.booleans() | st.text() | st.integers())
)
def test_hints_that_are_no_booleans_are_none(annotations: JSON) -> None:
    found = hints_of(tool(annotations=annotations))
    assert all(isinstance(found[hint], bool) for hint in WORST)


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [deep(3000), "\ud800", 10**400])
def test_arguments_that_cannot_be_judged_are_never_what_a_rule_allows(value: Any) -> None:
    schema = {"properties": {"path": {"const": "x"}}, "required": ["path"]}
    assert decide(rules({"arguments": schema, "effect": "allow"}, DENY), path=value) == "deny"


def test_a_pattern_takes_no_time_to_speak_of() -> None:
    made = rules({"arguments": {"properties": {"path": {"pattern": "^(a+)+$"}}}, **DENY})
    began = time.process_time()
    decide(made, path="a" * 100_000 + "!")
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("entry", "line", "told"),
    [
        ({"tools": ["*"]}, 3, 'rules[0]: it needs a "effect"'),
        ({"effect": "forbid"}, 3, "rules[0].effect: 'forbid' is none of allow, deny, ask"),
        ({"effect": "deny", "tool": ["x"]}, 3, "rules[0]: 'tool' is not known; did you mean 'tools'"),
        ({"effect": "deny", "where": "x"}, 3, "rules[0]: 'where' is not known"),
        ({"effect": "deny", "tools": []}, 3, "rules[0].tools: it is empty, and would fit nothing"),
        ({"effect": "deny", "tools": None}, 3, "rules[0].tools: it must be a list of strings"),
        ({"effect": "deny", "tools": "x"}, 3, "rules[0].tools: it must be a list of strings"),
        ({"effect": "deny", "tools": [" "]}, 3, "rules[0].tools[0]: it is empty"),
        ({"effect": "deny", "dialects": ["soap"]}, 3, "rules[0].dialects[0]: 'soap' is none of chat"),
        ({"effect": "deny", "annotations": {"readOnly": True}}, 3, "rules[0].annotations"),
        ({"effect": "deny", "annotations": {"readOnlyHint": 1}}, 3, "1 is neither true nor false"),
        ({"effect": "deny", "arguments": {"type": "text"}}, 3, "rules[0].arguments: it is no JSON Schema"),
        ({"effect": "deny", "arguments": None}, 3, "rules[0].arguments: it is no JSON Schema"),
        ({"effect": "deny", "arguments": {"$ref": "http://127.0.0.1/x"}}, 3, "it is no JSON Schema"),
        ("deny", 3, "rules[0]: it must be an object"),
    ],
)
def test_a_mistake_in_a_rule_forbids_the_file(entry: Any, line: int, told: str) -> None:
    text = '{"mcpServers": {},\n"rules": [\n' + orjson.dumps(entry).decode() + "]}"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, {})
    assert caught.value.message.startswith(f"mcp.json:{line}: ")
    assert told in caught.value.message


@pytest.mark.parametrize("key", ["rule", "Rules", "ruels"])
def test_rules_under_a_misspelt_name_are_not_passed_over(key: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'rules'"):
        parse_config(orjson.dumps({"mcpServers": {}, key: [DENY]}).decode(), {})


def test_rules_must_be_a_list() -> None:
    with pytest.raises(ConfigError, match="it must be a list of rules"):
        parse_config('{"mcpServers": {}, "rules": {}}', {})


@pytest.mark.parametrize(
    ("first", "second", "is_told"),
    [
        ({}, {"tools": ["x"]}, True),
        ({"tools": ["files.*"]}, {"tools": ["files.delete_*"]}, True),
        ({"tools": ["files.delete_*"]}, {"tools": ["files.*"]}, False),
        ({"tools": ["a", "b"]}, {"tools": ["b"]}, True),
        ({"tools": ["a?"]}, {"tools": ["a*"]}, False),
        ({"tools": ["a*"]}, {"tools": ["a[bc]"]}, False),
        ({"keys": ["kid"]}, {}, False),
        ({"keys": ["*"]}, {"keys": ["kid"], "tools": ["x"]}, True),
        ({"dialects": ["chat", "mcp"]}, {"dialects": ["mcp"]}, True),
        ({"dialects": ["mcp"]}, {"dialects": ["mcp", "chat"]}, False),
        ({"arguments": {"required": ["a"]}}, {}, False),
        ({"arguments": {"required": ["a"]}}, {"arguments": {"required": ["a"]}, "tools": ["x"]}, True),
        ({"annotations": HARMLESS, "trust": ["files"]}, {"tools": ["x"]}, False),
    ],
)
def test_a_rule_behind_one_that_covers_it_is_told(first: JSON, second: JSON, is_told: bool) -> None:
    found = [w for w in rules({**first, **DENY}, {**second, "effect": "ask"}).warnings if "never hit" in w]
    assert bool(found) is is_told
    if is_told:
        assert found == ["mcp.json:1: rule 2 can never hit: all that it fits is decided by rule 1 before it"]


@given(
    st.lists(st.sampled_from("ab*?"), max_size=4), st.lists(st.sampled_from("ab*?"), max_size=4), st.data()
)
def test_what_a_covered_rule_fits_the_wider_one_fits(wide: list[str], narrow: list[str], data: Any) -> None:
    one, other = "x" + "".join(wide), "x" + "".join(narrow)
    first, second = rules({"tools": [one], **DENY}, {"tools": [other], **DENY}).rules
    name = data.draw(st.from_regex("x[ab]{0,5}", fullmatch=True))
    if first.covers(second) and second.fits_tool(name, tool(name)):
        assert first.fits_tool(name, tool(name))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"annotations": HARMLESS, "effect": "allow"}, "so that it can never hit"),
        ({"annotations": {"destructiveHint": True}, "effect": "ask"}, "every tool is taken to be so"),
        ({"trust": ["files"], "effect": "ask"}, "trusts annotations but asks for none"),
        (
            {"arguments": {"properties": {"path": {"pattern": "^/tmp/"}}}, "effect": "allow"},
            "allows calls without path too",
        ),
    ],
)
def test_a_rule_that_says_something_else_than_it_seems_to_is_told(entry: JSON, told: str) -> None:
    (warning,) = rules(entry).warnings
    assert told in warning


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"tools": ["delte_*"]}, "tools: 'delte_*' fits no tool"),
        ({"servers": ["github"]}, "servers: 'github' fits no server"),
        ({"keys": ["bob"]}, "keys: 'bob' fits no key"),
        ({"groups": ["team"]}, "groups: 'team' fits no group"),
        ({"annotations": HARMLESS, "trust": ["github", "files"]}, "trust: there is no server 'github'"),
        ({"tools": ["delete_*"], "servers": ["web"]}, "can never hit: no tool fits its conditions"),
        (
            {"tools": ["delete_*"], "arguments": {"required": ["file"]}},
            "no tool that it is about has an argument 'file'",
        ),
    ],
)
def test_what_a_rule_names_and_is_not_there_is_told(entry: JSON, told: str) -> None:
    made = rules({**entry, "effect": "ask"})
    tools = {"delete_file": tool(annotations=HARMLESS), "get": tool("get", "web")}
    found = list(made.unmatched_names(tools, ["files", "web"], ["alice"], ["family"]))
    assert any(told in sentence for sentence in found), found


def test_what_is_there_is_not_told() -> None:
    made = rules(
        {"tools": ["delete_*"], "servers": ["files"], "keys": ["a*"], "groups": ["f*"], "effect": "ask"}
    )
    assert list(made.unmatched_names({"delete_file": tool()}, ["files"], ["alice"], ["family"])) == []


def test_a_thousand_rules_cost_little() -> None:
    entries = [{"tools": [f"tool_{n}"], "keys": [f"key_{n}"], "effect": "deny"} for n in range(1000)]
    made, target = rules(*entries), tool()
    decide(made, target)
    began = time.process_time()
    for _ in range(1000):
        decide(made, target)
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("key", [field.name for field in fields(RuleConfig) if field.name != "where"])
def test_each_key_of_a_rule_is_explained(key: str):
    assert f"`{key}`" in (ROOT / "docs" / "access.md").read_text()
