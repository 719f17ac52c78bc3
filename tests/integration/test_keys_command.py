"""`toolway keys`, as people type it: what it prints, what the file holds afterwards, and that it opens Toolway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from tests.support.app_server import app_server

FILE = """{
  // The servers.
  "mcpServers": {},
  "groups": {"family": {"tools": ["weather"]}}
}
"""


def keys(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toolway", "keys", *arguments],
        check=False,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_key_is_made_listed_rotated_and_revoked(tmp_path: Path):
    file = tmp_path / "mcp.json"
    file.write_text(FILE)
    added = keys(tmp_path, "add", "Jürgen M", "--group", "family", "--expires", "2999-12-31")
    secret = added.stdout.strip()
    assert secret.startswith("sk-toolway-") and secret not in added.stderr
    text = file.read_text()
    assert "// The servers." in text and secret not in text
    assert sha256(secret.encode()).hexdigest() in text
    listed = keys(tmp_path, "list").stdout
    assert "Jürgen M  family  until 2999-12-31  weather (group)" in listed
    rotated = keys(tmp_path, "rotate", "Jürgen M", "--json")
    other = json.loads(rotated.stdout)["key"]
    with app_server(config=str(file)) as app:
        assert [_opens(app.url, key) for key in (secret, other)] == [False, True]
    assert keys(tmp_path, "revoke", "Jürgen M").returncode == 0
    assert json.loads(keys(tmp_path, "list", "--json").stdout) == []
    with app_server(config=str(file)) as app:
        assert not _opens(app.url, other)


def _opens(url: str, key: str) -> bool:
    return httpx2.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "bob", "--group", "famly"], "there is no group 'famly'; did you mean 'family'"),
        (["add", "bob", "--expires", "soon"], "keys.bob.expires: 'soon' is no date"),
        (["add", "bob", "--expires", "2020-01-01"], "2020-01-01 is over: the key bob would open nothing"),
        (["add", "bob", "--routes", "chats"], "keys.bob.routes[0]: 'chats' is none of chat"),
        (["add", " "], "a name has 1 to 100 visible characters"),
        (["rotate", "bob"], "There is no key bob; those that are: none."),
        (["revoke", "bob"], "There is no key bob"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_the_file_as_it_was(
    tmp_path: Path, arguments: list[str], said: str
):
    file = tmp_path / "mcp.json"
    file.write_text(FILE)
    done = keys(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr and "Traceback" not in done.stderr
    assert file.read_text() == FILE


def test_a_broken_file_is_not_touched(tmp_path: Path):
    (tmp_path / "mcp.json").write_text('{"mcpServers": {}')
    assert "mcp.json:1: expected" in keys(tmp_path, "add", "bob").stderr
    assert (tmp_path / "mcp.json").read_text() == '{"mcpServers": {}'


def test_without_a_file_one_is_made(tmp_path: Path):
    assert keys(tmp_path, "add", "bob").returncode == 0
    assert "bob" in json.loads((tmp_path / "mcp.json").read_text())["keys"]


def test_keys_that_are_made_at_the_same_time_are_all_there(tmp_path: Path):
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda number: keys(tmp_path, "add", f"key {number}"), range(4)))
    assert all(one.returncode == 0 for one in made)
    assert len(json.loads((tmp_path / "mcp.json").read_text())["keys"]) == 4
