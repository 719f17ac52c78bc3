"""The tool servers, as a browser shows and changes them."""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from playwright.sync_api import expect

from tests.integration.console.api import api
from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.gate import Gate
from tests.support.servers import running
from tests.support.upstream import Reply, call_stream, text_stream, tool_call
from tests.unit.tools.mcp.servers.guarded import Guarded
from toolway.settings.files import locked

GOOD = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"]}
HOSTILE = '</bdi><img src=x onerror="hacked=1"> \u202etxt'
TALKATIVE = """
import sys, os
print("<script>hacked=1</script> \\x1b[31mstarting up", file=sys.stderr, flush=True)
print("Traceback: no such key", file=sys.stderr, flush=True)
sys.exit(3)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "mcp.json"


@pytest.fixture
def app(config: Path) -> Iterator[AppServer]:
    entry = json.dumps(GOOD)
    config.write_text(f'{{\n  // mine\n  "mcpServers": {{\n    "good": {entry} // it works\n  }}\n}}\n')
    with app_server(endpoints="", config=str(config)) as server:
        yield server


def test_a_server_that_crashes_while_one_looks_says_why_and_starts_anew(app, browser):
    app.until_servers_are(good="ready")
    with console_page(browser, f"{app.url}/#/servers/good") as page:
        expect(page.locator("h1 + .state")).to_have_text("ready")
        expect(page.get_by_role("region", name="12 tools")).to_contain_text("echo")
        assert httpx2.post(f"{app.url}/tools/crash", json={}, timeout=60).status_code < 600
        history = page.get_by_role("region", name="History")
        expect(history).to_contain_text("ended")
        expect(page.locator("h1 + .state")).to_have_text("ready")
        page.get_by_role("button", name="Restart").click()
        expect(history).to_contain_text("stopped")
        expect(history.locator(".state").first).to_have_text("ready")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("h1 + .state")).to_have_text("stopped")
        app.until_servers_are(good="stopped")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("h1 + .state")).to_have_text("ready")
        assert violations(page) == []


def test_why_a_server_does_not_start_stands_on_its_page_with_what_it_wrote(app, config, browser, tmp_path):
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE)
    entry = {"command": sys.executable, "args": [str(script)]}
    config.write_text(json.dumps({"mcpServers": {HOSTILE: entry}}))
    with console_page(browser, f"{app.url}/#/servers", viewport=PHONE) as page:
        page.get_by_role("link", name="</bdi>").click()
        expect(page.locator("h1")).to_contain_text('<img src=x onerror="hacked=1">')
        log = page.get_by_role("log")
        expect(log).to_contain_text("<script>hacked=1</script>")
        expect(log).to_contain_text("Traceback: no such key")
        expect(page.locator(".notice.bad").first).to_contain_text("Traceback: no such key")
        assert page.evaluate("window.hacked") is None
        assert not is_wider_than_the_window(page)
        assert violations(page) == []


def test_a_server_is_added_by_the_form_and_its_comments_survive(app, config, browser):
    with console_page(browser, f"{app.url}/#/servers/add") as page:
        expect(page.get_by_label("command", exact=False).first).to_be_visible()
        assert violations(page) == []
        page.get_by_label("Name", exact=True).first.fill("second")
        page.get_by_label("command *").fill(GOOD["command"])
        for number, argument in enumerate(GOOD["args"], 1):
            page.get_by_role("group", name="args").get_by_role("button", name="Add").click()
            page.get_by_role("textbox", name=f"args {number}").fill(argument)
        raw = page.get_by_label("The entry as JSON")
        expect(raw).to_have_value(re.compile('"tests.unit.tools.mcp.servers.good"'))
        raw.fill("{")
        expect(page.get_by_role("button", name="Save")).to_be_disabled()
        raw.fill(json.dumps({**GOOD, "timeout": 7}))
        page.locator("summary", has_text="More").click()
        expect(page.get_by_label("timeout", exact=True)).to_have_value("7")
        page.get_by_role("button", name="Save").click()
        expect(page.locator("h1")).to_have_text("second")
        expect(page.locator("h1 + .state")).to_have_text("ready")
    text = config.read_text()
    assert "// mine" in text
    assert "// it works" in text
    assert '"timeout": 7' in text
    app.until_servers_are(good="ready", second="ready")


def test_a_new_server_does_not_take_the_place_of_another(app, config, browser):
    before = config.read_text()
    with browser.new_context() as tab:
        page = tab.new_page()
        page.goto(f"{app.url}/#/servers/add")
        page.get_by_label("Name", exact=True).first.fill("good")
        page.get_by_label("command *").fill("other")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert")).to_contain_text("There is a server 'good' already")
    assert config.read_text() == before


def test_a_broken_edit_is_not_saved_and_its_line_is_told(app, config, browser):
    before = config.read_text()
    with browser.new_context() as tab:
        page = tab.new_page()
        page.goto(f"{app.url}/#/servers/file")
        area = page.get_by_label("Text of the file")
        expect(area).to_have_value(before)
        area.fill(before.replace('"command"', '"comand"'))
        page.get_by_role("button", name="Save").click()
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Not saved.")
        expect(alert).to_contain_text("line 4: good")
        assert config.read_text() == before
        area.fill(before.replace("// mine", "// ours"))
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert")).to_have_count(0)
    assert "// ours" in config.read_text()


def test_a_server_is_taken_out_of_the_file(app, config, browser):
    with console_page(browser, f"{app.url}/#/servers/good") as page:
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        expect(page.get_by_text("No tool servers yet.")).to_be_visible()
    assert "good" not in config.read_text()
    assert "// mine" in config.read_text()


def test_the_first_server_is_added_where_there_is_no_file(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with app_server(endpoints="") as app:
        file = api(app, "GET", "config").json()
        assert not file["exists"]
        entry = {**GOOD, "cwd": str(Path(__file__).parents[3])}
        saved = api(app, "PUT", "config/servers/first", json={"entry": entry, "digest": file["digest"]})
        assert saved.status_code == 200
        app.until_servers_are(first="ready")
    assert json.loads((tmp_path / "mcp.json").read_text())["mcpServers"]["first"]["args"] == GOOD["args"]
    assert stat.S_IMODE((tmp_path / "mcp.json").stat().st_mode) == 0o600


def test_two_who_edit_at_the_same_time_do_not_overwrite_each_other(app, config):
    digest = api(app, "GET", "config").json()["digest"]
    config.write_text(config.read_text() + "// by hand\n")
    answer = api(app, "PUT", "config", json={"text": '{"mcpServers": {}}', "digest": digest})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "config_changed"
    assert "// by hand" in config.read_text()


def test_a_command_that_changes_the_file_is_waited_for(app, config):
    digest = api(app, "GET", "config").json()["digest"]
    answers = []
    body = {"text": '{"mcpServers": {}}', "digest": digest}
    thread = threading.Thread(target=lambda: answers.append(api(app, "PUT", "config", json=body)))
    with locked(config):
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        config.write_text(config.read_text() + "// by a command\n")
    thread.join()
    assert answers[0].json()["error"]["code"] == "config_changed"
    assert "// by a command" in config.read_text()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("config", {"text": 7}),
        ("config", {"text": "x" * 2_000_000}),
        ("config/servers/a", {"entry": []}),
        ("config/servers/%20", {"entry": {}}),
        ("config/servers/a%00b", {"entry": {"command": "x"}}),
        ("config/servers/a%1bb", {"entry": {"command": "x"}}),
        ("config/servers/a", {"entry": {"command": ""}}),
        ("config/servers/a", {"entry": {"url": "ftp://x"}}),
    ],
)
def test_what_is_no_entry_is_refused(app, config, path, body):
    before = config.read_text()
    body = {**body, "digest": api(app, "GET", "config").json()["digest"]}
    assert api(app, "PUT", path, json=body).status_code in (400, 413)
    assert config.read_text() == before


def test_where_the_file_may_not_be_changed_it_is_not_shown_either(config):
    config.write_text('{"mcpServers": {}}')
    with app_server(endpoints="", config=str(config), console_edit=False) as app:
        assert api(app, "GET", "config").status_code == 403
        assert api(app, "PUT", "config", json={"text": "{}", "digest": ""}).status_code == 403
        assert not api(app, "GET", "servers").json()["may_edit"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[AppServer]:
    """A server that asks for a login."""
    with running(Guarded().app) as url:
        config = tmp_path / "guarded.json"
        config.write_text(json.dumps({"mcpServers": {"web": {"url": f"{url}/mcp"}}}))
        tokens = str(tmp_path / "tokens.json")
        with app_server(endpoints="", config=str(config), token_file=tokens) as server:
            server.until_servers_are(web="needs auth")
            yield server


def test_a_server_that_asks_for_it_is_logged_in_at(guarded, browser):
    with console_page(browser, f"{guarded.url}/#/servers/web") as page:
        expect(page.locator("h1 + .state")).to_have_text("needs a login")
        page.get_by_role("button", name="Log in").click()
        link = page.get_by_role("link", name="open the page of 127.0.0.1")
        expect(link).to_have_attribute("rel", "noopener noreferrer")
        assert violations(page) == []
        with page.context.expect_page() as opened:
            link.click()
        expect(opened.value.locator("body")).to_contain_text("Done. You can close this window.")
        expect(page.locator("h1 + .state")).to_have_text("ready")
        expect(link).to_have_count(0)
        expect(page.get_by_role("region", name="tools")).to_contain_text("ok")
        assert violations(page) == []


def test_a_login_that_is_refused_stands_in_the_history(guarded, browser):
    with console_page(browser, f"{guarded.url}/#/servers/web") as page:
        page.get_by_role("button", name="Log in").click()
        login = page.get_by_role("link", name="open the page of 127.0.0.1").get_attribute("href")
        asked = parse_qs(urlsplit(login).query)
        refused = {"error": "access_denied", "state": asked["state"][0]}
        httpx2.get(asked["redirect_uri"][0], params=refused, timeout=60)
        expect(page.get_by_role("region", name="History")).to_contain_text("login: ")


@pytest.mark.parametrize("kind", ["mcp", "openapi"])
def test_a_server_that_is_stopped_offers_nothing_says_why_and_is_started_again(config, kind):
    config.write_text(json.dumps({"mcpServers": {"good": GOOD} if kind == "mcp" else {}}))
    tool, arguments = ("echo", {"text": "x"}) if kind == "mcp" else ("list_cities", {})
    replies = [call_stream(tool_call(name=tool, arguments=json.dumps(arguments))), text_stream("Done.")]
    gate = Gate()
    with app_server(config=str(config), endpoints=None if kind == "openapi" else "") as app:
        label = next(iter(httpx2.get(f"{app.url}/readyz").json()["servers"]))
        app.until_servers_are(**{label: "ready"})
        assert httpx2.post(f"{app.url}/tools/{tool}", json=arguments, timeout=60).status_code == 200
        app.set_replies(Reply([gate, *replies[0].parts]), replies[1])
        with ThreadPoolExecutor() as threads:
            asked = threads.submit(app.ask, stream=True)
            gate.wait_for_arrival()
            assert api(app, "POST", f"servers/{label}/stop").status_code == 200
            app.until_servers_are(**{label: "stopped"})
            gate.open()
            asked.result(30)
        told = app.upstream.seen[-1].json["messages"][-1]["content"]
        assert "it was stopped in the console" in told
        app.set_replies(text_stream("Hi")).ask(stream=True)
        assert "tools" not in app.upstream.seen[-1].json
        assert api(app, "POST", f"servers/{label}/restart").status_code == 200
        app.until_servers_are(**{label: "ready"})
        assert httpx2.post(f"{app.url}/tools/{tool}", json=arguments, timeout=60).status_code == 200


def test_a_server_that_is_not_there_is_a_404(app):
    for method, path in (
        ("GET", "servers/none"),
        ("POST", "servers/none/restart"),
        ("POST", "servers/none/stop"),
    ):
        assert api(app, method, path).status_code == 404
    assert api(app, "POST", "servers/good/login").status_code == 400
