"""Who gets into the console: over HTTP, without a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.app_server import AppServer, app_server
from toolway.access.keys import hash_of

CONSOLE_KEY, API_KEY = "console-key-of-the-test", "api-key-of-the-test"
BROWSER = {"accept": "text/html,application/xhtml+xml"}
CHANGE = {"x-toolway-console": "open"}


@pytest.fixture(scope="module")
def opened() -> Iterator[AppServer]:
    """No keys, on loopback."""
    with app_server() as app:
        yield app


@pytest.fixture(scope="module")
def closed() -> Iterator[AppServer]:
    with app_server(api_keys=API_KEY, console_keys=CONSOLE_KEY) as app:
        yield app


def api(app: AppServer, method: str, path: str, **options: object) -> httpx2.Response:
    return httpx2.request(method, f"{app.url}/console/api/{path}", **options)  # type: ignore[arg-type]


def signed_in(app: AppServer) -> tuple[str, str, dict[str, str]]:
    """The header of the cookie, the token and the cookie."""
    answer = api(app, "POST", "session", json={"key": CONSOLE_KEY}, headers=CHANGE)
    return answer.headers["set-cookie"], answer.json()["token"], dict(answer.cookies)


def test_a_browser_gets_the_page_and_a_program_what_it_got_before(opened):
    page = httpx2.get(opened.url, headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert httpx2.get(opened.url).json()["openai_base_url"] == "/v1"


def test_this_machines_user_needs_no_key_while_there_are_none(opened):
    assert api(opened, "GET", "overview").json()["servers"][0]["label"]


@pytest.mark.parametrize("key", [CONSOLE_KEY, "wrong"])
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_that_comes_as_a_header_is_told_how_it_becomes_a_session(closed, header, key):
    sent = {header: f"Bearer {key}" if header == "authorization" else key}
    answer = api(closed, "GET", "approvals", headers=sent)
    assert answer.status_code == 401
    assert "but a session: POST /console/api/session" in answer.json()["error"]["message"]
    assert "session" not in api(closed, "GET", "approvals").json()["error"]["message"]


def test_a_program_signs_in_as_the_documentation_says(closed):
    form = {"content-type": "application/x-www-form-urlencoded"}
    with httpx2.Client(base_url=f"{closed.url}/console/api/") as client:
        body = json.dumps({"key": CONSOLE_KEY})
        token = client.post("session", content=body, headers={**CHANGE, **form}).json()["token"]
        assert client.get("approvals").json() == {"approvals": []}
        change = {"x-toolway-console": token, **form}
        answer = client.post("approvals/none", content=json.dumps({"approve": True}), headers=change)
        assert "There is no approval 'none'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"x-forwarded-for": "10.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
def test_what_other_pages_and_proxies_send_is_refused(opened, headers):
    assert api(opened, "GET", "overview", headers=headers).status_code == 403


def test_an_origin_that_may_use_the_api_may_not_use_the_console():
    with app_server(cors_origins="http://chat.example") as app:
        headers = {"origin": "http://chat.example"}
        assert httpx2.get(f"{app.url}/readyz", headers=headers).status_code < 500
        assert api(app, "GET", "overview", headers=headers).status_code == 403


def test_a_change_needs_the_header_that_no_other_page_can_send(opened):
    assert api(opened, "DELETE", "session").status_code == 403
    assert api(opened, "DELETE", "session", headers=CHANGE).status_code == 200


def test_with_keys_the_page_opens_and_says_nothing_without_a_session(closed):
    assert httpx2.get(closed.url, headers=BROWSER).status_code == 200
    assert httpx2.get(f"{closed.url}/console/main.js").status_code == 200
    assert httpx2.get(closed.url).status_code == 401
    assert api(closed, "GET", "overview").status_code == 401
    assert api(closed, "GET", "session").json()["is_in"] is False


@pytest.mark.parametrize("key", [API_KEY, "", "x" * 1000, "\\ud800", None, 7])
def test_only_a_key_of_the_console_opens_it(closed, key):
    answer = api(closed, "POST", "session", json={"key": key}, headers=CHANGE)
    assert answer.status_code in (400, 401)
    assert "set-cookie" not in answer.headers


def test_a_key_of_the_console_is_none_for_the_api(closed):
    headers = {"authorization": f"Bearer {CONSOLE_KEY}"}
    assert httpx2.get(f"{closed.url}/v1/models", headers=headers).status_code == 401


def test_a_session_is_a_cookie_that_no_script_reads_and_changes_need_its_token(closed):
    header, token, cookies = signed_in(closed)
    assert {"HttpOnly", "SameSite=Strict", "Path=/console/"} <= set(header.split("; "))
    assert api(closed, "GET", "overview", cookies=cookies).status_code == 200
    for wrong in ({}, CHANGE, {"x-toolway-console": "x"}):
        assert api(closed, "DELETE", "session", cookies=cookies, headers=wrong).status_code == 403
    _, _, others = signed_in(closed)
    ended = api(closed, "DELETE", "session", cookies=cookies, headers={"x-toolway-console": token})
    assert ended.status_code == 200
    assert api(closed, "GET", "overview", cookies=cookies).status_code == 401, "it is ended for good"
    assert api(closed, "GET", "overview", cookies=others).status_code == 200, "others are not"


@pytest.mark.parametrize("value", ["", "1", "99999999999.x.y", "a.b.c", "999999999999999999999.x.y", ".."])
def test_a_made_up_cookie_is_no_session(closed, value):
    assert api(closed, "GET", "overview", cookies={"toolway_console": value}).status_code == 401


def test_keys_cannot_be_guessed_fast():
    with app_server(console_keys=CONSOLE_KEY) as app:
        answers = [api(app, "POST", "session", json={"key": str(n)}, headers=CHANGE) for n in range(12)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60


def test_without_a_key_of_its_own_the_console_of_a_server_with_keys_stays_closed():
    with app_server(api_keys=API_KEY) as app:
        said = api(app, "GET", "session").json()
        assert not said["is_in"]
        assert not said["can_sign_in"]
        assert "`toolway keys add op --routes console`, or set TOOLWAY_CONSOLE_KEYS" in said["reason"]
        headers = {"authorization": f"Bearer {API_KEY}"}
        assert api(app, "GET", "overview", headers=headers).status_code == 401


def test_a_key_of_the_file_opens_it_if_it_names_the_console(tmp_path):
    keys = {
        "operator": {"hash": hash_of("operators-key"), "routes": ["console"]},
        "client": {"hash": hash_of("clients-key")},
        "late": {"hash": hash_of("late-key"), "routes": ["console"], "expires": "2020-01-01"},
    }
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
    with app_server(config=str(config)) as app:
        for key, status in (("operators-key", 200), ("clients-key", 401), ("late-key", 401)):
            assert api(app, "POST", "session", json={"key": key}, headers=CHANGE).status_code == status
        assert api(app, "GET", "overview").status_code == 401


def test_it_can_be_switched_off():
    with app_server(console=False) as app:
        assert httpx2.get(app.url, headers=BROWSER).json()["name"] == "toolway"
        assert api(app, "GET", "session").status_code == 404


@pytest.mark.parametrize("path", ["nothing", "session/x", "../overview", "%2e%2e/overview", "overview/"])
def test_what_is_not_there_is_a_404(opened, path):
    assert api(opened, "GET", path).status_code == 404


@pytest.mark.parametrize(
    "path", ["/console/../../settings.py", "/console/%2e%2e/app.py", "/console/static/x", "/console/"]
)
def test_only_the_files_of_the_page_are_served(opened, path):
    assert httpx2.get(opened.url + path).status_code == 404


def test_the_document_of_the_api_names_each_route_and_what_changes_need(opened):
    found = api(opened, "GET", "openapi.json").json()
    paths = found["paths"]
    assert {
        "/overview",
        "/conversations/{name}",
        "/servers/{name}/restart",
        "/tools/{name}/call",
        "/openapi.json",
    } <= paths.keys()
    for path, operations in paths.items():
        for method, operation in operations.items():
            parameters = {(one["in"], one["name"]) for one in operation["parameters"]}
            assert operation["summary"].endswith(".")
            assert (("header", "x-toolway-console") in parameters) == (method != "get")
            assert (("path", "name") in parameters) == ("{name}" in path)
            url = path.replace("{name}", "none").removeprefix("/")
            if method != "get":
                assert api(opened, method.upper(), url).status_code in (400, 403), (method, path)
            elif path != "/events":
                assert api(opened, "GET", url).status_code in (200, 404), path
    identities = [operation["operationId"] for one in paths.values() for operation in one.values()]
    assert len(set(identities)) == len(identities)
