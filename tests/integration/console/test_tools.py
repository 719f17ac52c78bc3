"""The tools and the playground, as a browser shows and uses them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect

from tests.support.app_server import AppServer, app_server
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.tools import ToolService, document
from tests.support.upstream import json_reply

HOSTILE = "</bdi><script>hacked=1</script><img src=x onerror=hacked=1>"
ADDRESS = {
    "type": "object",
    "description": HOSTILE,
    "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["street"],
}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["small", "large"], "description": "Which one"},
        "address": ADDRESS,
        "tags": {"type": "array", "items": {"type": "string"}},
        "file": {"type": "string", "contentEncoding": "base64"},
        "urgent": {"type": "boolean"},
    },
    "required": ["kind", "address"],
}
CHANGE = {"x-toolway-console": "open"}


async def _echo(arguments: object) -> object:
    return {"got": arguments, "note": HOSTILE}


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    service = ToolService(send_parcel=_echo)
    service.document["paths"]["/send_parcel"] = document({"send_parcel": NESTED})["paths"]["/send_parcel"]
    with app_server(tools=service) as server:
        server.upstream.models = json_reply({"data": [{"id": "mock"}, {"id": HOSTILE}]})
        yield server


def test_a_tool_is_tried_by_a_form_of_its_schema(app, browser, tmp_path):
    image = tmp_path / "x.bin"
    image.write_bytes(b"hello")
    with console_page(browser, f"{app.url}/#/tools/send_parcel") as page:
        page.get_by_label("kind").select_option("large")
        page.get_by_label("street").fill("Rue de Rivoli")
        page.get_by_label("number").fill("7")
        tags = page.get_by_role("group", name="tags")
        tags.get_by_role("button", name="Add").click()
        page.get_by_role("textbox", name="tags 1").fill("fragile")
        page.get_by_label("file").set_input_files(str(image))
        assert violations(page) == []
        page.get_by_role("button", name="Run", exact=True).click()
        result = page.get_by_role("region", name="Result")
        expect(result).to_contain_text("done")
        expect(result).to_contain_text("Rue de Rivoli")
        assert app.tools.calls[-1] == (
            "send_parcel",
            {
                "kind": "large",
                "address": {"street": "Rue de Rivoli", "number": 7},
                "tags": ["fragile"],
                "file": "aGVsbG8=",
            },
        )
        page.get_by_role("tab", name="Arguments").click()
        expect(page.get_by_role("tabpanel")).to_contain_text('one of "small", "large"')
        page.get_by_role("tab", name="What the model sees").click()
        expect(page.get_by_role("region", name="the definition")).to_contain_text('"name": "send_parcel"')
        assert page.evaluate("window.hacked") is None
        assert violations(page) == []


def test_arguments_that_are_no_json_are_not_sent(app, browser):
    with console_page(browser, f"{app.url}/#/tools/send_parcel") as page:
        page.get_by_role("button", name="As JSON").first.click()
        page.get_by_role("textbox", name="Arguments").fill('{"kind')
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_disabled()
        page.get_by_role("textbox", name="Arguments").fill('{"kind": "small"}')
        expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_images_and_sounds_of_a_result_are_shown_and_heard(browser, tmp_path):
    config = tmp_path / "mcp.json"
    good = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"]}
    config.write_text(json.dumps({"mcpServers": {"good": good}}))
    with app_server(endpoints="", config=str(config)) as app:
        app.until_servers_are(good="ready")
        with console_page(browser, f"{app.url}/#/tools/everything") as page:
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.get_by_role("region", name="Result").locator("img")).to_have_count(1)
            assert page.locator("img.image").evaluate("image => image.naturalWidth") > 0
            expect(page.locator("audio")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_five_hundred_tools_with_long_names_are_found_on_a_phone(browser, scheme):
    names = [f"do_something_that_takes_a_name_of_a_length_nobody_would_{n:03}" for n in range(500)]
    service = ToolService()
    service.document = document(
        {name: {"type": "object", "properties": {"x": {"type": "string"}}} for name in names}
    )
    with (
        app_server(tools=service) as app,
        console_page(browser, f"{app.url}/#/tools", viewport=PHONE, color_scheme=scheme) as page,
    ):
        expect(page.get_by_text("500 tools;")).to_be_visible()
        page.get_by_role("searchbox").fill("would_37")
        expect(page.locator("tbody tr")).to_have_count(10)
        assert not is_wider_than_the_window(page)
        assert violations(page) == []


def test_a_tool_that_is_not_there_is_a_404_and_arguments_are_an_object(app):
    url = f"{app.url}/console/api/tools"
    assert httpx2.get(f"{url}/none").status_code == 404
    assert httpx2.post(f"{url}/none/call", json={}, headers=CHANGE).status_code == 404
    assert httpx2.post(f"{url}/get_weather/call", json={"arguments": []}, headers=CHANGE).status_code == 400
    assert httpx2.post(f"{url}/get_weather/call", json={"watch": 7}, headers=CHANGE).status_code == 400
    assert httpx2.post(f"{url}/get_weather/call", json={}).status_code == 403, "no token"
    wrong = httpx2.post(f"{url}/get_weather/call", json={"arguments": {"city": {}}}, headers=CHANGE).json()
    assert wrong["is_error"]
