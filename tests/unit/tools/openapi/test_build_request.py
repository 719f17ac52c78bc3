"""What a real service receives when a tool is called: nothing may lead a call away or set what is not its own."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from tests.support.servers import running
from tests.unit.tools.openapi.service import Service, document, json_body, operation, reading, serving
from toolway.tools.openapi.build_request import InvalidArguments, Request, build_request
from toolway.tools.openapi.document import parse_document
from toolway.tools.openapi.importer import import_document
from toolway.tools.openapi.operation import Credentials, Operation, Parameter

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture(scope="module")
def shop() -> Iterator[str]:
    with running(Service(parse_document((SAMPLES / "shop.yaml").read_bytes()))) as url:
        yield url


@pytest.fixture(scope="module")
def old_shop() -> Iterator[str]:
    with running(Service(json.loads((SAMPLES / "swagger.json").read_text()))) as url:
        yield url


async def sent(url: str, tool: str, arguments: dict[str, Any], **endpoint: Any) -> dict[str, Any]:
    async with reading(url, **endpoint) as watch:
        return await watch.sent(tool, **arguments)


async def one(
    paths: dict[str, Any], arguments: dict[str, Any], *, endpoint: Any = None, **more: Any
) -> dict[str, Any]:
    """Call the only tool of a document with these paths."""
    async with serving(document(paths, **more), **(endpoint or {})) as watch:
        (name,) = watch.tools
        return await watch.sent(name, **arguments)


def parameter(name: str, place: str, **more: Any) -> dict[str, Any]:
    return {"/a": {"get": operation("a", parameters=[{"name": name, "in": place, "schema": {}, **more}])}}


async def test_a_call_goes_to_the_operations_own_method_path_and_server(shop: str) -> None:
    seen = await sent(
        shop, "replaceItem", {"id": "a/b c%é", "query_id_2": 7, "body_id": "x", "query_id": "y"}
    )
    assert (seen["method"], seen["path"], seen["query"]) == ("PUT", "/v2/items/a%2Fb%20c%25%C3%A9", "id=7")
    assert json.loads(seen["body"]) == {"id": "x", "query_id": "y"}
    assert seen["headers"]["content-type"] == "application/json"


async def test_every_kind_of_parameter_reaches_its_place(shop: str) -> None:
    arguments = {
        "page": 2,
        "tag": ["a&b", "c"],
        "filter": {"price": {"gt": 3}},
        "X-Trace": "t1",
        "session": "s;1",
    }
    seen = await sent(shop, "listItems", arguments)
    assert parse_qsl(seen["query"]) == [
        ("page", "2"),
        ("tag", "a&b"),
        ("tag", "c"),
        ("filter[price][gt]", "3"),
    ]
    assert seen["headers"]["x-trace"] == "t1"
    assert seen["headers"]["cookie"] == "session=s%3B1"
    assert seen["body"] == ""


async def test_arguments_that_are_not_given_are_not_sent(shop: str) -> None:
    seen = await sent(shop, "listItems", {"page": None})
    assert seen["query"] == ""
    assert "cookie" not in seen["headers"]


async def test_a_json_body_is_nested_as_the_arguments_are(shop: str) -> None:
    arguments = {"title": "Böx", "price": None, "parts": [{"title": "lid"}], "page": 1, "colour": "red"}
    seen = await sent(shop, "addItem", arguments)
    body = json.loads(seen["body"].encode("latin-1"))
    assert body == {"title": "Böx", "price": None, "parts": [{"title": "lid"}], "colour": "red"}
    assert seen["query"] == "page=1"


async def test_an_array_is_a_whole_body(shop: str) -> None:
    assert (await sent(shop, "batch", {"body": [1, 2**70]}))["body"] == "[1,1180591620717411303424]"


async def test_text_is_a_whole_body(shop: str) -> None:
    seen = await sent(shop, "note", {"body": "hällo"})
    assert seen["body"].encode("latin-1").decode() == "hällo"
    assert seen["headers"]["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "text", ["AAH/", "data:;base64,AAH/", "data:application/x;base64,AAH_", "data:,%00%01%ff", "AA H/\n"]
)
async def test_bytes_come_from_base64_or_a_data_uri(shop: str, text: str) -> None:
    seen = await sent(shop, "blob", {"body": text})
    assert seen["body"] == "\x00\x01\xff"
    assert seen["headers"]["content-type"] == "application/octet-stream"


async def test_an_optional_body_that_is_not_given_is_not_sent(shop: str) -> None:
    seen = await sent(shop, "blob", {})
    assert seen["body"] == ""
    assert "content-type" not in seen["headers"]


async def test_a_form_is_urlencoded_by_its_encoding(shop: str) -> None:
    arguments = {
        "items": ["a", "b"],
        "address": {"city": "X", "lines": ["1", "2"]},
        "extra": {"k": [1]},
        "note": "a=b&c",
    }
    seen = await sent(shop, "order", arguments)
    assert seen["headers"]["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qsl(seen["body"]) == [
        ("items", "a"), ("items", "b"), ("address[city]", "X"), ("address[lines][]", "1"), ("address[lines][]", "2"),
        ("extra", '{"k":[1]}'), ("note", "a=b&c"),
    ]  # fmt: skip


async def test_files_and_fields_are_parts_of_a_multipart_body(shop: str) -> None:
    image = base64.b64encode(b"\x89PNG").decode()
    arguments = {
        "id": "1",
        "photo": image,
        "more": [f"data:image/png;name=a%20b.png;base64,{image}", "data:text/plain,hi"],
        "caption": 'x"\r\ny',
        "size": {"width": 3},
    }
    seen = await sent(shop, "addPhoto", arguments)
    head = f"Content-Type: {seen['headers']['content-type']}\r\n\r\n"
    parts = message_from_bytes((head + seen["body"]).encode("latin-1")).get_payload()
    assert [
        (
            part.get_param("name", None, "content-disposition"),
            part.get_filename(),
            part["content-type"],
            part.get_payload(decode=True),
        )
        for part in parts
    ] == [
        ("photo", "photo", "image/png", b"\x89PNG"),
        ("more", "a b.png", "image/png", b"\x89PNG"),
        ("more", "more", "text/plain", b"hi"),
        ("caption", None, None, b'x"\r\ny'),
        ("size", None, "application/json", b'{"width":3}'),
    ]


async def test_a_file_that_is_neither_base64_nor_a_data_uri_is_a_tool_error(shop: str) -> None:
    async with reading(shop) as watch:
        result = await watch.call("addPhoto", id="1", photo="holiday.png!")
    assert result.is_error
    assert "`photo` is neither base64 nor a data: URI" in result.text


async def test_swagger_2_collections_are_joined_as_it_says(old_shop: str) -> None:
    lists = {name: ["a,b", "c"] for name in ("csv", "ssv", "pipes", "multi")}
    seen = await sent(old_shop, "find", {"name": "x", "limit": 3, **lists})
    assert seen["path"] == "/old/items/x"
    assert seen["query"] == "limit=3&csv=a%2Cb,c&ssv=a%2Cb%20c&pipes=a%2Cb%7Cc&multi=a%2Cb&multi=c"


async def test_swagger_2_bodies_and_forms_are_sent(old_shop: str) -> None:
    async with reading(old_shop) as watch:
        stored = await watch.sent("store", name="x", body_name="y")
        renamed = await watch.sent("rename", name="x", to="z", tags=["1", "2"])
        uploaded = await watch.sent("upload", name="x", file="data:,hi", note="n")
    assert stored["body"] == '{"name":"y"}'
    assert renamed["body"] == "to=z&tags=1&tags=2"
    assert 'name="file"; filename="file"' in uploaded["body"]


@pytest.mark.parametrize(
    ("style", "explode", "value", "query"),
    [
        (None, None, ["a", "b"], "p=a&p=b"),
        ("form", False, ["a,", "b"], "p=a%2C,b"),
        ("form", True, {"x": 1, "y": True}, "x=1&y=true"),
        ("form", False, {"x": 1, "y": True}, "p=x,1,y,true"),
        ("spaceDelimited", False, ["a", "b"], "p=a%20b"),
        ("pipeDelimited", False, ["a", "b"], "p=a%7Cb"),
        ("deepObject", True, {"x": {"y": "1"}, "z": [1]}, "p%5Bx%5D%5By%5D=1&p%5Bz%5D%5B%5D=1"),
        ("deepObject", True, {"z": [{"a": 1}]}, "p%5Bz%5D%5B0%5D%5Ba%5D=1"),
        (None, None, 1.5, "p=1.5"),
        (None, None, False, "p=false"),
        (None, None, "", "p="),
        (None, None, [], ""),
        ("form", False, [], ""),
    ],
)
async def test_a_query_parameter_is_written_in_its_style(
    style: Any, explode: Any, value: Any, query: str
) -> None:
    more = {k: v for k, v in {"style": style, "explode": explode}.items() if v is not None}
    assert (await one(parameter("p", "query", **more), {"p": value}))["query"] == query


@pytest.mark.parametrize(
    ("style", "explode", "value", "path"),
    [
        ("simple", False, ["a", "b/c"], "/a,b%2Fc"),
        ("simple", True, {"x": "1/", "y": 2}, "/x=1%2F,y=2"),
        ("simple", False, {"x": 1}, "/x,1"),
        ("label", False, ["a", "b"], "/.a,b"),
        ("label", True, ["a", "b"], "/.a.b"),
        ("matrix", False, "v", "/;p=v"),
        ("matrix", False, ["a", "b"], "/;p=a,b"),
        ("matrix", True, ["a", "b"], "/;p=a;p=b"),
        ("matrix", True, {"x": 1}, "/;x=1"),
    ],
)
async def test_a_path_parameter_is_written_in_its_style(
    style: str, explode: bool, value: Any, path: str
) -> None:
    described = {
        "name": "p",
        "in": "path",
        "required": True,
        "style": style,
        "explode": explode,
        "schema": {},
    }
    seen = await one({"/{p}": {"get": operation("a", parameters=[described])}}, {"p": value})
    assert seen["path"] == path


async def test_a_parameter_with_content_is_json() -> None:
    described = {"name": "p", "in": "query", "content": {"application/json": {"schema": {}}}}
    paths = {"/a": {"get": operation("a", parameters=[described])}}
    assert parse_qsl((await one(paths, {"p": {"a": ["b"]}}))["query"]) == [("p", '{"a":["b"]}')]


async def test_reserved_characters_stay_where_they_are_allowed_but_never_end_the_value() -> None:
    seen = await one(parameter("p", "query", allowReserved=True), {"p": "http://x/?a=1&b#c+d"})
    assert seen["query"] == "p=http://x/?a%3D1%26b%23c%2Bd"


async def test_a_header_parameter_takes_lists_and_objects() -> None:
    seen = await one(parameter("X-P", "header", explode=True), {"X-P": {"a": 1, "b": "c d"}})
    assert seen["headers"]["x-p"] == "a=1,b=c d"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\x00b", "日本", "a\x85b", "a\ud800"])
async def test_a_header_value_that_is_none_is_a_tool_error(value: str) -> None:
    async with serving(document(parameter("X-P", "header"))) as watch:
        result = await watch.call("a", **{"X-P": value})
    assert result.is_error


@pytest.mark.parametrize(
    "value",
    [
        "..",
        ".",
        "../admin",
        "a/../b",
        "%2e%2e",
        "%252e%252e%252fx",
        "..\\x",
        "..;",
        "..;a/b",
        "",
        None,
        [],
        ".. /x",
    ],
)
async def test_a_path_value_that_would_move_the_call_is_a_tool_error(value: Any) -> None:
    async with serving(document({"/files/{p}": {"get": operation("a")}})) as watch:
        result = await watch.call("a", p=value)
    assert result.is_error
    assert "path" in result.text


async def test_dots_that_only_together_make_a_segment_are_refused() -> None:
    async with serving(document({"/files/{a}{b}/x": {"get": operation("a")}})) as watch:
        assert (await watch.call("a", a=".", b=".")).is_error
        assert not (await watch.call("a", a="v.", b="1..2")).is_error


SCHEMES = {
    "header": {"type": "apiKey", "in": "header", "name": "X-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "key"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic"},
}


async def with_scheme(scheme: str, **endpoint: Any) -> dict[str, Any]:
    """The request of a call whose arguments try everything that is not theirs."""
    stolen = [
        {"name": name, "in": place, "schema": {}}
        for name in ("X-Key", "key", "Authorization")
        for place in SCHEMES
    ]
    anything = {
        "name": "anything",
        "in": "query",
        "style": "form",
        "explode": True,
        "schema": {"type": "object"},
    }
    in_cookie = {**anything, "name": "crumbs", "in": "cookie"}
    evil = dict.fromkeys(("X-Key", "x-key", "key", "KEY", "Authorization"), "evil")
    return await one(
        {
            "/a": {
                "post": operation("a", parameters=[*stolen, anything, in_cookie], requestBody=json_body({}))
            }
        },
        {**evil, "anything": evil, "crumbs": evil},
        endpoint=endpoint,
        components={"securitySchemes": {"s": SCHEMES[scheme]}},
        security=[{"s": []}],
    )


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_credentials_are_put_in_last_and_no_argument_takes_their_place(scheme: str) -> None:
    seen = await with_scheme(scheme, username="me", password="s3cret/=")
    basic = base64.b64encode(b"me:s3cret/=").decode()
    assert seen["headers"].get("authorization") == {
        "bearer": "Bearer s3cret/=",
        "basic": f"Basic {basic}",
    }.get(scheme)
    assert seen["headers"].get("x-key") in (
        {"header": "s3cret/="}.get(scheme),
        "evil" if scheme != "header" else None,
    )
    if scheme == "query":
        assert [v for k, v in parse_qsl(seen["query"]) if k.lower() == "key"] == ["s3cret/="]
    if scheme == "cookie":
        crumbs = [crumb.split("=", 1) for crumb in seen["headers"]["cookie"].split("; ")]
        assert [unquote(value) for name, value in crumbs if name.lower() == "key"] == ["s3cret/="]


async def test_without_credentials_their_place_stays_empty() -> None:
    seen = await with_scheme("query")
    assert "key" not in dict(parse_qsl(seen["query"]))


async def test_mcpo_gets_its_bearer_key_whether_or_not_its_document_asks(shop: str) -> None:
    paths = {"/a": {"post": operation("a")}}
    assert (await one(paths, {}, endpoint={"token": "k"}))["headers"]["authorization"] == "Bearer k"
    guarded = {"components": {"securitySchemes": {"HTTPBearer": SCHEMES["bearer"]}}}
    paths["/a"]["post"]["security"] = [{"HTTPBearer": []}]
    seen = await one(paths, {}, endpoint={"username": "user", "password": "k"}, **guarded)
    assert seen["headers"]["authorization"] == "Bearer k"


async def test_a_call_without_body_has_none() -> None:
    seen = await one({"/get-env": {"post": operation("tool_get_env_post")}}, {})
    assert (seen["body"], seen["headers"]["content-length"]) == ("", "0")


async def test_a_required_body_of_optional_members_is_an_empty_object() -> None:
    paths = {"/a": {"post": operation("a", requestBody=json_body({"properties": {"x": {}}}))}}
    assert (await one(paths, {}))["body"] == "{}"


# properties, against the request as it is built ---------------------------------------------------------------------

BASE = "http://127.0.0.1:8000/api/v1"
SECRET = Credentials(token="the-token")
TEXT = st.text(max_size=30) | st.sampled_from(
    [
        "..",
        "../..",
        "%2e%2e/",
        "//evil.test/x",
        "http://evil.test",
        "a?b#c",
        "@evil.test",
        "\\\\evil.test",
        ":80",
        "a\r\nb",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
STYLES = st.sampled_from(
    ["form", "simple", "label", "matrix", "deepObject", "spaceDelimited", "pipeDelimited"]
)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    locations = draw(st.lists(st.sampled_from(["query", "header", "cookie"]), max_size=4))
    parameters = [
        Parameter(
            argument=f"p{index}",
            name=f"P{index}" if place == "header" else draw(TEXT),
            location=place,
            style=draw(STYLES),
            explode=draw(st.booleans()),
            allow_reserved=draw(st.booleans()),
            as_json=draw(st.booleans()),
        )
        for index, place in enumerate(locations)
    ]
    path = Parameter(
        argument="x",
        name="x",
        location="path",
        style=draw(STYLES),
        explode=draw(st.booleans()),
        as_json=draw(st.booleans()),
    )
    template = draw(st.sampled_from(["/{x}", "/a/{x}/b", "/a.{x}", "/{x}:go", "/a/../{x}"]))
    raw = {
        "paths": {"/a": {"get": {"operationId": "a"}}},
        "components": {"securitySchemes": {"s": draw(st.sampled_from(list(SCHEMES.values())))}},
        "security": [{"s": []}],
    }
    credentials = Credentials(username="u", password="p", token="the-token")
    made = import_document(
        {"openapi": "3.1.0", **raw}, server="s", url=f"{BASE}/openapi.json", credentials=credentials
    )
    known: Operation = made.tools[0].handle
    return replace(known, base=BASE, path=template, parameters=(path, *parameters))


def built(known: Operation, arguments: dict[str, Any]) -> Request | None:
    try:
        return build_request(known, arguments, Credentials(username="u", password="p", token="the-token"))
    except InvalidArguments:
        return None


@settings(max_examples=300, deadline=None)
@given(known=operations(), arguments=st.dictionaries(st.sampled_from(["x", "p0", "p1", "p2", "p3"]), VALUES))
def test_no_arguments_lead_a_request_away(known: Operation, arguments: dict[str, Any]) -> None:
    request = built(known, arguments)
    if request is None:
        return
    assert (request.url.scheme, request.url.host, request.url.port) == ("http", "127.0.0.1", 8000)
    assert request.url.user is None
    assert request.url.raw_path.startswith("/api/v1/")
    assert URL(str(request.url)).path.startswith("/api/v1/"), "nor when a server normalises it"
    assert request.url.raw_path.count("/") == 2 + known.path.count("/"), "a value never adds a segment"
    path = request.url.raw_path
    for _ in range(5):
        assert not {".", ".."} & set(path.replace("\\", "/").split("/"))
        path = unquote(path)
    assert request.url.raw_fragment == ""
    assert str(request.url).isascii()


@settings(max_examples=200, deadline=None)
@given(known=operations(), arguments=st.dictionaries(st.sampled_from(["x", "p0", "p1", "p2", "p3"]), VALUES))
def test_no_arguments_break_out_of_a_header_or_take_a_credentials_place(
    known: Operation, arguments: dict[str, Any]
) -> None:
    request = built(known, {"x": "a", **arguments})
    if request is None:
        return
    for name, value in request.headers.items():
        assert name.isascii() and not set(value) & set("\r\n\0")
        value.encode("latin-1")
    (secret,) = known.secrets
    value = Credentials(username="u", password="p", token="the-token").value(secret)
    if secret.location == "header":
        assert [v for k, v in request.headers.items() if k.lower() == secret.name.lower()] == [value]
    elif secret.location == "query":
        found = [
            v
            for k, v in parse_qsl(request.url.raw_query_string, keep_blank_values=True)
            if k.lower() == "key"
        ]
        assert found == [value]
    else:
        crumbs = [crumb.partition("=") for crumb in request.headers["Cookie"].split("; ")]
        assert [text for name, _, text in crumbs if unquote(name).lower() == "key"] == [value]


def test_what_arrives_is_what_was_checked() -> None:
    """The request line of a real server, for values that have broken other gateways."""

    async def main() -> None:
        with running(Service(document({"/files/{p}/meta": {"get": operation("a")}}))) as url:
            async with reading(url) as watch:
                for value in (
                    "a/b",
                    "a%2Fb",
                    "?x=1",
                    "#frag",
                    "a;b",
                    "ü/ü",
                    "a b",
                    "%00",
                    "http://evil.test/",
                    "...",
                    "~",
                ):
                    seen = await watch.sent("a", p=value)
                    assert seen["path"].startswith("/files/") and seen["path"].endswith("/meta")
                    assert seen["path"].count("/") == 3
                    assert unquote(seen["path"]) == f"/files/{value}/meta"
                    assert seen["query"] == ""

    anyio.run(main)


def test_arguments_nested_without_end_are_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    in_query = Parameter(argument="p", name="p", location="query", style="form")
    known = Operation(method="GET", base=BASE, path="/a", parameters=(in_query,))
    with pytest.raises(InvalidArguments):
        build_request(known, {"p": deep}, SECRET)
