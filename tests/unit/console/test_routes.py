"""The files of the page: what was taken from elsewhere is what it says, and all of it is small."""

from __future__ import annotations

import gzip
import hashlib
import json
import re

import pytest

from tests.support.paths import SOURCE
from toolway.console.routes import assets, content_security_policy

VENDOR = SOURCE / "console" / "static" / "vendor"
VENDORED = json.loads((VENDOR / "vendored.json").read_text())


@pytest.mark.parametrize("entry", VENDORED, ids=lambda entry: entry["file"])
def test_a_vendored_file_is_the_published_one_with_its_licence(entry):
    assert hashlib.sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    name = entry["package"].removeprefix("@").replace("/", "-")
    assert f"==== {name}-{entry['version']}" in (VENDOR / "LICENSES.txt").read_text()


def test_nothing_else_is_vendored():
    assert {path.name for path in VENDOR.glob("*.mjs")} == {entry["file"] for entry in VENDORED}


def test_the_page_names_no_other_host_and_runs_no_text():
    for path, asset in assets().items():
        if not path.startswith("vendor/"):
            text = asset.body.decode()
            assert not re.search(r"(src|href|from|import)\s*[=(]?\s*[\"'](https?:)?//", text), path
            assert not re.search(r"innerHTML|dangerouslySet|\beval\(|new Function|\bon[a-z]+=\"", text), path


def test_the_policy_lets_in_the_import_map_of_the_page_alone():
    page = assets()["index.html"].body.decode()
    assert content_security_policy(page) != content_security_policy(page.replace("preact.mjs", "other.mjs"))
    assert len(re.findall(r"<script(?![^>]*\bsrc=)", page)) == 1


def test_all_of_the_console_is_small():
    scripts = [asset.body for path, asset in assets().items() if path.endswith((".js", ".mjs", ".css"))]
    assert sum(map(len, scripts)) < 260_000
    assert sum(len(gzip.compress(body)) for body in scripts) < 90_000
