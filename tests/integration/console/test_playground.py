"""The playground in a browser: what is said and called is seen as it comes, and nothing of it is missed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import AppServer, app_server
from tests.support.browser import DESK, PHONE, console_page, is_wider_than_the_window, violations
from tests.support.gate import Gate
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call
from tests.unit.tools.mcp.support import SERVERS

HOSTILE = "</bdi><script>hacked=1</script><img src=x onerror=hacked=1>"
LONG = "A paragraph.\n\n" * 80
CHANGE = {"x-toolway-console": "open"}
MODELS = json_reply({"data": [{"id": "mock"}]})


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server() as server:
        server.upstream.models = MODELS
        yield server


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[AppServer]:
    """One whose calls wait for a person."""
    config = tmp_path / "mcp.json"
    rules = [{"tools": ["get_weather"], "effect": "ask"}]
    config.write_text(json.dumps({"mcpServers": {}, "rules": rules}))
    with app_server(config=str(config), approval_wait=60) as server:
        server.upstream.models = MODELS
        yield server


def ask(page: Page, text: str = "Tell me") -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def held(*texts: str, gates: list[Gate]) -> Reply:
    """A stream of these texts, a gate behind each."""
    whole = sse(*(chunk(content=text) for text in texts), chunk(finish="stop")).parts
    parts = [part for text, gate in zip(whole, gates, strict=False) for part in (text, gate)]
    return Reply(parts=[*parts, *whole[len(gates) :]])


AT_THE_END = "innerHeight + scrollY > document.documentElement.scrollHeight - 3"


def wait_for_the_end(page: Page) -> None:
    """Return when the end of the page is in view."""
    page.evaluate(f"async () => {{ while (!({AT_THE_END})) await new Promise(requestAnimationFrame) }}")


def test_the_playground_shows_calls_and_renders_what_is_said_as_text(app, browser):
    text = "# A *title*\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```js\nalert(1)\n```\n"
    links = "[x](javascript:hacked=1) ![y](http://evil.example/y.png) [ok](https://example.com/) "
    refused = "[no](javascript:f(1)) end"
    app.set_replies(
        call_stream(tool_call()),
        text_stream(text, links, refused, HOSTILE, usage={"prompt_tokens": 5, "completion_tokens": 6}),
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
        expect(page.locator(".markdown")).to_contain_text("no (javascript:f(1)) end")
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


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_view_follows_the_answer_until_its_reader_scrolls_up(app, browser, size):
    gates = [Gate(), Gate(), Gate()]
    app.set_replies(held(LONG + "first", LONG + "second", LONG + "third", gates=gates))
    with console_page(browser, f"{app.url}/#/playground", viewport=size) as page:
        ask(page)
        expect(page.get_by_text("first")).to_be_in_viewport()
        gates[0].open()
        expect(page.get_by_text("second")).to_be_in_viewport()
        page.mouse.wheel(0, -2000)
        expect(page.get_by_text("second")).not_to_be_in_viewport()
        gates[1].open()
        expect(page.get_by_text("third")).to_be_attached()
        assert not page.evaluate(AT_THE_END)
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        gates[2].open()
        expect(page.get_by_role("button", name="Repeat")).to_be_visible()
        wait_for_the_end(page)
        page.evaluate("scrollTo(0, 0)")
        app.set_replies(text_stream("Again."))
        ask(page, "And then?")
        expect(page.get_by_text("And then?")).to_be_in_viewport()
        expect(page.get_by_text("Again.")).to_be_in_viewport()
        wait_for_the_end(page)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_a_call_that_waits_comes_into_view_with_the_focus_and_nothing_is_sent_before_its_answer(
    asking, browser, size
):
    calls = [tool_call(arguments='{"city": "Rome"}'), tool_call(id="call_2", index=1)]
    with console_page(browser, f"{asking.url}/#/playground", viewport=size) as page:
        asking.set_replies(text_stream(LONG))
        ask(page)
        expect(page.get_by_role("button", name="Repeat")).to_be_visible()
        asking.set_replies(call_stream(*calls), text_stream("Both are sunny."))
        ask(page, "And in Rome?")
        card = page.get_by_role("article", name="Call of get_weather")
        expect(card).to_have_count(2)
        expect(card.first).to_be_focused()
        expect(card.first).to_be_in_viewport()
        expect(page.locator("[role=status].hidden")).to_have_text(
            "A call of get_weather waits for your answer"
        )
        ask(page, "Hello?")
        expect(page.get_by_text("Not sent: answer the question above first")).to_be_in_viewport()
        expect(page.get_by_label("Message")).to_have_value("Hello?")
        expect(page.get_by_label("Message")).to_be_focused()
        assert violations(page) == []
        assert not is_wider_than_the_window(page)
        card.first.get_by_role("button", name="Approve").click()
        expect(page.get_by_text("Not sent")).to_have_count(0)
        page.get_by_label("Message").fill("")
        card.get_by_role("button", name="Refuse").click()
        expect(page.get_by_text("Both are sunny.")).to_be_in_viewport()
        assert violations(page) == []


def test_while_the_model_speaks_nothing_is_sent_and_that_is_told(app, browser):
    gate = Gate()
    app.set_replies(held("Once ", "more", gates=[gate]))
    with console_page(browser, f"{app.url}/#/playground") as page:
        ask(page)
        expect(page.locator(".markdown")).to_have_text("Once ")
        ask(page, "Hello?")
        expect(page.get_by_text("Not sent: the answer is not complete yet")).to_be_visible()
        gate.open()
        expect(page.get_by_text("Not sent")).to_have_count(0)
        expect(page.get_by_label("Message")).to_have_value("Hello?")


def test_a_model_server_that_breaks_off_is_seen_wherever_one_reads(app, browser):
    gate = Gate()
    parts = sse(chunk(content=LONG + "first")).parts[:1]
    app.set_replies(Reply(parts=[*parts, gate], cut=True))
    with console_page(browser, f"{app.url}/#/playground", viewport=PHONE) as page:
        ask(page)
        expect(page.get_by_text("first")).to_be_in_viewport()
        page.evaluate("scrollTo(0, 0)")
        expect(page.get_by_text("first")).not_to_be_in_viewport()
        gate.open()
        expect(page.get_by_role("alert")).to_be_in_viewport()
        expect(page.get_by_text("first")).to_be_attached()
        assert violations(page) == []


def test_a_stream_that_ends_without_its_end_is_told(app, browser):
    with console_page(browser, f"{app.url}/#/playground") as page:
        page.route("**/api/chat", lambda route: route.fulfill(body='data: {"text": "Once "}\n\n'))
        ask(page)
        expect(page.get_by_role("alert")).to_contain_text("broke off before the end of the answer")
        expect(page.locator(".markdown")).to_have_text("Once ")
        expect(page.get_by_role("button", name="Repeat")).to_be_visible()


@pytest.fixture
def gates(tmp_path: Path) -> list[Path]:
    """The named pipes at which the tool `copy` waits."""
    if sys.platform == "win32":
        pytest.skip("named pipes of Unix")
    found = [tmp_path / name for name in ("first", "second", "third")]
    for gate in found:
        os.mkfifo(gate)
    return found


@pytest.fixture
def staged(tmp_path: Path, gates: list[Path]) -> Iterator[AppServer]:
    """One whose model calls `copy`."""
    config = tmp_path / "mcp.json"
    files = {"command": sys.executable, "args": [str(SERVERS / "staged.py")]}
    config.write_text(json.dumps({"mcpServers": {"files": files}}))
    call = tool_call("copy", json.dumps({"gates": [str(gate) for gate in gates]}))
    with app_server(call_stream(call), text_stream("Done."), endpoints="", config=str(config)) as server:
        server.upstream.models = MODELS
        server.until_servers_are(files="ready")
        yield server


def test_a_call_shows_how_far_it_is(staged, gates, browser):
    with console_page(browser, f"{staged.url}/#/playground") as page:
        ask(page)
        for number, gate in enumerate(gates, 1):
            expect(page.locator(".call")).to_contain_text(f"{25 * number} %stage {number}")
            gate.write_bytes(b"")
        expect(page.locator(".call")).to_contain_text("copied")
        expect(page.locator(".markdown")).to_have_text("Done.")
        expect(page.get_by_role("progressbar")).to_have_count(0)


def test_a_tool_that_is_tried_shows_how_far_it_is(staged, gates, browser):
    with console_page(browser, f"{staged.url}/#/tools/copy") as page:
        page.get_by_role("button", name="As JSON").first.click()
        arguments = {"gates": [str(gate) for gate in gates]}
        page.get_by_role("textbox", name="Arguments").fill(json.dumps(arguments))
        page.get_by_role("button", name="Run", exact=True).click()
        for number, gate in enumerate(gates, 1):
            expect(page.get_by_role("tabpanel")).to_contain_text(f"{25 * number} %stage {number}")
            assert number > 1 or violations(page) == []
            gate.write_bytes(b"")
        expect(page.get_by_role("region", name="Result", exact=True)).to_contain_text("copied")
        expect(page.get_by_role("progressbar")).to_have_count(0)


def test_without_a_model_server_the_playground_says_so(browser):
    with (
        app_server(endpoints="", openai_base_url="http://127.0.0.1:9/v1") as app,
        console_page(browser, f"{app.url}/#/playground") as page,
    ):
        expect(page.get_by_text("There is no model to ask")).to_contain_text("http://127.0.0.1:9/v1")
        expect(page.get_by_text("There are no tools yet")).to_be_visible()
        assert violations(page) == []


def test_what_the_model_did_not_see_of_a_result_is_told(browser, tmp_path):
    config = tmp_path / "mcp.json"
    good = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"]}
    config.write_text(json.dumps({"mcpServers": {"good": good}}))
    calls = call_stream(tool_call("image", "{}")), text_stream("A picture.")
    with app_server(*calls, endpoints="", config=str(config)) as app:
        app.upstream.models = MODELS
        app.until_servers_are(good="ready")
        note = "[image 1 (image/png) is not shown: this model takes no images]"
        with console_page(browser, f"{app.url}/#/playground") as page:
            ask(page)
            expect(page.get_by_role("img", name="picture of image")).to_be_visible()
            expect(page.locator(".call")).to_contain_text(note)
            page.get_by_role("link", name="What happened").click()
            page.locator("td.what a").first.click()
            expect(page.locator(".call")).to_contain_text(note)
            assert violations(page) == []


def test_how_much_of_a_long_result_the_model_read_is_told(browser):
    async def dump(_: object) -> str:
        return "x" * 100_000

    with app_server(
        call_stream(tool_call("dump")), text_stream("Long."), tools=ToolService(dump=dump)
    ) as app:
        app.upstream.models = MODELS
        with console_page(browser, f"{app.url}/#/playground") as page:
            ask(page)
            told = re.compile(r"The model read [\d,]+ of 100,002 characters")
            expect(page.get_by_text(told)).to_be_visible()
            page.get_by_role("link", name="What happened").click()
            page.locator("td.what a").first.click()
            expect(page.get_by_text(told)).to_be_visible()
            expect(page.get_by_text("(84,002 more were not kept)").first).to_be_visible()
            more = page.locator(".call").get_by_role(
                "button", name="show the 16,000 characters that were kept"
            )
            more.click()
            expect(more).to_have_count(0)
