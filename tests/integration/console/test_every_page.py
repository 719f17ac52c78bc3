"""Every page of the console, on a phone in the dark and on a desk: accessible, no wider than the window, named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from tests.support.app_server import AppServer, app_server
from tests.support.browser import (
    DESK,
    PHONE,
    broken_words,
    console_page,
    is_wider_than_the_window,
    violations,
)
from tests.support.upstream import call_stream, json_reply, text_stream, tool_call

PAGES = {
    "": "Overview",
    "conversations": "Conversations",
    "servers": "Servers",
    "servers/add": "Add a server",
    "servers/file": "The file of the servers",
    "servers/gone": "gone",
    "tools": "Tools",
    "tools/get_weather": "get_weather",
    "playground": "Playground",
    "approvals": "Approvals",
    "keys": "Keys",
    "keys/add": "Add a key",
    "audit": "Audit",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    folder: Path = tmp_path_factory.mktemp("console")
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"gone": {"command": "no-such-program"}}}))
    with app_server(config=str(config), audit=str(folder / "audit.jsonl")) as server:
        server.upstream.models = json_reply({"data": [{"id": "qwen3-8b"}]})
        server.set_replies(call_stream(tool_call()), text_stream("It is cloudy."))
        server.ask(stream=True)
        yield server


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESK, "light")], ids=["phone", "desk"])
def test_every_page_is_accessible_and_fits(app, browser, size, scheme):
    with console_page(browser, app.url, viewport=size, color_scheme=scheme) as page:
        for path, title in PAGES.items():
            page.goto(f"{app.url}/#/{path}")
            expect(page.locator("h1")).to_have_text(title)
            expect(page).to_have_title(f"{title} – Toolway")
            expect(page.locator("main .card, main textarea").first).to_be_visible()
            assert violations(page) == [], path
            assert not is_wider_than_the_window(page), path
            assert broken_words(page) == [], path


def test_on_a_phone_every_page_is_one_or_two_presses_away(app, browser):
    with console_page(browser, app.url, viewport=PHONE) as page:
        bar = page.get_by_role("navigation", name="Pages")
        expect(bar.get_by_role("link")).to_have_text(["Overview", "Conversations", "Playground", "Approvals"])
        bar.get_by_role("button", name="More").click()
        expect(bar.get_by_role("link")).to_have_count(8)
        assert violations(page) == []
        bar.get_by_role("link", name="Keys").click()
        expect(page.locator("h1")).to_have_text("Keys")
        expect(bar.get_by_role("link")).to_have_count(4)
        box = bar.get_by_role("link").last.bounding_box()
        assert box
        assert box["x"] + box["width"] <= PHONE["width"]


@pytest.mark.parametrize(
    ("path", "title", "asked"),
    [("keys", "Keys", "keys"), ("servers/gone/edit", "Edit gone", "config"), ("audit", "Audit", "audit?")],
)
def test_a_page_that_waits_for_toolway_says_so(app, browser, path, title, asked):
    with console_page(browser, app.url) as page:
        waiting: list[Route] = []
        is_held = True

        def hold(route: Route) -> None:
            if is_held:
                waiting.append(route)
            else:
                route.continue_()

        page.route(re.compile(f"/api/{re.escape(asked)}"), hold)
        page.goto(f"{app.url}/#/{path}")
        expect(page.locator("h1")).to_have_text(title)
        expect(page.get_by_text("Loading…")).to_be_visible()
        assert violations(page) == []
        is_held = False
        for route in waiting:  # the page asks again for each piece of news that comes meanwhile
            route.continue_()
        expect(page.locator("main .card").first).to_be_visible()
        expect(page.get_by_text("Loading…")).to_have_count(0)
