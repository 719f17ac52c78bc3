"""Real documents, from 2 to 1223 operations, all import: how many tools, and what is left out for which reason.

They lie beside the repository (their licences differ from ours), in `../shared` or where TOOLWAY_SHARED says.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from functools import cache

import jsonschema_rs
import pytest

from tests.support.paths import SHARED
from tests.support.schemas import assert_compiled
from toolway.schema.compile import MAX_BYTES, compile_schema
from toolway.schema.targets import RULES, SchemaTarget
from toolway.tools.openapi.document import parse_document
from toolway.tools.openapi.importer import ImportedDocument, import_document
from toolway.wire.lenient_json import dumps, dumps_text

PLACE = SHARED / "openapi"

pytestmark = pytest.mark.skipif(
    not PLACE.is_dir(),
    reason="the real documents are not here (set TOOLWAY_SHARED to the folder above openapi/)",
)

UPLOADS = "its own server, https://uploads.github.com, is not the configured one"
FILES = "its own server, https://files.stripe.com, is not the configured one"

DOCUMENTS: dict[str, tuple[int, dict[str, int]]] = {
    "digitalocean.json": (290, {}),
    "github.openapi30.json.gz": (1222, {UPLOADS: 1}),
    "kubernetes-1.13.swagger20.json": (1014, {}),
    "openai.openapi31.yaml": (288, {}),
    "slack.swagger20.json": (174, {}),
    "stripe.openapi30.json": (451, {FILES: 1}),
    "swagger-petstore.openapi30.yaml": (19, {}),
    "oai-v2.0-json-petstore-expanded.json": (4, {}),
    "oai-v2.0-json-uber.json": (5, {}),
    "oai-v3.0-callback-example.yaml": (1, {}),
    "oai-v3.0-link-example.yaml": (6, {}),
    "oai-v3.0-uspto.yaml": (3, {}),
    "oai-v3.1-non-oauth-scopes.yaml": (1, {}),
    "oai-v3.1-tictactoe.yaml": (3, {}),
    "oai-v3.1-webhook-example.yaml": (0, {}),
    "oai-v3.2-3.2-tags-example.yaml": (4, {}),
    "mcpo/broken.openapi.json": (0, {}),
    "mcpo/everything.openapi.json": (13, {}),
    "mcpo/git.openapi.json": (12, {}),
    "mcpo/memory.openapi.json": (9, {}),
    "mcpo/probe.openapi.json": (8, {}),
    "mcpo/root.openapi.json": (0, {}),
    "mcpo/single_time.openapi.json": (2, {}),
    "mcpo/time.openapi.json": (2, {}),
    "open-webui/filesystem.json": (12, {}),
    "open-webui/flashcards.json": (2, {}),
    "open-webui/get-oauth-tokens.json": (1, {}),
    "open-webui/get-tokens-from-cookies.json": (1, {}),
    "open-webui/get-user-info.json": (1, {}),
    "open-webui/git.json": (12, {}),
    "open-webui/google-pse.json": (2, {}),
    "open-webui/memory.json": (9, {}),
    "open-webui/time-ui.json": (7, {}),
    "open-webui/time.json": (7, {}),
    "open-webui/weather.json": (1, {}),
}

each = pytest.mark.parametrize("name", DOCUMENTS)


@cache
def imported(name: str) -> ImportedDocument:
    content = (PLACE / name).read_bytes()
    document = parse_document(gzip.decompress(content) if name.endswith(".gz") else content)
    return import_document(document, server="real", url="http://127.0.0.1:8000/openapi.json")


def test_no_document_is_forgotten() -> None:
    found = {
        str(path.relative_to(PLACE)) for path in PLACE.rglob("*") if path.is_file() and path.suffix != ".md"
    }
    assert found == set(DOCUMENTS)


@each
def test_every_operation_is_a_tool_or_left_out_for_a_known_reason(name: str) -> None:
    document = imported(name)
    assert (len(document.tools), dict(Counter(reason for _, reason in document.left_out))) == DOCUMENTS[name]


@each
def test_every_tool_has_a_name_of_its_own_a_description_and_a_legal_schema(name: str) -> None:
    tools = imported(name).tools
    assert len({tool.name for tool in tools}) == len(tools)
    for tool in tools:
        assert tool.description
        assert tool.parameters["type"] == "object"
        assert isinstance(tool.parameters["properties"], dict)
        jsonschema_rs.Draft202012Validator(tool.parameters, offline=True)


@each
def test_every_reference_in_a_tool_leads_to_a_definition_in_that_tool(name: str) -> None:
    for tool in imported(name).tools:
        text = dumps_text(tool.parameters)
        referred = set(re.findall(r'"\$ref":"([^"]*)"', text))
        assert referred <= {f"#/$defs/{definition}" for definition in tool.parameters.get("$defs", ())}


@each
@pytest.mark.parametrize("target", RULES)
def test_every_tool_compiles_for_every_kind_of_model_server(name: str, target: SchemaTarget) -> None:
    for tool in imported(name).tools:
        compiled = compile_schema(tool.parameters, target)
        assert_compiled(compiled, target)
        assert len(dumps(compiled)) <= MAX_BYTES


@each
def test_every_call_stays_at_the_origin_that_the_document_came_from(name: str) -> None:
    for tool in imported(name).tools:
        assert re.match(r"http://127\.0\.0\.1:8000(/|$)", tool.handle.base)


@each
def test_no_credential_is_an_argument(name: str) -> None:
    keys = {"authorization", "cookie", "api_key", "x_api_key", "access_token"}
    for tool in imported(name).tools:
        named = {p.name.lower().replace("-", "_") for p in tool.handle.parameters if p.location != "path"}
        assert not named & keys


def test_slacks_own_token_is_none_either() -> None:
    assert not [
        tool.name
        for tool in imported("slack.swagger20.json").tools
        if "token" in tool.parameters["properties"]
    ]


def test_the_same_document_gives_the_same_bytes() -> None:
    name = "stripe.openapi30.json"
    first = [(tool.name, tool.parameters) for tool in imported(name).tools]
    imported.cache_clear()
    again = [(tool.name, tool.parameters) for tool in imported(name).tools]
    assert dumps(first) == dumps(again)
