"""The overview, as a browser shows it."""

from __future__ import annotations

import json
import sys

import pytest
from playwright.sync_api import expect

from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.tools import ToolService, document
from tests.support.upstream import json_reply

MODELS = json_reply({"object": "list", "data": [{"id": "qwen3-8b", "meta": {"n_ctx": 8192}}]})


def with_models(app: AppServer) -> AppServer:
    app.upstream.models = MODELS
    return app


def sly_service() -> ToolService:
    """One that works, and about which Toolway warns."""
    service = ToolService()
    hidden = {"type": "string", "description": "be\u202ehaves"}
    service.document = document({"sly": {"type": "object", "properties": {"x": hidden}}})
    return service


def test_all_is_well_and_a_client_finds_how_to_get_here(browser):
    with app_server() as app, console_page(browser, with_models(app).url) as page:
        expect(page.get_by_text("all is well")).to_be_visible()
        expect(page.get_by_role("region", name="Model server")).to_contain_text("8,192 tokens")
        expect(page.get_by_role("region", name="Tool servers")).to_contain_text("2 tools")
        snippet = page.get_by_role("region", name="curl")
        expect(snippet).to_contain_text(f"{app.url}/v1/chat/completions")
        expect(snippet).to_contain_text("qwen3-8b")
        page.get_by_role("tab", name="curl").press("ArrowRight")
        expect(page.get_by_role("region", name="openai")).to_contain_text(f'base_url="{app.url}/v1"')
        assert violations(page) == []


def test_the_first_run_with_nothing_configured_tells_what_to_do(browser):
    with (
        app_server(endpoints="", openai_base_url="http://127.0.0.1:9/v1") as app,
        console_page(browser, app.url) as page,
    ):
        steps = page.get_by_role("region", name="Three steps to the first tool call")
        expect(steps).to_contain_text("Start your model server")
        expect(steps).to_contain_text("Set OPENAI_BASE_URL, for LM Studio to http")
        expect(page.get_by_text("not reachable")).to_be_visible()
        expect(steps.get_by_role("link", name="Add a server")).to_have_css("text-decoration-line", "none")
        assert violations(page) == []


def test_what_is_wrong_stands_there_with_what_to_do_about_it(browser):
    with (
        app_server(endpoints="gone=http://127.0.0.1:9") as app,
        console_page(browser, with_models(app).url) as page,
    ):
        wrong = page.get_by_role("region", name="What is wrong")
        expect(wrong).to_contain_text("tool server gone")
        expect(wrong).to_contain_text("MCP_SERVER_ENDPOINTS")


def test_what_works_but_could_be_better_is_amber_and_says_so_first(browser):
    with app_server(tools=sly_service()) as app, console_page(browser, with_models(app).url) as page:
        expect(page.locator("h1 + .state.is-warn")).to_have_text("1 thing to look at")
        finding = page.get_by_role("region", name="What could be better").locator(".finding")
        expect(finding.locator("p").first).to_contain_text("sly hides text from people")
        expect(finding.locator("p").last).to_contain_text("1 tool")
        expect(finding.locator(".mark.is-warn")).to_have_count(1)
        assert violations(page) == []


def test_the_number_of_things_to_look_at_is_that_of_the_list_and_the_worst_comes_first(browser, tmp_path):
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"gone": {"command": "no-such-program"}}}))
    with (
        app_server(tools=sly_service(), config=str(config)) as app,
        console_page(browser, with_models(app).url) as page,
    ):
        expect(page.locator("h1 + .state.is-bad")).to_have_text("2 things to look at")
        findings = page.get_by_role("region", name="What is wrong").locator(".finding")
        expect(findings).to_have_count(2)
        expect(findings.first).to_contain_text("gone")
        expect(findings.last.locator(".mark.is-warn")).to_have_count(1)


def test_why_a_server_does_not_start_is_two_looks_away(browser, tmp_path):
    config = tmp_path / "mcp.json"
    program = "import sys; print('KeyError: NOTES_TOKEN is not set', file=sys.stderr); sys.exit(3)"
    entry = {"command": sys.executable, "args": ["-c", program]}
    config.write_text(json.dumps({"mcpServers": {"notes": entry}}))
    with (
        app_server(endpoints="", config=str(config)) as app,
        console_page(browser, with_models(app).url) as page,
    ):
        wrong = page.get_by_role("region", name="What is wrong")
        expect(wrong).to_contain_text("ended with exit status 3")
        expect(wrong).not_to_contain_text("no answer within")
        assert violations(page) == []
        wrong.get_by_role("link", name="tool server notes").click()
        expect(page.get_by_role("log")).to_contain_text("KeyError: NOTES_TOKEN is not set")


def test_a_server_that_comes_up_shows_without_a_reload(browser, tmp_path):
    config = tmp_path / "mcp.json"
    config.write_text('{"mcpServers": {}}')
    with (
        app_server(endpoints="", config=str(config)) as app,
        console_page(browser, with_models(app).url) as page,
    ):
        expect(page.get_by_text("No tool servers yet.")).to_be_visible()
        config.write_text('{"mcpServers": {"late": {"command": "no-such-program"}}}')
        expect(page.get_by_role("region", name="Tool servers")).to_contain_text("late")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, {"width": 2200, "height": 1200}], ids=["phone", "wide"])
def test_it_fits_any_window_in_light_and_dark(browser, scheme, size):
    with (
        app_server(endpoints="gone=http://127.0.0.1:9") as app,
        console_page(browser, with_models(app).url, viewport=size, color_scheme=scheme) as page,
    ):
        expect(page.get_by_text("to look at")).to_be_visible()
        assert not is_wider_than_the_window(page)
        assert violations(page) == []


def test_the_first_page_is_small(browser):
    with app_server() as app, console_page(browser, with_models(app).url) as page:
        expect(page.get_by_role("region", name="Model server")).to_be_visible()
        sizes = page.evaluate("performance.getEntries().map((entry) => entry.transferSize ?? 0)")
        assert 10_000 < sum(sizes) < 150_000


def test_a_key_opens_it_in_the_browser_and_signing_out_closes_it(browser):
    with (
        app_server(api_keys="api-key", console_keys="console-key") as app,
        console_page(browser, app.url) as page,
    ):
        assert violations(page) == []
        page.get_by_label("Key of the console").fill("console-key")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        assert page.evaluate("document.cookie") == ""
        page.reload()
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        expect(page.get_by_role("region", name="curl")).to_contain_text("Authorization: Bearer YOUR_KEY")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Key of the console")).to_be_visible()


def test_the_keyboard_reaches_everything(browser):
    with app_server() as app, console_page(browser, with_models(app).url) as page:
        expect(page.get_by_role("region", name="Model server")).to_be_visible()
        reached = set()
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.textContent.trim().slice(0, 40)"))
        assert {"Skip to the page", "Toolway", "curl", "Copy"} <= reached
        page.evaluate("document.activeElement.blur()")
