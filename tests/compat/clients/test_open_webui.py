"""Open WebUI in a real browser, with Toolway as its tool server: asked by Open WebUI itself, or by the browser.

What is looked at in its pages are the words and places that a person sees, as its version has them.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.compat.clients.installed import PLACE, TIMEOUT
from tests.compat.clients.test_clients import says
from tests.support.app_server import AppServer, app_server
from tests.support.browser import running_browser
from tests.support.servers import free_port
from tests.support.upstream import JSON, Reply, json_reply, tool_call

PROGRAM = PLACE / "open-webui" / "bin" / "open-webui"

pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason=f"Open WebUI is not installed in {PLACE}"),
    pytest.mark.timeout(600),
]

KEY = "the-key"
PROFILE = "weather"
SETTINGS = {
    "WEBUI_AUTH": "False",
    "WEBUI_SECRET_KEY": "any",
    "ENABLE_DIRECT_INTEGRATIONS": "True",
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_TITLE_GENERATION": "False",
    "ENABLE_TAGS_GENERATION": "False",
    "ENABLE_FOLLOW_UP_GENERATION": "False",
    # It loads no model of its own then, and asks no hub.
    "RAG_EMBEDDING_ENGINE": "openai",
    "OFFLINE_MODE": "True",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "False",
}


def turn(body: JSON) -> Reply:
    """The model looks at the weather, then says what it read."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return says(body, f"It reads {last['content']}")
    name = next(name for name in offered(body) if name.endswith("get_weather"))
    return says(body, "", tool_call(name, '{"city":"Paris"}', id="call_1"))


def offered(body: JSON) -> list[str]:
    """The names of the tools in a request; many are Open WebUI's own."""
    return [tool["function"]["name"] for tool in body["tools"]]


@contextmanager
def open_webui(port: int, home: Path, app: AppServer) -> Iterator[str]:
    """Open WebUI over the model server behind Toolway, which it asks itself: what tools it has come over REST."""
    env = {
        **SETTINGS,
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "DATA_DIR": str(home),
        "OPENAI_API_BASE_URL": app.settings.upstream.base_url,
        "OPENAI_API_KEY": "unused",
    }
    command = [str(PROGRAM), "serve", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            end = time.monotonic() + 5 * TIMEOUT
            while not _is_up(url):
                assert process.poll() is None and time.monotonic() < end, (home / "log").read_text()
            yield url
        finally:
            process.kill()


def _is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.fixture(scope="module")
def app() -> Iterator[tuple[AppServer, int]]:
    """Toolway with a key, for which Open WebUI's page is no stranger, and the port of that."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    with app_server(api_keys=KEY, cors_origins=origin, profiles={PROFILE: ["get_*"]}) as app:
        app.upstream.models = json_reply({"object": "list", "data": [{"id": "mock", "object": "model"}]})
        app.upstream.answer = turn
        yield app, port


@pytest.fixture(scope="module")
def page(app: tuple[AppServer, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open WebUI's first page, its news read."""
    toolway, port = app
    home = tmp_path_factory.mktemp("open-webui")
    with open_webui(port, home, toolway) as url, running_browser() as browser:
        page = browser.new_page(base_url=url, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(TIMEOUT * 1000)
        page.goto(url)
        page.get_by_role("button", name="Okay, Let's Go!").click()
        yield page


def connect(page: Page, whose: int, name: str, url: str) -> None:
    """Add a tool server, for everybody (1) or for the user alone (0), as a person does."""
    page.goto("/admin/settings")
    page.get_by_role("tab", name="Integrations").nth(whose).click()
    page.get_by_role("button", name="Add Connection").first.click()
    form = page.get_by_role("dialog").last
    if url.endswith("/mcp"):
        form.get_by_role("button", name="OpenAPI").click()  # now it says MCP Streamable HTTP
    form.get_by_placeholder("Enter name").fill(name)
    form.get_by_placeholder("API Base URL").fill(url)
    form.get_by_placeholder("API Key", exact=True).fill(KEY)
    form.get_by_role("button", name="Verify Connection").click()
    expect(page.get_by_text("Connection successful")).to_be_visible()
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_text("saved successfully").first).to_be_visible()


@pytest.mark.parametrize(
    ("whose", "path"), [(1, ""), (1, f"/tools/{PROFILE}"), (0, ""), (0, f"/tools/{PROFILE}"), (1, "/mcp")]
)
def test_a_tool_server_is_listed_and_called(app: tuple[AppServer, int], page: Page, whose: int, path: str):
    toolway, _ = app
    title = f"Toolway: {PROFILE}" if PROFILE in path else "Toolway"
    # A user's own servers are listed by the titles of their documents, whatever they are called.
    name = f"{title} {path} for all" if whose else title
    connect(page, whose, name, toolway.url + path)
    toolway.set_replies()
    asked: list[tuple[str, str]] = []
    page.on("request", lambda request: asked.append((request.method, request.url)))
    page.goto("/")
    page.locator("#integration-menu-button").click()
    page.get_by_role("menu").last.get_by_text("Tools").first.click()
    page.get_by_role("menu").last.get_by_text(name, exact=True).click()
    page.keyboard.press("Escape")
    page.locator("#chat-input").fill("What is the weather in Paris?")
    page.keyboard.press("Enter")
    expect(page.get_by_text(re.compile("View Result from (.*_)?get_weather$"))).to_be_visible()
    expect(page.get_by_text('"sky": "cloudy"').last).to_be_visible()
    first, second = toolway.upstream.seen
    names = [name for name in offered(first.json) if name.endswith(("get_weather", "list_cities"))]
    assert len(names) == (1 if PROFILE in path else 2), names
    assert '"sky": "cloudy"' in second.json["messages"][-1]["content"]
    assert toolway.tools.calls == [("get_weather", {"city": "Paris"})]
    is_the_browsers = ("POST", f"{toolway.url}{path or '/tools'}/get_weather") in asked
    assert is_the_browsers == (whose == 0)
