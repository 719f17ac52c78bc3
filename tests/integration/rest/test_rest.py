"""/openapi.json, POST /tools/{name} and /docs, as REST clients and mcpo's use them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import orjson
import pytest
from openapi_spec_validator import validate
from starlette.requests import Request
from starlette.responses import Response

from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.servers import running
from tests.support.tools import Raw, ToolService
from tests.unit.tools.mcp.servers import good, rich
from tests.unit.tools.openapi.service import Service, document, json_body, operation


def call(app: AppServer, path: str, body: Any = b"", **options: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{app.url}/tools/{path}", content=content, timeout=DEADLINE, **options)


def problem(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    return found


def test_the_document_is_valid_and_has_each_tool_under_its_own_name(app: AppServer):
    document = httpx2.get(f"{app.url}/openapi.json").json()
    validate(document)
    assert document["openapi"] == "3.1.0"
    named = {path: item["post"]["operationId"] for path, item in document["paths"].items()}
    assert {"measure", "echo", "get_weather"} <= set(named.values())
    assert all(path == f"/tools/{name}" for path, name in named.items())
    measure = document["paths"]["/tools/measure"]["post"]
    assert (measure["summary"], measure["description"], measure["tags"]) == (
        "Measure a thing",
        "Measures.",
        ["rich"],
    )
    assert measure["x-mcp"]["annotations"] == rich.MEASURE["annotations"]
    schemas = document["components"]["schemas"]
    assert schemas["measure"]["properties"]["what"] == {"$ref": "#/components/schemas/measure/$defs/thing"}
    assert schemas["measure.result"]["required"] == ["metres"]
    assert set(measure["responses"]) == {"200", "400", "404", "422", "502", "504"}


@pytest.mark.parametrize("path", ["weather/openapi.json", "openapi.json"])
def test_documents_below_tools_are_called_below_themselves(app: AppServer, path: str):
    document = httpx2.get(f"{app.url}/tools/{path}").json()
    validate(document)
    root = document["servers"][0]["url"]
    assert root == f"/tools/{path}".removesuffix("/openapi.json")
    assert "/get_weather" in document["paths"]
    assert httpx2.post(f"{app.url}{root}/get_weather", json={"city": "Rome"}).json()["city"] == "Rome"


def test_a_profile_has_its_tools_and_no_others(app: AppServer):
    document = httpx2.get(f"{app.url}/tools/weather/openapi.json").json()
    assert list(document["paths"]) == ["/get_weather"]
    assert document["info"]["title"] == "Toolway: weather"
    assert document["info"]["description"] == "The tools of the profile weather behind this Toolway."
    assert "Runs list_cities" not in orjson.dumps(document).decode()
    assert problem(call(app, "weather/list_cities"), 404)["detail"].startswith("There is no tool")
    assert "those that are: rich, searched, weather" in problem(call(app, "other/get_weather"), 404)["detail"]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("get_weather", {"city": "Paris"}, {"city": "Paris", "sky": "cloudy"}),
        ("get_weather", b' {"city": "Paris"} ', {"city": "Paris", "sky": "cloudy"}),
        ("list_cities", b"", ["Paris", "Rome"]),
        ("list_cities", {}, ["Paris", "Rome"]),
        ("measure", {"what": "room"}, {"metres": 2.5}),
        ("echo", {"value": 123}, 123),
        ("echo", {"value": "words"}, "'words'"),
        ("good__echo", {"value": 2**70}, 2**70),
    ],
)
def test_a_call_answers_with_what_the_tool_returned(app: AppServer, name: str, arguments: Any, expected: Any):
    answer = call(app, name, arguments)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == expected


def test_images_are_bytes_alone_and_data_uris_among_others(app: AppServer):
    image = call(app, "image")
    assert image.headers["content-type"] == "image/png"
    assert image.content == base64.b64decode(good.PIXEL)
    words, audio, link, note, blob = call(app, "everything").json()
    assert (words, note) == ("words", "inside")
    assert audio == "data:audio/wav;base64,AAAA"
    assert blob == f"data:image/png;base64,{good.PIXEL}"
    assert link["uri"] == "file:///a.txt"


def test_errors_are_problems_with_the_tools_words(app: AppServer):
    failed = problem(call(app, "fail"), 502)
    assert (failed["detail"], failed["tool"]) == ("this did not work", "fail")
    assert "Did you mean get_weather" in problem(call(app, "get_whether", {}), 404)["detail"]
    missing = problem(call(app, "get_weather", {"town": 1}), 422)
    assert missing["errors"][0]["pointer"] == "/city"
    assert "required" in missing["errors"][0]["detail"]
    wrong = problem(call(app, "measure", {"what": "roof"}), 422)
    assert wrong["errors"][0]["pointer"] == "/what"
    assert problem(call(app, "echo", b"{"), 400)["detail"].startswith("The request body is not valid JSON")
    assert problem(call(app, "echo", [1]), 400)
    assert problem(call(app, "echo", {"value": "x" * 600_000}), 413)
    assert problem(call(app, "a/b/c", {}), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/tools/echo", "POST"),
        ("POST", "/tools/weather/openapi.json", "GET, HEAD"),
        ("POST", "/openapi.json", "GET"),
        ("PUT", "/docs/", "GET"),
        ("PATCH", "/mcp", "DELETE, GET, POST"),
        ("GET", "/v1/messages", "POST"),
        ("GET", "/v1/messages/count_tokens", "POST"),
    ],
)
def test_a_method_that_a_route_has_not_is_told_those_that_it_has(
    app: AppServer, method: str, path: str, allowed: str
):
    answer = httpx2.request(method, f"{app.url}{path}")
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert "use " in answer.text


PLACE = {"name": "place", "in": "path", "required": True, "schema": {"type": "string"}}
COUNT = {"name": "count", "in": "query", "schema": {"type": "integer"}}
LARGE = 2**100 + 1


async def large(request: Request) -> Response:
    """What was asked with an integer beyond 64 bits, and one more."""
    body = (await request.body()).decode()
    asked = {"body": body, "query": request.url.query, "path": request.url.path}
    return Response(json.dumps({**asked, "answer": -LARGE}), media_type="application/json")


@pytest.fixture(scope="module")
def exact() -> Iterator[AppServer]:
    """In front of a service with a path to fill in, and with integers in a query and in a body."""
    schema = json_body({"type": "object", "properties": {"count": {"type": "integer"}}})
    paths = {
        "/at/{place}": {"get": operation("at", parameters=[PLACE, COUNT])},
        "/add": {"post": operation("add", requestBody=schema)},
    }
    with running(Service(document(paths), large), lifespan="off") as url, app_server(endpoints=url) as app:
        app.until_ready()
        yield app


def test_integers_beyond_64_bits_are_exact_both_ways(exact: AppServer, app: AppServer):
    for name, asked in (("add", b'{"count":%d}' % LARGE), ("at", b'{"place":"x","count":%d}' % LARGE)):
        said = call(exact, name, asked)
        assert said.status_code == 200
        found = json.loads(said.text)
        assert found["answer"] == -LARGE
        assert str(LARGE) in found["body"] + found["query"]
    assert call(app, "echo", b'{"value": %d}' % LARGE).text == str(LARGE)


@pytest.mark.parametrize("place", ["..", ".", "a/../b", "%2e%2e", "..;x"])
def test_a_path_that_leads_elsewhere_is_the_clients_fault(exact: AppServer, place: str):
    told = problem(call(exact, "at", {"place": place}), 422)
    assert "may not be `.` or `..`" in told["detail"]


CITY = {"city": "Paris"}


async def hang(_: Any) -> None:
    await anyio.sleep_forever()


def test_a_tool_that_takes_too_long_is_a_timeout_and_hears_that_nobody_waits():
    service = ToolService(hang=hang)
    with app_server(tools=service, tool_timeout=0.2) as app:
        detail = problem(call(app, "hang", CITY), 504)["detail"]
        assert detail == "hang did not answer in time and was given up"
        service.departures.wait()


async def test_a_client_that_leaves_stops_the_tool():
    begun = Gate()

    async def report_and_hang(_: Any) -> None:
        await begun()
        await anyio.sleep_forever()

    begun.open()
    service = ToolService(hang=report_and_hang)
    with app_server(tools=service) as app:
        async with httpx2.AsyncClient() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post(f"{app.url}/tools/hang", json=CITY))
            await anyio.to_thread.run_sync(begun.wait_for_arrival)
            tasks.cancel_scope.cancel()
        await anyio.to_thread.run_sync(service.departures.wait)


def test_keys_guard_the_service_and_the_page_asks_for_one():
    with app_server(api_keys="sesame") as app:
        refused = problem(httpx2.get(f"{app.url}/openapi.json"), 401)
        assert "API key" in refused["detail"]
        assert problem(call(app, "get_weather", {"city": "Paris"}), 401)
        headers = {"Authorization": "Bearer sesame"}
        assert call(app, "get_weather", {"city": "Paris"}, headers=headers).status_code == 200
        document = httpx2.get(f"{app.url}/openapi.json", headers=headers).json()
        validate(document)
        assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
        assert httpx2.get(f"{app.url}/docs").status_code == 200


def test_browsers_of_allowed_origins_may_ask_before_they_call():
    with app_server(cors_origins="http://localhost:3000") as app:
        asked = {
            "Origin": "http://localhost:3000",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = httpx2.options(f"{app.url}/tools/get_weather", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
        problem(call(app, "get_weather", {}, headers={"Origin": "http://evil.example"}), 403)
        problem(call(app, "get_weather", {}, headers={"Host": "evil.example"}), 403)


def test_the_page_of_documentation_loads_nothing_from_elsewhere(app: AppServer):
    page = httpx2.get(f"{app.url}/docs")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self';")
    assert "http://" not in page.text
    assert "https://" not in page.text
    for element in ("script", "style"):
        content = page.text.partition(f"<{element}>")[2].partition(f"</{element}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy


async def html(_: Any) -> Raw:
    return Raw(b"<h1>hello</h1>", kind=b"text/html")


def test_a_web_page_of_a_tool_is_text_and_no_page_of_ours():
    with app_server(tools=ToolService(html=html)) as app:
        answer = call(app, "html", CITY)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == "<h1>hello</h1>"
