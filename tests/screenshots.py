"""Makes the screenshots of docs/console.md: a Toolway with a few servers and conversations, seen by a real Chromium.

Run as a program: `make screenshots`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, Page

from tests.support.app_server import AppServer, app_server
from tests.support.browser import console_page, running_browser
from tests.support.paths import ROOT
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import call_stream, json_reply, text_stream, tool_call
from toolway.access.keys import hash_of
from toolway.tools.pins import read_lock, write_lock

FOLDER = ROOT / "docs" / "images"
WIDE, PHONE = {"width": 1200, "height": 760}, {"width": 390, "height": 760}
USAGE = {"prompt_tokens": 1290, "completion_tokens": 46, "prompt_tokens_details": {"cached_tokens": 1100}}
SAID = ("In **Paris** it is cloudy. ", "I know the weather of these cities:\n\n", "- Paris\n- Rome\n")
CALLS = (tool_call(), tool_call("list_cities", "{}", "call_2", 1))
QUESTION = "What is the weather in Paris?"
MODELS = json_reply({"data": [{"id": "qwen3-8b", "meta": {"n_ctx": 8192}}]})
ACCESS = {
    "groups": {"family": {"tools": ["get_*", "add"], "requests": "60/minute"}},
    "keys": {
        "Anna": {"hash": hash_of("secret of Anna")},
        "Ben": {"hash": hash_of("secret of Ben"), "group": "family", "expires": "2027-01-31"},
        "operator": {"hash": hash_of("secret of the operator"), "routes": ["console"]},
    },
    "rules": [
        {"tools": ["list_cities"], "effect": "deny", "reason": "Not for this model."},
        {"tools": ["get_weather"], "effect": "ask", "reason": "Each request costs money."},
    ],
}


def main() -> None:
    """Make all of them."""
    FOLDER.mkdir(exist_ok=True)
    with running(ToolService(), lifespan="off") as weather, running_browser() as browser:
        with tempfile.TemporaryDirectory() as folder:
            _open_console(browser, Path(folder), weather)
        with tempfile.TemporaryDirectory() as folder:
            _console_with_keys(browser, Path(folder), weather)


def _open_console(browser: Browser, folder: Path, weather: str) -> None:
    """The pages of a Toolway without keys."""
    config = _config(folder, weather)
    with app_server(endpoints="", config=str(config), pins=True) as app:
        app.upstream.models = MODELS
        app.until_servers_are(weather="ready", calculator="ready", notes="failed")
        for label in ("weather", "calculator"):
            _accept(app, label)
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
        _change(config.with_suffix(".lock.json"))
        with console_page(browser, f"{app.url}/#/servers/calculator", viewport=WIDE) as page:
            page.get_by_role("button", name="Accept add").wait_for()
            page.screenshot(path=FOLDER / "console-pins.png")


def _console_with_keys(browser: Browser, folder: Path, weather: str) -> None:
    """The pages of who may do what."""
    config = _config(folder, weather, **ACCESS)
    audit = str(folder / "audit.jsonl")
    with (
        app_server(
            endpoints="", config=str(config), audit=audit, console_keys="key", approval_wait=60
        ) as app,
        console_page(browser, app.url, viewport=WIDE) as page,
        ThreadPoolExecutor() as pool,
    ):
        app.upstream.models = MODELS
        page.get_by_label("Key of the console").fill("key")
        page.get_by_role("button", name="Sign in").click()
        for label in ("weather", "calculator"):
            page.get_by_role("row", name=f"{label} ready").wait_for()
        headers = {"user-agent": "OpenAI/Python 3.54.0", "authorization": "Bearer secret of Anna"}
        for call in (tool_call("add", '{"a":1234,"b":4321}'), tool_call("list_cities", "{}")):
            app.set_replies(call_stream(call), text_stream("Done."))
            app.ask(stream=True, model="qwen3-8b", headers=headers)
        app.set_replies(call_stream(CALLS[0]), text_stream(*SAID))
        asked = pool.submit(app.ask, stream=True, model="qwen3-8b", headers=headers)
        page.goto(f"{app.url}/#/approvals")
        page.get_by_role("article").wait_for()
        page.screenshot(path=FOLDER / "console-approvals.png")
        page.get_by_role("button", name="Approve").click()
        asked.result()
        for name in ("keys", "audit"):
            page.goto(f"{app.url}/#/{name}")
            page.locator("tbody tr").first.wait_for()
            page.screenshot(path=FOLDER / f"console-{name}.png")


def _accept(app: AppServer, label: str) -> None:
    """Accept the tools of a server as they are."""
    url, headers = f"{app.url}/console/api/servers/{label}/pins", {"x-toolway-console": "open"}
    shown = httpx2.get(url, headers=headers).json()["changes"]
    accept = {one["tool"]: one["digest"] for one in shown}
    assert httpx2.post(url, json={"accept": accept}, headers=headers).status_code == 200


def _change(lock: Path) -> None:
    """Let a tool look as if its server had changed it."""
    pinned = read_lock(lock)
    pinned["calculator"]["add"]["description"] = "Add two numbers, which may be negative"
    write_lock(lock, pinned)


def _config(folder: Path, weather: str, **access: Any) -> Path:
    path = folder / "mcp.json"
    servers = {
        "weather": {"type": "openapi", "url": weather},
        "calculator": {"command": sys.executable, "args": ["-m", "toolway.demo.calculator"]},
        "notes": {"command": "notes-server"},
    }
    path.write_text(json.dumps({"mcpServers": servers, **access}, indent=2))
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
    page.locator("main button[aria-expanded]").first.click()


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
