"""Changes of one member of a file with comments."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.settings.jsonc import MistakeError, parse
from toolway.settings.jsonc_edit import remove_member, set_member

FILE = """{
  // the servers of this house
  "mcpServers": {
    "one": {"command": "a"}, // the first
    /* the second */
    "two": {
      "url": "http://x" // its place
    }
  },
  "other": [1, 2,],
}
"""


def plain(text: str) -> object:
    return parse(text).plain()


def test_a_new_member_goes_behind_the_others_and_comments_stay():
    changed = set_member(FILE, ["mcpServers", "three"], {"command": "c", "args": ["x"]})
    assert plain(changed)["mcpServers"]["three"] == {"command": "c", "args": ["x"]}  # type: ignore[index]
    for comment in ("// the servers of this house", "// the first", "/* the second */", "// its place"):
        assert comment in changed
    assert '    "three": {\n      "command": "c",' in changed


def test_a_member_is_replaced_in_its_place():
    changed = set_member(FILE, ["mcpServers", "one"], {"command": "b"})
    assert changed == FILE.replace('{"command": "a"}', '{\n      "command": "b"\n    }')


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_member_is_taken_out_and_what_is_left_is_json(name):
    changed = remove_member(FILE, ["mcpServers", name])
    expected = plain(FILE)
    del expected["mcpServers"][name]  # type: ignore[attr-defined]
    assert plain(changed) == expected
    assert "// the servers of this house" in changed
    inside = changed.split('"mcpServers": {')[1].split("},\n  ")[0]
    assert not inside.rstrip().removesuffix("*/").rstrip().endswith("},"), inside


def test_the_last_of_plain_json_leaves_plain_json():
    text = '{"mcpServers": {"a": {"command": "x"}, "b": {"command": "y"}}}'
    assert json.loads(remove_member(text, ["mcpServers", "b"])) == {"mcpServers": {"a": {"command": "x"}}}
    assert json.loads(remove_member(text, ["mcpServers", "a"])) == {"mcpServers": {"b": {"command": "y"}}}


@pytest.mark.parametrize(
    "text", ["{}", "{ }", "{\n}\n", '{"x": 1}', '{"mcpServers": {}}', '{"mcpServers": {\n  // none\n}}']
)
def test_what_is_missing_on_the_way_is_made(text):
    changed = set_member(text, ["mcpServers", "a"], {"url": "http://x"})
    assert plain(changed)["mcpServers"] == {"a": {"url": "http://x"}}  # type: ignore[index]
    assert ("// none" in text) == ("// none" in changed)


def test_what_is_not_there_is_not_taken_out():
    assert remove_member(FILE, ["mcpServers", "none"]) == FILE
    assert remove_member(FILE, ["none", "one"]) == FILE


@pytest.mark.parametrize("text", ["", "[]", '"x"', '{"mcpServers": 1}'])
def test_a_file_that_holds_no_servers_is_refused(text):
    with pytest.raises(MistakeError):
        set_member(text, ["mcpServers", "a"], {})


NAMES = st.text(min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), NAMES, VALUES, st.sampled_from([None, 2]))
def test_any_member_of_any_object_is_set_and_taken_out_again(members, name, value, indent):
    text = json.dumps({"mcpServers": members, "more": {"x": 1}}, indent=indent)
    changed = set_member(text, ["mcpServers", name], value)
    assert json.loads(changed) == {"mcpServers": {**members, name: value}, "more": {"x": 1}}
    rest = {key: kept for key, kept in members.items() if key != name}
    assert json.loads(remove_member(changed, ["mcpServers", name])) == {"mcpServers": rest, "more": {"x": 1}}
