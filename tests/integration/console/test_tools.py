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
from tests.support.gate import Gate
from tests.support.tools import ToolService, document
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call

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
    picture = tmp_path / "x.bin"
    picture.write_bytes(b"hello")
    with console_page(browser, f"{app.url}/#/tools/send_parcel") as page:
        page.get_by_label("kind").select_option("large")
        page.get_by_label("street").fill("Rue de Rivoli")
        page.get_by_label("number").fill("7")
        tags = page.get_by_role("group", name="tags")
        tags.get_by_role("button", name="Add").click()
        page.get_by_role("textbox", name="tags 1").fill("fragile")
        page.get_by_label("file").set_input_files(str(picture))
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


def test_pictures_and_sounds_of_a_result_are_shown_and_heard(browser, tmp_path):
    config = tmp_path / "mcp.json"
    good = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"]}
    config.write_text(json.dumps({"mcpServers": {"good": good}}))
    with app_server(endpoints="", config=str(config)) as app:
        app.until_servers_are(good="ready")
        with console_page(browser, f"{app.url}/#/tools/everything") as page:
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.get_by_role("region", name="Result").locator("img")).to_have_count(1)
            assert page.locator("img.picture").evaluate("image => image.naturalWidth") > 0
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
    assert httpx2.post(f"{url}/get_weather/call", json={}).status_code == 403, "no token"
    wrong = httpx2.post(f"{url}/get_weather/call", json={"arguments": {"city": {}}}, headers=CHANGE).json()
    assert wrong["is_error"]


def test_the_playground_shows_calls_and_renders_what_is_said_as_text(app, browser):
    text = "# A *title*\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```js\nalert(1)\n```\n"
    links = "[x](javascript:hacked=1) ![y](http://evil.example/y.png) [ok](https://example.com/)"
    app.set_replies(
        call_stream(tool_call()),
        text_stream(text, links, HOSTILE, usage={"prompt_tokens": 5, "completion_tokens": 6}),
    )
    with console_page(browser, f"{app.url}/#/playground") as page:
        expect(page.get_by_label("Model")).to_have_value("mock")
        page.get_by_label("Message").fill("What is the weather?")
        page.keyboard.press("Enter")
        expect(page.locator(".call")).to_contain_text('"sky": "cloudy"')
        expect(page.get_by_text("5 tokens read, 6 written")).to_be_visible()
        expect(page.locator(".markdown li")).to_have_count(2)
        expect(page.locator(".markdown td")).to_have_count(2)
        expect(page.locator(".markdown a")).to_have_count(1)
        expect(page.locator(".markdown a")).to_have_attribute("rel", "noopener noreferrer nofollow")
        assert page.locator(".markdown img, .markdown script").count() == 0
        assert page.evaluate("window.hacked") is None
        assert violations(page) == []
        app.set_replies(text_stream("Again."))
        page.get_by_role("button", name="Repeat").click()
        expect(page.locator(".markdown")).to_have_text("Again.")
        page.get_by_role("button", name="Edit").click()
        expect(page.get_by_label("Message")).to_have_value("What is the weather?")


def test_an_answer_is_stopped_and_an_error_is_told(app, browser):
    gate = Gate()
    parts = sse(chunk(role="assistant", content="Once "), chunk(content="more"), chunk(finish="stop")).parts
    app.set_replies(Reply(parts=[parts[0], gate, *parts[1:]]))
    with console_page(browser, f"{app.url}/#/playground", viewport=PHONE, color_scheme="dark") as page:
        page.get_by_label("Message").fill("Tell me")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".markdown")).to_have_text("Once ")
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("stopped", exact=True)).to_be_visible()
        app.upstream.departures.wait()
        gate.open()
        app.set_replies(json_reply({"error": {"message": "out of memory"}}, 500))
        page.get_by_role("button", name="Repeat").click()
        expect(page.get_by_role("alert")).to_contain_text("out of memory")
        assert not is_wider_than_the_window(page)
        assert violations(page) == []


def test_what_is_no_chat_is_refused(app):
    for body in ({}, {"messages": []}, {"messages": "x"}):
        answer = httpx2.post(f"{app.url}/console/api/chat", json=body, headers=CHANGE)
        assert answer.status_code == 400
