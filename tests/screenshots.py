"""Makes the pictures of docs/console.md: a Toolway with a few servers and conversations, seen by a real Chromium.

Run as a program: `make screenshots`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

from tests.support.app_server import AppServer, app_server
from tests.support.browser import console_page, running_browser
from tests.support.paths import ROOT
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import call_stream, json_reply, text_stream, tool_call

FOLDER = ROOT / "docs" / "images"
WIDE, PHONE = {"width": 1200, "height": 760}, {"width": 390, "height": 760}
USAGE = {"prompt_tokens": 1290, "completion_tokens": 46, "prompt_tokens_details": {"cached_tokens": 1100}}
SAID = ("In **Paris** it is cloudy. ", "I know the weather of these cities:\n\n", "- Paris\n- Rome\n")
CALLS = (tool_call(), tool_call("list_cities", "{}", "call_2", 1))
QUESTION = "What is the weather in Paris?"


def main() -> None:
    """Make all of them."""
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(ToolService(), lifespan="off") as weather,
        app_server(endpoints="", config=str(_config(Path(folder), weather))) as app,
        running_browser() as browser,
    ):
        app.upstream.models = json_reply({"data": [{"id": "qwen3-8b", "meta": {"n_ctx": 8192}}]})
        app.until_servers_are(weather="ready", calculator="ready", notes="failed")
        _talk(app)
        for name, (path, prepare) in PAGES.items():
            look = {
                "viewport": PHONE if name == "phone" else WIDE,
                "color_scheme": "dark" if name == "dark" else "light",
            }
            with console_page(browser, app.url, **look) as page:
                page.goto(f"{app.url}/#/{path}")
                prepare(page, app)
                page.screenshot(path=FOLDER / f"console-{name}.png")


def _config(folder: Path, weather: str) -> Path:
    path = folder / "mcp.json"
    servers = {
        "weather": {"type": "openapi", "url": weather},
        "calculator": {"command": sys.executable, "args": ["-m", "toolway.demo.calculator"]},
        "notes": {"command": "notes-server"},
    }
    path.write_text(json.dumps({"mcpServers": servers}, indent=2))
    return path


def _talk(app: AppServer) -> None:
    headers = {"user-agent": "OpenAI/Python 3.54.0"}
    for question in ("Add 1234 and 4321", QUESTION):
        calls = CALLS if question == QUESTION else (tool_call("add", '{"a":1234,"b":4321}'),)
        said = SAID if question == QUESTION else ("That is 5555.",)
        app.set_replies(call_stream(*calls, usage=USAGE), text_stream(*said, usage=USAGE))
        message = {"role": "user", "content": question}
        app.ask(stream=True, model="qwen3-8b", messages=[message], headers=headers)


def _overview(page: Page, _: AppServer) -> None:
    page.get_by_role("region", name="Model server").wait_for()


def _list(page: Page, _: AppServer) -> None:
    page.locator("tbody tr").first.wait_for()


def _conversation(page: Page, _: AppServer) -> None:
    page.get_by_role("link", name=QUESTION).first.click()
    page.locator(".call").first.wait_for()
    page.locator("button[aria-expanded]").first.click()


def _server(page: Page, _: AppServer) -> None:
    page.get_by_role("region", name="History").wait_for()


def _form(page: Page, _: AppServer) -> None:
    page.get_by_role("button", name="Save").wait_for()


def _tool(page: Page, _: AppServer) -> None:
    page.get_by_label("a *").fill("1234")
    page.get_by_label("b *").fill("4321")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("region", name="Result", exact=True).wait_for()


def _playground(page: Page, app: AppServer) -> None:
    app.set_replies(call_stream(*CALLS, usage=USAGE), text_stream(*SAID, usage=USAGE))
    page.get_by_label("Message").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_text("tokens read").wait_for()


PAGES: dict[str, tuple[str, Callable[[Page, AppServer], None]]] = {
    "overview": ("", _overview),
    "conversations": ("conversations", _list),
    "conversation": ("conversations", _conversation),
    "server": ("servers/notes", _server),
    "add": ("servers/add", _form),
    "tool": ("tools/add", _tool),
    "playground": ("playground", _playground),
    "dark": ("conversations", _conversation),
    "phone": ("conversations", _conversation),
}

if __name__ == "__main__":
    main()
