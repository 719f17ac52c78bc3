"""The whole path in a browser: nothing configured, a server added by the form, a call approved, the answer read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.app_server import app_server
from tests.support.browser import console_page, violations
from tests.support.upstream import call_stream, json_reply, text_stream, tool_call

FOCUSED = "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText).trim()"
RULES = [{"tools": ["add"], "effect": "ask", "reason": "Sums are private."}]
ADD = tool_call("add", '{"a": 2, "b": 3}')


def go_to(page: Page, name: str) -> None:
    """Press Tab until the link or button of this name has the focus, then Enter."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == name:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"the keyboard does not reach {name}")


def focus_on(page: Page, name: str) -> None:
    """Press Tab until the field with this label has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.labels?.[0]?.innerText.trim() ?? ''") == name:
            return
    raise AssertionError(f"the keyboard does not reach {name}")


def test_from_nothing_to_an_approved_call_with_the_keyboard_alone(browser, tmp_path: Path):
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {}, "rules": RULES}))
    with app_server(endpoints="", config=str(config)) as app, console_page(browser, app.url) as page:
        app.upstream.models = json_reply({"data": [{"id": "qwen3-8b"}]})
        expect(page.get_by_role("region", name="Three steps to the first tool call")).to_be_visible()
        go_to(page, "Add a server")
        expect(page.get_by_role("heading", name="Add a server")).to_be_visible()
        focus_on(page, "Name")
        page.keyboard.type("calculator")
        focus_on(page, "command *")
        page.keyboard.type(sys.executable)
        for number, argument in enumerate(["-m", "toolway.demo.calculator"], 1):
            go_to(page, "Add")
            page.get_by_role("textbox", name=f"args {number}").focus()
            page.keyboard.type(argument)
        go_to(page, "Save")
        expect(page.locator("h1")).to_have_text("calculator")
        expect(page.locator("h1 + .state")).to_have_text("ready")
        page.keyboard.press("Shift+Tab")
        go_to(page, "Playground")
        app.set_replies(call_stream(ADD), text_stream("That is **5**."))
        focus_on(page, "Message")
        page.keyboard.type("What is 2 + 3?")
        page.keyboard.press("Enter")
        card = page.get_by_role("article", name="Call of add")
        expect(card).to_contain_text("Sums are private.")
        assert violations(page) == []
        page.locator("h1").focus()
        go_to(page, "Approve")
        expect(page.get_by_text("That is 5.")).to_be_visible()
        expect(page.locator(".call")).to_contain_text("5")
        page.locator("h1").focus()
        go_to(page, "What happened")
        expect(page.locator("td.what a")).to_have_text(["What is 2 + 3?"])
        assert violations(page) == []
    assert json.loads(config.read_text())["mcpServers"]["calculator"]["args"] == [
        "-m",
        "toolway.demo.calculator",
    ]
    assert json.loads(app.upstream.seen[-1].body)["messages"][-1]["role"] == "tool"
