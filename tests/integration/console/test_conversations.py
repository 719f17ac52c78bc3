"""Conversations, as a browser shows them: live, whole, searched, and harmless whatever was said."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import AppServer, app_server, serving
from tests.support.browser import PHONE, console_page, is_wider_than_the_window, violations
from tests.support.gate import Gate
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call, whole

HOSTILE = (
    '</bdi><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
    '"><svg onload=window.hacked=1> \u202edesrever\u202c \x1b[31mred [click](javascript:alert(1))'
)
USAGE = {"prompt_tokens": 120, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}


async def _hostile(_: object) -> str:
    return HOSTILE


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server(tools=ToolService(hostile_tool=_hostile)) as server:
        server.upstream.models = json_reply({"data": [{"id": "mock"}]})
        yield server


def open_newest(page: Page, app: AppServer) -> None:
    page.goto(f"{app.url}/#/conversations")
    page.locator("td.what a").first.click()
    page.get_by_role("link", name="Conversations").first.wait_for()
    page.locator(".line-of-time").wait_for()


def test_a_conversation_shows_what_was_sent_called_and_said(app, browser):
    app.set_replies(
        call_stream(tool_call(), tool_call("list_cities", "{}", "call_2", 1), usage=USAGE),
        text_stream("It is ", "cloudy."),
    )
    app.ask(stream=True)
    with console_page(browser, f"{app.url}/#/conversations") as page:
        open_newest(page, app)
        expect(page.get_by_role("heading", name="What is the weather in Paris?")).to_be_visible()
        expect(page.locator(".call")).to_have_count(2)
        expect(page.locator(".call").first).to_contain_text('"city": "Paris"')
        expect(page.locator(".call").first).to_contain_text('"sky": "cloudy"')
        expect(page.get_by_text("120 tokens read, 60 from the cache; 7 written")).to_be_visible()
        expect(page.get_by_text("It is cloudy.")).to_be_visible()
        page.get_by_role("button", name=re.compile("4 messages, 3 added by Toolway")).click()
        expect(page.get_by_text("added by Toolway", exact=True)).to_have_count(3)
        expect(page.get_by_role("link", name="get_weather")).to_be_visible()
        assert violations(page) == []


def test_a_stream_is_seen_as_it_comes_and_goes_on_after_a_reload(app, browser):
    gate = Gate()
    first, last = chunk(role="assistant", content="Once upon "), chunk(content="a time.")
    parts = sse(first, last, chunk(finish="stop")).parts
    app.set_replies(Reply(parts=[parts[0], gate, *parts[1:]]))
    with console_page(browser, f"{app.url}/#/conversations") as page:
        messages = [{"role": "user", "content": "Tell me a story."}]
        asking = threading.Thread(target=lambda: app.ask(stream=True, messages=messages))
        asking.start()
        try:
            page.get_by_role("link", name="Tell me a story.").click()
            expect(page.locator(".said")).to_have_text("Once upon ")
            expect(page.locator("h1 + .state")).to_have_text("running")
            page.reload()
            expect(page.locator(".said")).to_have_text("Once upon ")
        finally:
            gate.open()
            asking.join(10)
        expect(page.get_by_text("Once upon a time.")).to_be_visible()
        expect(page.locator("h1 + .state")).to_have_text("done")


def test_the_list_grows_while_one_looks_and_can_be_searched(app, browser):
    with console_page(browser, f"{app.url}/#/conversations") as page:
        expect(page.get_by_role("heading", name="Conversations")).to_be_visible()
        app.set_replies(whole({"content": "a needle in it"}))
        app.ask(messages=[{"role": "user", "content": "a question about hay"}])
        expect(page.locator("td.what a").first).to_have_text("a question about hay")
        app.ask(messages=[{"role": "user", "content": "another one"}])
        search = page.get_by_role("searchbox")
        search.fill("about HAY")
        expect(page.locator("td.what a")).to_have_text(["a question about hay"])
        search.fill("needle")
        expect(page.locator("td.what a")).to_have_count(2)
        search.fill("nobody said this")
        expect(page.get_by_text("Nothing found.")).to_be_visible()
        assert violations(page) == []


def test_hundreds_are_loaded_part_by_part(app, browser):
    app.set_replies(whole({"content": "yes"}))
    with httpx2.Client(base_url=app.url) as client:
        for number in range(130):
            body = {"model": "mock", "messages": [{"role": "user", "content": f"number {number}"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    with console_page(browser, f"{app.url}/#/conversations") as page:
        expect(page.locator("td.what a")).to_have_count(100)
        page.get_by_role("button", name="Show older ones").click()
        expect(page.get_by_role("link", name="number 3", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_text_stays_text_everywhere_also_on_a_phone(app, browser, scheme):
    app.set_replies(
        call_stream(
            tool_call("hostile_tool", '{"city": "<b>x</b>"}'),
            tool_call(HOSTILE, "not json " + HOSTILE, "call_2", 1),
        ),
        text_stream(HOSTILE, "x" * 3000),
    )
    messages = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    app.ask(
        stream=True, messages=messages, model=HOSTILE, headers={"user-agent": "<script>hacked=1</script>"}
    )
    with console_page(browser, f"{app.url}/#/conversations", viewport=PHONE, color_scheme=scheme) as page:
        expect(page.locator("td.what a").first).to_contain_text("<script>window.hacked = 1</script>")
        assert not is_wider_than_the_window(page)
        assert violations(page) == []
        open_newest(page, app)
        expect(page.locator(".call")).to_have_count(2)
        page.locator("main button[aria-expanded]").first.click()
        page.locator("main button[aria-expanded]").last.click()
        expect(page.locator("body")).to_contain_text("⟨202e⟩desrever")
        assert not is_wider_than_the_window(page)
        assert violations(page) == []
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main img, main svg:not(.icon)").count() == 0


def test_an_error_of_the_model_server_says_what_the_client_got(app, browser):
    app.set_replies(json_reply({"error": {"message": "no such model: mock"}}, 404))
    app.ask()
    with console_page(browser, f"{app.url}/#/conversations") as page:
        expect(page.locator("tbody .state").first).to_have_text("failed")
        open_newest(page, app)
        expect(page.get_by_text("The client got an error:")).to_be_visible()
        expect(page.locator(".notice.bad").first).to_contain_text("no such model: mock")


def test_where_contents_are_not_shown_nothing_that_was_said_is(browser):
    with app_server(call_stream(tool_call()), text_stream("sunny"), console_contents="off") as app:
        app.ask(stream=True)
        with console_page(browser, f"{app.url}/#/conversations") as page:
            expect(page.get_by_text("TOOLWAY_CONSOLE_CONTENTS=on")).to_be_visible()
            open_newest(page, app)
            expect(page.locator(".call")).to_contain_text("get_weather")
            text = page.locator("body").inner_text()
            assert not [word for word in ("Paris", "sunny", "cloudy") if word in text]


def test_conversations_outlive_the_process_and_are_seen_by_others_with_the_same_store(app, browser, tmp_path):
    settings = app.settings_with_store(f"sqlite:///{tmp_path / 'store.db'}")

    def ask(url: str, question: str) -> None:
        body = {"model": "mock", "messages": [{"role": "user", "content": question}]}
        assert httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200

    app.set_replies(whole({"content": "an answer"}))
    with serving(settings) as url:
        ask(url, "before the restart")
    with (
        serving(settings) as first,
        serving(settings) as second,
        console_page(browser, f"{first}/#/conversations") as page,
    ):
        titles = page.locator("td.what a")
        expect(titles).to_have_text(["before the restart"])
        ask(second, "asked elsewhere")
        expect(titles).to_have_text(["asked elsewhere", "before the restart"])
        titles.first.click()
        expect(page.locator(".line-of-time")).to_contain_text("an answer")


def test_a_conversation_that_is_gone_is_told(app, browser):
    with browser.new_context() as tab:
        page = tab.new_page()
        page.goto(f"{app.url}/#/conversations/none")
        expect(page.get_by_role("alert")).to_have_text("This conversation is no longer kept.")
