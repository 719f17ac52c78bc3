"""`mcp.example.json` explains every key, and the published schema says what the reader says."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from tests.support.paths import ROOT
from tests.unit.settings.test_mcp_json import CLAUDE, CLINE, CURSOR, GEMINI, LM_STUDIO, MCPO, VS_CODE
from toolway.settings import jsonc
from toolway.settings.mcp_json import MODELS, json_schema, keys_of, parse_config

EXAMPLE = (ROOT / "mcp.example.json").read_text()
SCHEMA = json.loads((ROOT / "docs" / "mcp.schema.json").read_text())
KNOWN = {"type"} | {field for kind in MODELS for field in keys_of(kind).values()}
IN_COMMENTS = {"enabled", "auth", "oauth", "client_cert", "client_key", "env_file"}
ENV = {"HOME": "/home/me", "TOKEN": "t", "SEARCH_TOKEN": "s"}


def test_the_example_is_read_without_a_warning() -> None:
    enabled = EXAMPLE.replace('"disabled": true', '"disabled": false')
    found = parse_config(enabled, ENV, strict=True)
    assert [server.type for server in found.servers] == ["stdio", "http", "openapi"]
    assert parse_config(EXAMPLE, {}, strict=True).servers == (), "as it is it starts nothing"


def test_the_example_shows_every_key() -> None:
    shown = set(re.findall(r'^      "(\w+)":', EXAMPLE, re.MULTILINE))
    assert shown == KNOWN - IN_COMMENTS
    assert all(f'"{key}"' in EXAMPLE for key in IN_COMMENTS)


def test_the_schema_knows_every_key() -> None:
    assert SCHEMA["$defs"]["server"]["properties"].keys() == KNOWN


def test_the_published_schema_is_what_the_models_say() -> None:
    assert json_schema() == SCHEMA, "make schema"


@pytest.mark.parametrize("text", [EXAMPLE, CLAUDE, CLINE, CURSOR, GEMINI, LM_STUDIO, MCPO, VS_CODE])
def test_the_schema_takes_what_the_reader_takes(text: str) -> None:
    jsonschema_rs.validator_for(SCHEMA).validate(jsonc.parse(text).plain())


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "ssh"}, {"command": 5}, {"command": ""}, {"args": "y"}, {"args": [{}]}, {"env": []},
        {"timeout": "5"}, {"timeout": 0}, {"disabled": "yes"}, {"era": "old"}, {"auth": "y"}, {"include": [1]},
        "x",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_reader_refuses(entry: Any) -> None:
    assert not jsonschema_rs.is_valid(SCHEMA, {"mcpServers": {"a": entry}})
