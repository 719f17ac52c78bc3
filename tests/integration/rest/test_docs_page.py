"""The page at /docs in a real Chromium: it lists the tools, says what each does, filters and calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.app_server import AppServer, app_server
from tests.support.browser import console_page, running_browser, violations


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as browser:
        yield browser


def test_tools_are_listed_with_what_they_do_and_called(browser: Any, app: AppServer):
    with console_page(browser, f"{app.url}/docs") as page:
        measure = page.locator("details", has=page.get_by_text("measure", exact=True))
        expect(measure.locator("summary span")).to_have_text("Measures.")
        page.get_by_label("Filter the tools").fill("weather")
        expect(measure).to_be_hidden()
        weather = page.locator("details", has=page.get_by_text("get_weather", exact=True))
        weather.locator("summary").click()
        weather.get_by_label("Arguments as JSON").fill('{"city": "Paris"}')
        weather.get_by_role("button", name="Call").click()
        expect(weather.locator("pre")).to_contain_text('"sky": "cloudy"')
        assert not violations(page)


def test_where_there_are_keys_one_is_asked_for_and_used(browser: Any):
    with app_server(api_keys="docs-key") as app, browser.new_context() as tab:
        page = tab.new_page()
        page.goto(f"{app.url}/docs")
        expect(page.get_by_text("Enter an API key.")).to_be_visible()
        page.get_by_label("API key").fill("docs-key")
        page.get_by_label("API key").press("Enter")
        expect(page.get_by_text("get_weather", exact=True)).to_be_visible()
