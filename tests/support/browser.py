"""A real Chromium that looks at the console: its pages may not complain, ask other hosts or be inaccessible."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
SECONDS = 60.0
expect.set_options(timeout=SECONDS * 1000)

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 860}


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium without a window, or a skip."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def console_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The page at `url`. When left, it must have said nothing in its log, and asked no host but this one."""
    options = {"viewport": DESK, "reduced_motion": "reduce", **context}
    with browser.new_context(**options) as tab:
        page = tab.new_page()
        page.set_default_timeout(SECONDS * 1000)
        complaints: list[str] = []
        hosts: set[str] = set()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        page.locator("h1").wait_for()
        yield page
        page.close()
        assert not complaints, complaints
        assert hosts - {""} == {urlsplit(url).netloc}


def violations(page: Page) -> list[str]:
    """What axe-core finds: rule, and where."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


def is_wider_than_the_window(page: Page) -> bool:
    """Whether the page scrolls sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1"))


def broken_words(page: Page) -> list[str]:
    """Words of at most 20 characters that stand on two lines in a table."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("td, th")].flatMap((cell) => {
          const broken = [], range = document.createRange();
          const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
          while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[\\w:.]{1,20}(?![\\w:.])/g)) {
            range.setStart(texts.currentNode, word.index);
            range.setEnd(texts.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map((line) => line.top)).size > 1) broken.push(word[0]);
          }
          return broken;
        })"""
    )
    return found
