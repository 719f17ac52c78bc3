"""The operations of a document become tools: their names, descriptions and flat arguments."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tools.openapi.service import document, json_body, operation
from toolway.errors import SourceError
from toolway.settings.env_endpoints import Endpoint
from toolway.tools.openapi.document import parse_document
from toolway.tools.openapi.importer import ImportedDocument, import_document
from toolway.tools.openapi.operation import Credentials
from toolway.types import Tool

SAMPLES = Path(__file__).parent / "samples"
URL = "http://shop.test:8000/openapi.json"


def read(source: dict[str, Any] | str, **options: Any) -> ImportedDocument:
    parsed = parse_document((SAMPLES / source).read_bytes()) if isinstance(source, str) else source
    return import_document(parsed, server="shop", **{"url": URL, **options})


def tools(source: dict[str, Any] | str, **options: Any) -> dict[str, Tool]:
    return {tool.name: tool for tool in read(source, **options).tools}


def only(paths: dict[str, Any], **more: Any) -> Tool:
    (tool,) = read(document(paths, **more)).tools
    return tool


def test_every_operation_is_a_tool_whatever_its_method() -> None:
    assert list(tools("shop.yaml")) == [
        "listItems", "addItem", "replaceItem", "delete_items_by_id", "addPhoto", "order", "note", "blob", "batch",
    ]  # fmt: skip
    assert list(tools("swagger.json")) == ["find", "store", "upload", "rename"]


@pytest.mark.parametrize(
    "method", ["get", "put", "post", "delete", "options", "head", "patch", "trace", "query"]
)
def test_a_method_is_kept(method: str) -> None:
    assert only({"/a": {method: operation("a")}}).handle.method == method.upper()


@pytest.mark.parametrize(
    ("method", "hints"),
    [
        ("get", {"readOnlyHint": True, "idempotentHint": True}),
        ("post", {"readOnlyHint": False, "idempotentHint": False}),
        ("put", {"readOnlyHint": False, "idempotentHint": True}),
        ("delete", {"readOnlyHint": False, "idempotentHint": True, "destructiveHint": True}),
    ],
)
def test_a_method_says_what_a_tool_does(method: str, hints: dict[str, bool]) -> None:
    assert only({"/a": {method: operation("a")}}).annotations == hints


def test_the_description_is_the_authors_or_the_summary_or_the_route() -> None:
    known = tools("shop.yaml")
    assert known["listItems"].description == "All items of the shop."
    assert known["replaceItem"].description == "Replace an item"
    assert known["note"].description == "POST /notes"


def test_the_operations_parameters_win_over_those_of_the_path() -> None:
    properties = tools("shop.yaml")["listItems"].parameters["properties"]
    assert properties["tag"] == {
        "type": "array",
        "items": {"type": "string"},
        "description": "From the operation",
    }
    assert properties["page"] == {"type": "integer", "minimum": 1, "default": 1}


def test_headers_and_cookies_are_arguments_but_credentials_are_not() -> None:
    listed = tools("shop.yaml")["listItems"].parameters
    assert list(listed["properties"]) == ["page", "tag", "filter", "X-Trace", "session"]
    assert "required" not in listed


def test_the_body_lies_flat_beside_the_parameters() -> None:
    parameters = tools("shop.yaml")["addItem"].parameters
    assert list(parameters["properties"]) == ["page", "tag", "title", "price", "kind", "parts"]
    assert parameters["required"] == ["title"]
    assert parameters["properties"]["title"] == {"type": "string", "description": "What it is called"}
    assert list(parameters["$defs"]) == ["Item"]


def test_names_that_clash_are_told_apart() -> None:
    parameters = tools("shop.yaml")["replaceItem"].parameters
    assert list(parameters["properties"]) == ["id", "query_id_2", "body_id", "query_id"]
    assert parameters["required"] == ["id", "body_id"]


def test_a_body_that_is_no_object_is_one_argument() -> None:
    known = tools("shop.yaml")
    assert known["batch"].parameters["properties"]["body"]["items"] == {"type": "integer"}
    assert known["batch"].parameters["required"] == ["body"]
    assert known["note"].parameters["properties"]["body"]["type"] == "string"
    assert (
        known["blob"].parameters["properties"]["body"]["description"]
        == "The file as base64, or as a data: URI"
    )


def test_files_are_text_that_says_how() -> None:
    properties = tools("shop.yaml")["addPhoto"].parameters["properties"]
    hint = "The file as base64, or as a data: URI"
    assert properties["photo"] == {"type": "string", "description": f"A picture\n{hint}"}
    assert properties["more"] == {"type": "array", "items": {"type": "string", "description": hint}}


def test_swagger_2_bodies_and_forms_are_arguments_too() -> None:
    known = tools("swagger.json")
    assert known["store"].parameters == {
        "type": "object",
        "properties": {"name": {"type": "string"}, "body_name": {"type": ["string", "null"]}},
        "required": ["name", "body_name"],
    }
    assert known["upload"].parameters["required"] == ["name", "file"]
    assert known["find"].parameters["properties"]["limit"] == {"type": "integer", "maximum": 50}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {"a": {}}}, ["a"]),
        ({"properties": {"a": {}}}, ["a"]),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, ["a", "b"]),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ["a"]),
        ({"type": ["object", "null"], "properties": {"a": {}}}, ["a"]),
        ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, ["body"]),
        ({"type": "object", "additionalProperties": {"type": "string"}}, ["body"]),
        ({"type": "object", "additionalProperties": False}, []),
        ({"type": "object", "properties": {}}, []),
        ({"type": "object"}, ["body"]),
        ({"type": "array"}, ["body"]),
        ({"type": "string"}, ["body"]),
        ({}, ["body"]),
    ],
)
def test_a_plain_object_is_laid_flat_and_nothing_else(schema: Any, expected: list[str]) -> None:
    tool = only({"/a": {"post": operation("a", requestBody=json_body(schema))}})
    assert list(tool.parameters["properties"]) == expected


@pytest.mark.parametrize(
    ("required", "named", "expected"),
    [(True, ["a"], ["a"]), (None, ["a"], ["a"]), (False, ["a"], None), (True, [], None)],
)
def test_members_of_a_body_are_required_unless_the_body_is_said_to_be_optional(
    required: bool | None, named: list[str], expected: list[str] | None
) -> None:
    body = json_body({"properties": {"a": {}}, "required": named})
    body = {k: v for k, v in {**body, "required": required}.items() if v is not None}
    assert only({"/a": {"post": operation("a", requestBody=body)}}).parameters.get("required") == expected


def test_a_misspelt_argument_is_refused_where_nothing_would_take_it() -> None:
    query = [{"name": "q", "in": "query", "schema": {}}]
    assert only({"/a": {"get": operation("a", parameters=query)}}).parameters["additionalProperties"] is False
    assert "additionalProperties" not in only({"/a": {"get": operation("a")}}).parameters


def test_parameters_always_have_properties() -> None:
    assert only({"/a": {"get": operation("a")}}).parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("media_types", "chosen"),
    [
        (["application/xml", "application/json"], "application/json"),
        (["text/plain", "application/vnd.api+json"], "application/vnd.api+json"),
        (["application/json-patch+json", "application/merge-patch+json"], "application/merge-patch+json"),
        (["multipart/form-data", "application/x-www-form-urlencoded"], "application/x-www-form-urlencoded"),
        (["application/octet-stream", "text/csv"], "text/csv"),
        (["*/*"], "application/json"),
        (["new"], "application/json"),
        (["image/*"], "application/octet-stream"),
        (["application/json; charset=utf-8"], "application/json; charset=utf-8"),
        (["text/plain\r\nX: y"], "text/plain"),
    ],
)
def test_of_several_media_types_json_comes_first(media_types: list[str], chosen: str) -> None:
    body = {"content": {media_type: {"schema": {}} for media_type in media_types}}
    assert only({"/a": {"post": operation("a", requestBody=body)}}).handle.body.media_type == chosen


def test_operations_of_the_same_id_are_told_apart_whatever_their_order() -> None:
    paths = {"/a": {"get": operation("x"), "post": operation("x")}, "/b/{id}": {"get": operation("x")}}
    backwards = dict(reversed(paths.items()))
    names = {"x_get_a", "x_post_a", "x_get_b_by_id"}
    assert set(tools(document(paths))) == names == set(tools(document(backwards)))


def test_operations_that_cannot_be_told_apart_by_path_are_numbered() -> None:
    assert list(tools(document({"/a-b": {"get": {}}, "/a/b": {"get": {}}}))) == [
        "get_a_b_get_a_b",
        "get_a_b_get_a_b_2",
    ]


@pytest.mark.parametrize(
    ("path", "method", "name", "short"),
    [
        ("/get_current_time", "post", "tool_get_current_time_post", "get_current_time"),
        ("/get-env", "post", "tool_get_env_post", "get-env"),
        ("/read_file", "post", "read_file_read_file_post", "read_file"),
        ("/users/{user_id}", "get", "read_user_users__user_id__get", "read_user"),
        ("/items", "get", "post_the_items_post", "post_the_items_post"),
        ("/items", "get", "_items_get", "_items_get"),
        ("/items", "get", "listItems", "listItems"),
    ],
)
def test_short_names_leave_out_what_fastapi_and_mcpo_add(
    path: str, method: str, name: str, short: str
) -> None:
    paths = {path: {method: operation(name)}}
    assert list(tools(document(paths), short_names=True)) == [short]
    assert list(tools(document(paths))) == [name]


def test_short_names_that_would_clash_stay_long() -> None:
    paths = {"/a": {"get": operation("read_a_get")}, "/b": {"get": operation("read_b_get")}}
    assert list(tools(document(paths), short_names=True)) == ["read_a_get", "read_b_get"]


def test_a_path_parameter_that_the_author_forgot_is_an_argument() -> None:
    tool = only({"/a/{id}": {"get": operation("a")}})
    assert tool.parameters["required"] == ["id"]


def test_a_path_parameter_that_is_not_in_the_path_is_none() -> None:
    stray = [{"name": "id", "in": "path", "schema": {}}]
    assert only({"/a": {"get": operation("a", parameters=stray)}}).parameters["properties"] == {}


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    paths = {
        "/ok": {"get": operation("ok")},
        "/broken{": {"get": operation("broken")},
        "/elsewhere": {"$ref": "other.yaml#/paths/x"},
        "/bad": {"get": 7},
        "/upload": {"post": operation("upload", servers=[{"url": "https://uploads.test"}])},
        "x-extension": {"get": {}},
    }
    imported = read(document(paths))
    assert [tool.name for tool in imported.tools] == ["ok"]
    assert dict(imported.left_out) == {
        "/elsewhere": "its path item refers to something that is not in the document",
        "GET /bad": "it is not an object",
        "GET /broken{": "its path has a brace that is not closed",
        "POST /upload": "its own server, https://uploads.test, is not the configured one",
    }
    assert any(warning.startswith("1 operation left out (POST /upload)") for warning in imported.warnings)


def test_a_schema_that_is_very_large_is_kept_with_a_warning() -> None:
    body = json_body(
        {"properties": {f"property_{i}": {"type": "string", "maxLength": i} for i in range(3000)}}
    )
    imported = read(document({"/a": {"post": operation("huge", requestBody=body)}}))
    assert len(imported.tools) == 1
    assert "huge" in imported.warnings[0]


@pytest.mark.parametrize(
    ("description", "children"),
    [
        ("- **available tools**：\n    - [time](/time/docs)\n    - [git](/git/docs)", ["time", "git"]),
        ("- [back to tool list](/docs)", []),
        ("- [evil](//evil.test/docs)\n- [evil2](http://evil.test/docs)\n- [x](/a b/docs)", []),
        (None, []),
    ],
)
def test_mcpos_root_lists_its_servers(description: Any, children: list[str]) -> None:
    listed = read(document(info={"description": description})).children
    assert listed == tuple((name, f"/{name}/openapi.json") for name in children)


@pytest.mark.parametrize(
    ("servers", "url", "base"),
    [
        (None, URL, "http://shop.test:8000"),
        ([{"url": "/time"}], "http://shop.test:8000/time/openapi.json", "http://shop.test:8000/time"),
        ([{"url": "v1"}], "http://shop.test:8000/api/openapi.json", "http://shop.test:8000/api/v1"),
        ([{"url": "http://SHOP.test:8000/x/"}], URL, "http://shop.test:8000/x"),
        ([{"url": "https://other.test"}, {"url": "http://shop.test:8000/y"}], URL, "http://shop.test:8000/y"),
        ([{"url": "{s}://shop.test:8000/z", "variables": {"s": {"default": "http"}}}], URL, "http://shop.test:8000/z"),
        ([{"url": "/{v}", "variables": {"v": {"enum": ["z"]}}}], URL, "http://shop.test:8000/z"),
        ([{"url": "{unknown}"}], URL, "http://shop.test:8000"),
        ([{"url": "http://localhost:9/api"}], URL, "http://shop.test:8000/api"),
        ([{"url": "http://user:pw@shop.test:8000/x?y=1#z"}], URL, "http://shop.test:8000/x"),
        ([{"url": "http://shop.test:8000/a/../../b"}], URL, "http://shop.test:8000/b"),
        ([{"url": "//shop.test:8000/x"}], URL, "http://shop.test:8000/x"),
        ([{"url": "ftp://shop.test"}, {"url": 7}, 7, {"url": ""}, {"url": "http://[::1"}], URL, "http://shop.test:8000"),
    ],
)  # fmt: skip
def test_operations_live_at_the_documents_server_on_the_documents_origin(
    servers: Any, url: str, base: str
) -> None:
    more = {} if servers is None else {"servers": servers}
    (tool,) = read(document({"/a": {"get": operation("a")}}, **more), url=url).tools
    assert tool.handle.base == base


def test_a_server_on_another_host_is_told() -> None:
    imported = read(document({"/a": {"get": operation("a")}}, servers=[{"url": "http://localhost:9/api"}]))
    assert "http://localhost:9" in imported.warnings[0]


def test_an_operations_own_server_wins_over_the_paths_over_the_documents() -> None:
    paths = {
        "/a": {
            "servers": [{"url": "/p"}],
            "get": operation("a", servers=[{"url": "/o"}]),
            "post": operation("b"),
        }
    }
    known = tools(document(paths, servers=[{"url": "/d"}]))
    assert (known["a"].handle.base, known["b"].handle.base) == (
        "http://shop.test:8000/o",
        "http://shop.test:8000/p",
    )


def test_a_document_without_servers_lives_where_the_endpoint_is() -> None:
    (tool,) = read(document({"/a": {"get": operation("a")}}), base="http://shop.test:8000/shop").tools
    assert tool.handle.base == "http://shop.test:8000/shop"


def test_a_document_on_disk_is_called_at_its_own_server() -> None:
    paths = {
        "/a": {"get": operation("a")},
        "/b": {"get": operation("b", servers=[{"url": "https://b.test"}])},
    }
    imported = read(document(paths, servers=[{"url": "https://api.test/v1"}]), url=None)
    assert [tool.handle.base for tool in imported.tools] == ["https://api.test/v1"]
    assert len(imported.left_out) == 1


def test_a_document_on_disk_without_a_server_is_refused() -> None:
    with pytest.raises(SourceError, match="full URL"):
        read(document({"/a": {"get": operation("a")}}, servers=[{"url": "/v1"}]), url=None)


@pytest.mark.parametrize(
    ("more", "base"),
    [
        (
            {"host": "shop.test:8000", "basePath": "/v1", "schemes": ["https", "http"]},
            "http://shop.test:8000/v1",
        ),
        ({"host": "shop.test:8000", "basePath": "v1"}, "http://shop.test:8000/v1"),
        ({"basePath": "/v1"}, "http://shop.test:8000/v1"),
        ({"host": "elsewhere.test", "basePath": "/v1", "schemes": ["https"]}, "http://shop.test:8000/v1"),
        ({}, "http://shop.test:8000"),
    ],
)
def test_swagger_2_has_its_own_way_to_name_a_server(more: Any, base: str) -> None:
    imported = read({"swagger": "2.0", "paths": {"/a": {"get": operation("a")}}, **more})
    assert imported.tools[0].handle.base == base


BEARER, BASIC = ("header", "Authorization", "bearer"), ("header", "Authorization", "basic")
KEY = ("query", "key", "key")


@pytest.mark.parametrize(
    ("scheme", "endpoint", "expected"),
    [
        (None, {"token": "t"}, [BEARER]),
        (None, {"username": "u", "password": "p"}, [BASIC]),
        (None, {}, []),
        ({"type": "http", "scheme": "bearer"}, {"token": "t"}, [BEARER]),
        ({"type": "http", "scheme": "Bearer"}, {"username": "u", "password": "p"}, [BEARER]),
        ({"type": "http", "scheme": "basic"}, {"username": "u", "password": "p"}, [BASIC]),
        ({"type": "http", "scheme": "basic"}, {"token": "t"}, [BEARER]),
        ({"type": "apiKey", "in": "query", "name": "key"}, {"token": "t"}, [KEY]),
        ({"type": "apiKey", "in": "query", "name": "key"}, {"username": "u", "password": "p"}, [KEY]),
        ({"type": "apiKey", "in": "header", "name": "Authorization"}, {"token": "t"}, [BEARER]),
        ({"type": "apiKey", "in": "header", "name": "Host"}, {"token": "t"}, [BEARER]),
        ({"type": "apiKey", "in": "header", "name": "x\r\ny"}, {"token": "t"}, [BEARER]),
        ({"type": "oauth2", "flows": {}}, {"token": "t"}, [BEARER]),
        ({"type": "openIdConnect"}, {"token": "t"}, [BEARER]),
        ({"type": "mutualTLS"}, {"token": "t"}, [BEARER]),
    ],
)
def test_credentials_go_where_the_document_wants_them(
    scheme: Any, endpoint: Any, expected: list[Any]
) -> None:
    more = {"components": {"securitySchemes": {"s": scheme}}, "security": [{"s": []}]} if scheme else {}
    credentials = Credentials.of(Endpoint(label="x", url="x", **endpoint))
    (tool,) = read(document({"/a": {"get": operation("a")}}, **more), credentials=credentials).tools
    assert [(s.location, s.name, s.kind) for s in tool.handle.secrets] == expected


def test_the_first_alternative_that_can_be_met_is_taken() -> None:
    schemes = {
        "basic": {"type": "http", "scheme": "basic"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
        "app": {"type": "apiKey", "in": "cookie", "name": "app"},
    }
    security = [{}, {"unknown": []}, {"basic": []}, {"key": [], "app": []}]
    (tool,) = read(
        document({"/a": {"get": operation("a", security=security)}}, components={"securitySchemes": schemes}),
        credentials=Credentials(token="t"),
    ).tools
    assert [secret.name for secret in tool.handle.secrets] == ["X-Key", "app"]


@pytest.mark.parametrize("name", ["X-API-Key", "api_key", "access_token", "X-Auth-Token"])
@pytest.mark.parametrize("location", ["header", "query", "cookie"])
def test_a_parameter_that_is_a_key_by_its_name_is_filled_and_not_shown(location: str, name: str) -> None:
    parameters = [{"name": name, "in": location, "required": True, "schema": {"type": "string"}}]
    paths = {"/a": {"get": operation("a", parameters=parameters)}}
    (tool,) = read(document(paths), credentials=Credentials(token="t")).tools
    assert tool.parameters == {"type": "object", "properties": {}}
    assert name in [secret.name for secret in tool.handle.secrets]


def test_the_secrets_themselves_are_nowhere_in_a_tool() -> None:
    (tool, *_) = read(
        "shop.yaml", credentials=Credentials(username="me", password="pw-canary", token="t-canary")
    ).tools
    assert "canary" not in repr(tool)
    assert "canary" not in repr(Credentials(password="pw-canary", token="t-canary"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_document_with_anything_anywhere_is_imported(data: st.DataObject) -> None:
    parsed = json.loads(json.dumps(parse_document((SAMPLES / "shop.yaml").read_bytes())))
    if data.draw(st.booleans()):
        parsed = json.loads((SAMPLES / "swagger.json").read_text())
    for _ in range(data.draw(st.integers(1, 4))):
        _spoil(parsed, data)
    try:
        imported = read(parsed)
    except SourceError:
        return
    for tool in imported.tools:
        jsonschema_rs.Draft202012Validator(tool.parameters, offline=True)
        assert tool.name and tool.description and tool.parameters["type"] == "object"
        assert tool.handle.base.startswith("http://shop.test:8000")


ODD = st.sampled_from(
    [None, True, 7, "", "x", "#", "#/paths", "#/components/schemas/Item", [], {}, [7], {"a": 7}, [None]]
)


def _spoil(value: Any, data: st.DataObject) -> None:
    """Put something odd in one place of a document."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(value[key], dict | list) and value[key] and data.draw(st.integers(0, 4)):
            value = value[key]
            continue
        value[key] = deepcopy(
            data.draw(ODD | st.builds(lambda ref: {"$ref": ref}, st.sampled_from(["#", "#/paths", "x.yaml"])))
        )
        return
