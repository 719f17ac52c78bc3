"""The keys of the file in the console: made, shown once, rotated, revoked, and who comes in meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.integration.console.api import CHANGE, api
from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.gate import DEADLINE
from tests.support.upstream import whole
from toolway.access.keys import hash_of

HOSTILE = "</bdi><img src=x onerror=hacked=1>"
KEYS = {
    "operator": {"hash": hash_of("operators-key"), "routes": ["console", "chat"]},
    HOSTILE: {"hash": hash_of("b"), "group": "family", "expires": "2020-01-01", "requests": "60/minute"},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mcp.json"
    groups = json.dumps({"family": {"tools": ["get_*"]}})
    path.write_text(
        f'{{\n  "mcpServers": {{}}, // mine\n  "groups": {groups},\n  "keys": {json.dumps(KEYS)}\n}}\n'
    )
    return path


@pytest.fixture
def app(config: Path, tmp_path: Path) -> Iterator[AppServer]:
    audit = tmp_path / "audit.jsonl"
    with app_server(whole({"content": "yes"}), config=str(config), audit=str(audit)) as server:
        yield server


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("Key of the console").fill(key)
    page.get_by_role("button", name="Sign in").click()


def secret_on(page: Page) -> str:
    """The secret that the dialog shows, which is then closed."""
    dialog = page.get_by_role("dialog")
    secret = dialog.get_by_role("region", name="the key").inner_text()
    expect(dialog.get_by_role("button", name="Copy the key")).to_be_visible()
    assert violations(page) == []
    dialog.get_by_role("button", name="Done").click()
    expect(dialog).to_have_count(0)
    assert secret not in page.content()
    return secret


def opens(app: AppServer, secret: str) -> bool:
    return app.ask(headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_a_key_is_made_rotated_and_revoked_and_comments_survive(app, config, browser, tmp_path):
    with console_page(browser, f"{app.url}/#/keys/add") as page:
        sign_in(page, "operators-key")
        page.get_by_label("Name").fill("ben")
        page.get_by_label("Group").select_option("family")
        page.get_by_label("Last day").fill("2999-12-31")
        page.get_by_role("checkbox", name="rest").uncheck()
        assert violations(page) == []
        page.get_by_role("button", name="Make the key").click()
        secret = secret_on(page)
        row = page.get_by_role("row", name="ben")
        expect(row).to_contain_text("group family")
        expect(row).to_contain_text("until 2999-12-31")
        expect(row).to_contain_text("never")
        expect(page.get_by_role("row", name="operator")).to_contain_text("now")
        assert opens(app, secret)
        row.get_by_role("button", name="Rotate ben").click()
        page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
        other = secret_on(page)
        assert [opens(app, secret), opens(app, other)] == [False, True]
        expect(row).to_contain_text("now")
        row.get_by_role("button", name="Revoke ben").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(row).to_have_count(0)
        assert not opens(app, other)
    text = config.read_text()
    assert "// mine" in text
    assert secret not in text
    assert json.loads(text.replace(" // mine", ""))["keys"].keys() == KEYS.keys()
    lines = [json.loads(line) for line in lines_of(tmp_path / "audit.jsonl", 3)]
    assert [(line["event"], line["toolway.by"], line["toolway.changed"]) for line in lines] == [
        ("key.added", "operator", "ben"),
        ("key.rotated", "operator", "ben"),
        ("key.revoked", "operator", "ben"),
    ]


def lines_of(log: Path, number: int) -> list[str]:
    """The lines of the audit log about keys, once so many are written."""
    end = time.monotonic() + DEADLINE
    while True:
        written = log.read_text().splitlines() if log.exists() else []
        if len(lines := [line for line in written if '"event":"key.' in line]) >= number:
            return lines
        assert time.monotonic() < end, written


def test_who_rotates_the_key_they_came_in_with_stays_in(app, browser):
    with console_page(browser, f"{app.url}/#/keys") as page:
        sign_in(page, "operators-key")
        page.get_by_role("button", name="Rotate operator").click()
        page.get_by_role("dialog").get_by_role("button", name="Rotate").click()
        secret = secret_on(page)
        page.reload()
        expect(page.get_by_role("row", name="operator")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        sign_in(page, secret)
        expect(page.get_by_role("row", name="operator")).to_be_visible()


def test_the_first_key_closes_toolway_but_not_in_front_of_who_makes_it(browser, tmp_path):
    config = tmp_path / "mcp.json"
    config.write_text('{"mcpServers": {}}')
    with app_server(whole({"content": "yes"}), config=str(config)) as app:
        refused = api(app, "POST", "keys", json={"name": "a", "rights": {"routes": ["chat"]}})
        assert refused.status_code == 400
        assert "TOOLWAY_CONSOLE_KEYS" in refused.json()["error"]["message"]
        assert opens(app, "none")
        with console_page(browser, f"{app.url}/#/keys") as page:
            expect(page.get_by_text("There are no keys: who can reach Toolway may use it.")).to_be_visible()
            page.get_by_role("link", name="Add a key").click()
            expect(page.get_by_text("It is the first key")).to_be_visible()
            expect(page.get_by_role("checkbox", name="console")).to_be_checked()
            page.get_by_label("Name").fill("me")
            page.get_by_role("button", name="Make the key").click()
            secret = secret_on(page)
            expect(page.get_by_role("row", name="me")).to_be_visible()
            page.reload()
            expect(page.get_by_role("row", name="me")).to_be_visible()
        assert [opens(app, "none"), opens(app, secret)] == [False, True]
        assert api(app, "GET", "keys").status_code == 401


def test_nothing_is_asked_between_the_first_key_and_its_session(browser, tmp_path):
    config = tmp_path / "mcp.json"
    config.write_text('{"mcpServers": {}}')
    with app_server(config=str(config)) as app, console_page(browser, f"{app.url}/#/keys") as page:

        def answer_late(route):
            if route.request.method != "POST":
                return route.continue_()
            asked = route.request
            answer = httpx2.post(asked.url, content=asked.post_data, headers=asked.headers)
            page.evaluate(
                "new Promise((seen) => {"
                " document.dispatchEvent(new Event('visibilitychange'));"
                " location.hash = '#/servers';"
                " setTimeout(seen, 300); })"
            )
            return route.fulfill(status=answer.status_code, headers=dict(answer.headers), body=answer.text)

        page.get_by_role("link", name="Add a key").click()
        page.get_by_label("Name").fill("me")
        page.route("**/console/api/keys", answer_late)
        page.get_by_role("button", name="Make the key").click()
        secret_on(page)
        expect(page.get_by_role("row", name="me")).to_be_visible()


def test_a_key_that_is_made_when_the_session_is_over_leads_to_the_sign_in(app, browser):
    with browser.new_context() as tab:  # no `console_page`: browsers write each 401 into their log
        page = tab.new_page()
        page.goto(f"{app.url}/#/keys")
        sign_in(page, "operators-key")
        page.get_by_role("link", name="Add a key").click()
        page.get_by_label("Name").fill("phone")
        tab.clear_cookies()
        page.get_by_role("button", name="Make the key").click()
        sign_in(page, "operators-key")
        page.get_by_label("Name").fill("phone")
        page.get_by_role("button", name="Make the key").click()
        secret_on(page)


def test_the_list_shows_what_each_may_and_hostile_names_as_text(app, browser):
    with console_page(browser, f"{app.url}/#/keys", color_scheme="dark") as page:
        sign_in(page, "operators-key")
        row = page.get_by_role("row", name=HOSTILE)
        expect(row).to_contain_text("expired 2020-01-01")
        expect(row).to_contain_text("requests: 60/minute")
        expect(row).to_contain_text("group: tools: get_*")
        expect(page.get_by_role("row", name="operator")).to_contain_text("console, chat")
        assert "sha256" not in page.content()
        assert violations(page) == []
        page.set_viewport_size(PHONE)
        assert not is_wider_than_the_window(page)
        assert violations(page) == []
        assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "keys", {"name": "operator"}, 400, "There is a key operator already"),
        ("POST", "keys", {"name": " "}, 400, "a name has 1 to 100 visible characters"),
        ("POST", "keys", {"name": 7}, 400, "name must be a text"),
        ("POST", "keys", {"name": "a", "rights": {"hash": "sha256:1"}}, 400, "without a hash"),
        ("POST", "keys", {"name": "a", "rights": {"group": "famly"}}, 400, "there is no group 'famly'"),
        ("POST", "keys", {"name": "a", "rights": {"routes": ["chats"]}}, 400, "'chats' is none of"),
        ("POST", "keys/none/rotate", {}, 404, "There is no key of this name"),
        ("DELETE", "keys/none", {}, 404, "There is no key of this name"),
    ],
)
def test_what_cannot_be_is_told_and_changes_nothing(
    app, config, method: str, path: str, body: dict[str, Any], status: int, said: str
):
    before = config.read_text()
    signed_in = api(app, "POST", "session", json={"key": "operators-key"})
    headers = {"x-toolway-console": signed_in.json()["token"]}
    url = f"{app.url}/console/api/{path}"
    for given, expected in ((CHANGE, 403), (headers, status)):
        answer = httpx2.request(method, url, json=body, headers=given, cookies=dict(signed_in.cookies))
        assert answer.status_code == expected
    assert said in answer.json()["error"]["message"]
    assert config.read_text() == before


def test_where_the_file_may_not_be_changed_its_keys_may_not_either(config):
    with app_server(config=str(config), console_edit=False) as app:
        signed_in = api(app, "POST", "session", json={"key": "operators-key"})
        headers = {"x-toolway-console": signed_in.json()["token"]}
        url = f"{app.url}/console/api/keys"
        answer = httpx2.post(url, json={"name": "a"}, headers=headers, cookies=dict(signed_in.cookies))
        assert answer.status_code == 403
        assert httpx2.get(url, cookies=dict(signed_in.cookies)).json()["may_edit"] is False
