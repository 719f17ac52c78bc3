"""The audit log in the console: the newest entries, those that fit, page by page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.integration.console.api import api
from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.upstream import call_stream, text_stream, tool_call

HOSTILE = "<img src=x onerror=hacked=1> \u202etxt"
RULES = [{"tools": ["list_cities"], "effect": "deny", "reason": HOSTILE}]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def app(log: Path, tmp_path: Path) -> Iterator[AppServer]:
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {}, "rules": RULES}))
    with app_server(config=str(config), audit=str(log)) as server:
        yield server


def entry(number: int) -> str:
    time = f"2026-11-{1 + number // 24:02}T{number % 24:02}:00:00.000+00:00"
    decision = "deny" if number % 10 == 0 else "allow"
    members = {"time": time, "event": "call", "toolway.key.name": f"key {number % 3}"}
    return json.dumps({**members, "gen_ai.tool.name": f"tool_{number}", "toolway.decision": decision})


def fill(log: Path, number: int) -> None:
    lines = [entry(n) for n in range(number)]
    Path(f"{log}.1").write_text("\n".join(lines[: number // 2]) + "\n")
    log.write_text("\n".join(lines[number // 2 :]) + "\n")


def test_what_was_called_and_decided_is_seen_the_newest_first(app, browser):
    app.set_replies(
        call_stream(tool_call(), tool_call("list_cities", "{}", "call_2", 1)), text_stream("Done.")
    )
    app.ask(stream=True)
    with console_page(browser, f"{app.url}/#/audit") as page:
        entries = page.get_by_role("region", name="Entries")
        expect(entries).to_contain_text("get_weather")
        denied = entries.get_by_role("row").filter(has_text="list_cities")
        expect(denied).to_contain_text("denied")
        expect(denied).to_contain_text("onerror=hacked=1> ⟨202e⟩txt")
        denied.get_by_role("button").click()
        expect(entries).to_contain_text("toolway.arguments.sha256")
        assert violations(page) == []
        expect(page.get_by_role("link", name="Its conversation")).to_be_visible()
        page.get_by_label("Decision").select_option("allow")
        expect(denied).to_have_count(0)
        page.set_viewport_size(PHONE)
        assert not is_wider_than_the_window(page)
        assert violations(page) == []
        assert page.evaluate("window.hacked") is None
        entries.get_by_role("button").first.click()
        page.get_by_role("link", name="Its conversation").click()
        expect(page.locator("td.what a")).to_have_text(["What is the weather in Paris?"])


def test_entries_are_found_and_loaded_page_by_page_also_from_files_set_aside(app, log, browser):
    fill(log, 250)
    with console_page(browser, f"{app.url}/#/audit") as page:
        rows = page.get_by_role("region", name="Entries").locator("tbody tr")
        expect(rows).to_have_count(100)
        expect(rows.first).to_contain_text("tool_249")
        page.get_by_role("button", name="Show older ones").click()
        expect(rows).to_have_count(200)
        page.get_by_role("button", name="Show older ones").click()
        expect(rows).to_have_count(250)
        expect(rows.last).to_contain_text("tool_0")
        page.get_by_label("Tool").fill("24")
        expect(rows).to_have_count(13)
        page.get_by_label("Decision").select_option("deny")
        expect(rows).to_have_count(1)


def test_entries_are_found_by_each_of_their_members(app, log):
    fill(log, 250)

    def found(**query: str) -> list[str]:
        answer = api(app, "GET", "audit", params={"limit": "500", **query}).json()
        return [one["gen_ai.tool.name"] for one in answer["entries"]]

    assert len(found()) == 250
    assert found(tool="tool_1?", key="key 0") == ["tool_18", "tool_15", "tool_12"]
    assert found(since="2026-11-11T08") == ["tool_249", "tool_248"]
    assert found(until="2026-11-01T02") == ["tool_1", "tool_0"]
    assert found(event="approval.*") == []
    first = api(app, "GET", "audit", params={"limit": "2"}).json()
    assert found(before=first["next"], limit="1") == ["tool_247"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("two", "-1", "0", "", "1.5", "²", "+1")),
        *(
            (name, value)
            for name in ("since", "until")
            for value in ("zz", "yesterday", "2026-1", "2026-11-29Q")
        ),
        *(("before", value) for value in ("zz", "1-", "²-1")),
    ],
)
def test_a_query_that_means_nothing_is_refused(app, log, name: str, value: str):
    fill(log, 1)
    answer = api(app, "GET", "audit", params={name: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize("limit", ["501", "1000000000", "9" * 5000])
def test_a_limit_above_the_most_is_refused(app, log, limit: str):
    fill(log, 1)
    answer = api(app, "GET", "audit", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
    assert "from 1 to 500" in answer.json()["error"]["message"]


def test_without_a_log_the_page_says_how_to_have_one(browser):
    with app_server() as app, console_page(browser, f"{app.url}/#/audit") as page:
        expect(page.get_by_text("There is no audit log.")).to_be_visible()
        assert violations(page) == []


def test_a_log_that_cannot_be_read_is_told(app, log):
    log.unlink(missing_ok=True)
    log.mkdir()
    assert "cannot be read" in api(app, "GET", "audit").json()["error"]["message"]
