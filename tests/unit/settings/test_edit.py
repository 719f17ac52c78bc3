"""Changes of one member in a configuration file: what stands around it stays, whatever the file looks like."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.settings.edit import replace_text, with_member, without_member
from toolway.settings.jsonc import parse

COMMENTED = """{
  // Servers of the house.
  "mcpServers": {
    "time": {"command": "uvx"}, // runs here
  },
  "keys": {
    /* those who left: none */
    "alice": {"hash": "a"} // first
  }
}
"""


def test_a_member_is_added_behind_the_others_and_comments_stay() -> None:
    assert with_member(COMMENTED, ["keys", "bob"], {"hash": "b"}) == COMMENTED.replace(
        '"alice": {"hash": "a"} // first\n', '"alice": {"hash": "a"}, // first\n    "bob": {"hash": "b"}\n'
    )


def test_objects_on_the_way_are_made() -> None:
    assert with_member('{\n\t"mcpServers": {}\n}\n', ["keys", "bob"], {"hash": "b"}) == (
        '{\n\t"mcpServers": {},\n\t"keys": {\n\t\t"bob": {"hash": "b"}\n\t}\n}\n'
    )
    assert with_member("{}", ["keys", "bob"], 1) == '{\n  "keys": {\n    "bob": 1\n  }\n}'
    assert with_member('{"keys": {}}', ["keys", "a"], 1) == '{"keys": {\n  "a": 1\n}}'


def test_a_value_is_replaced_in_its_place() -> None:
    assert with_member(COMMENTED, ["keys", "alice", "hash"], "ä") == COMMENTED.replace('"a"', '"ä"')


def test_a_member_is_taken_out_with_its_line_or_out_of_its_line() -> None:
    text = '{\n  "a": 1,\n  "b": 2, // two\n  "c": 3\n}'
    assert without_member(text, ["a"]) == '{\n  "b": 2, // two\n  "c": 3\n}'
    assert without_member(text, ["b"]) == '{\n  "a": 1,\n   // two\n  "c": 3\n}'
    assert parse(without_member(text, ["c"])).plain() == {"a": 1, "b": 2}
    assert without_member('{"a": {"x": 1, "y": 2}}', ["a", "y"]) == '{"a": {"x": 1}}'
    assert without_member('{"a": 1}', ["a"]) == "{}"


def test_what_is_not_there_cannot_be_taken_out() -> None:
    with pytest.raises(KeyError):
        without_member(COMMENTED, ["keys", "nobody"])


NAMES = st.text(max_size=4) | st.sampled_from(['"', "a,b", "}", "//", "/*"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FILES = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4), max_size=4)
FORMS = st.sampled_from([None, 0, 2, "\t"])


@given(FILES, FORMS, NAMES, NAMES, VALUES)
def test_the_rest_of_any_file_is_the_same_afterwards(
    file: Any, indent: Any, root: str, name: str, value: Any
) -> None:
    text = json.dumps(file, indent=indent)
    changed = with_member(text, [root, name], value)
    expected = {**file, root: {**file.get(root, {}), name: value}}
    assert parse(changed).plain() == expected
    again = parse(without_member(changed, [root, name])).plain()
    assert again == {**expected, root: {k: v for k, v in expected[root].items() if k != name}}


def test_a_file_is_replaced_at_once_and_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_text(link, "new\r\n")
    assert real.read_bytes() == b"new\r\n"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    replace_text(tmp_path / "mcp.json", "{}")
    assert stat.S_IMODE((tmp_path / "mcp.json").stat().st_mode) == 0o600
