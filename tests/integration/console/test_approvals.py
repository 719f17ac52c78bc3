"""Calls that wait for a person, answered in the console."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.integration.console.api import api
from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.tools import ToolService
from tests.support.upstream import call_stream, text_stream, tool_call

HOSTILE = "<img src=x onerror=hacked=1>"
RULES = [{"tools": ["get_weather"], "effect": "ask", "reason": f"It costs money {HOSTILE}"}]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[AppServer]:
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {}, "rules": RULES}))
    with app_server(tools=ToolService(), config=str(config), approval_wait=60) as server:
        yield server


def asked(app: AppServer) -> tuple[threading.Thread, list[httpx2.Response]]:
    answers: list[httpx2.Response] = []
    call = tool_call(arguments=json.dumps({"city": HOSTILE}))
    app.set_replies(call_stream(call), text_stream("Done."))
    agent = {"user-agent": "a program <b>"}
    thread = threading.Thread(target=lambda: answers.append(app.ask(stream=True, headers=agent)))
    thread.start()
    return thread, answers


def test_a_call_that_waits_is_approved_and_runs(app, browser):
    thread, answers = asked(app)
    with console_page(browser, f"{app.url}/#/approvals", viewport=PHONE) as page:
        card = page.get_by_role("article", name="Call of get_weather")
        expect(card).to_contain_text(HOSTILE)
        expect(card).to_contain_text("It costs money")
        expect(card).to_contain_text("rule 1")
        expect(card).to_contain_text("somebody without a key with a program <b>")
        expect(card).to_contain_text("chat completions, in this conversation")
        assert violations(page) == []
        assert not is_wider_than_the_window(page)
        assert not app.tools.calls
        card.get_by_role("button", name="Approve").click()
        expect(page.get_by_text("No call waits for an approval.")).to_be_visible()
        thread.join(20)
        assert app.tools.calls == [("get_weather", {"city": HOSTILE})]
        assert b"Done." in answers[0].content
        assert page.evaluate("window.hacked") is None


def test_what_waits_is_told_on_every_page_and_leads_to_its_conversation(app, browser):
    with console_page(browser, f"{app.url}/#/tools") as page:
        waiting = page.get_by_role("link", name="Approvals")
        expect(waiting).to_have_text("Approvals")
        thread, _ = asked(app)
        expect(waiting).to_have_text("Approvals1")
        waiting.click()
        page.get_by_role("link", name="this conversation").click()
        expect(page.locator("td.what a")).to_have_text(["What is the weather in Paris?"])
        expect(page.locator("tbody .state")).to_have_text("running")
        [one] = api(app, "GET", "approvals").json()["approvals"]
        assert api(app, "POST", f"approvals/{one['id']}", json={"approve": False}).status_code == 200
        thread.join(20)
        expect(waiting).to_have_text("Approvals")
        expect(page.locator("tbody .state")).to_have_text("done")
        app.set_replies(text_stream("Hello."))
        app.ask(stream=True, messages=[{"role": "user", "content": "something else"}])
        page.reload()
        expect(page.locator("td.what a")).to_have_text(["What is the weather in Paris?"])


def test_in_the_playground_a_call_is_answered_where_it_waits(app, browser):
    calls = [tool_call(arguments='{"city": "Rome"}'), tool_call(id="call_2", index=1)]
    app.set_replies(call_stream(*calls), text_stream("It is sunny."))
    with console_page(browser, f"{app.url}/#/playground", viewport=PHONE) as page:
        page.get_by_label("Message").fill("And in Rome?")
        page.keyboard.press("Enter")
        card = page.get_by_role("article", name="Call of get_weather")
        expect(card).to_have_count(2)
        expect(card.first).to_contain_text("Rome")
        expect(card.first).to_contain_text("It costs money")
        assert violations(page) == []
        assert not is_wider_than_the_window(page)
        card.first.get_by_role("button", name="Approve").click()
        expect(card).to_have_count(1)
        assert not app.tools.calls
        card.get_by_label("Reason").fill("not today")
        card.get_by_role("button", name="Refuse").click()
        expect(page.get_by_text("It is sunny.")).to_be_visible()
        expect(page.locator(".call")).to_have_count(2)
        expect(page.locator(".call").last).to_contain_text("not today")
        assert app.tools.calls == [("get_weather", {"city": "Rome"})]
        assert violations(page) == []


def test_a_call_that_is_refused_does_not_run_and_the_model_reads_why(app, browser):
    thread, _ = asked(app)
    with console_page(browser, f"{app.url}/#/approvals") as page:
        page.get_by_label("Reason").fill("too dear")
        page.get_by_role("button", name="Refuse").click()
        expect(page.get_by_text("No call waits for an approval.")).to_be_visible()
        thread.join(20)
    assert not app.tools.calls
    assert "too dear" in json.dumps(app.upstream.seen[-1].json)


def test_a_yes_for_a_conversation_stands_until_it_is_ended(app, browser):
    thread, _ = asked(app)
    with console_page(browser, f"{app.url}/#/approvals") as page:
        page.get_by_label("How far a yes reaches").select_option("conversation")
        page.get_by_role("button", name="Approve").click()
        thread.join(20)
        standing = page.get_by_role("region", name="Standing yeses")
        expect(standing).to_contain_text("get_weather")
        assert violations(page) == []
        standing.get_by_role("button", name="End").click()
        expect(standing).to_have_count(0)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("approvals/none", {"approve": True}, 404),
        ("approvals/none", {"approve": "yes"}, 400),
        ("approvals/none", {"approve": True, "always": "ever"}, 400),
        ("approvals/none", {"approve": True, "reason": 7}, 400),
    ],
)
def test_what_is_no_answer_is_refused(app, path: str, body: dict[str, Any], status: int):
    headers = {"x-toolway-console": "open"}
    assert httpx2.post(f"{app.url}/console/api/{path}", json=body, headers=headers).status_code == status
    assert httpx2.delete(f"{app.url}/console/api/grants/none", headers=headers).status_code == 404
