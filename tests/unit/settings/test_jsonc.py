"""Changes of one member of a file with comments: what stands around it stays, whatever the file looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.settings.jsonc import MistakeError, parse, with_member, without_member

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
    changed = with_member(FILE, ["mcpServers", "three"], {"command": "c", "args": ["x"]}, indented=True)
    assert plain(changed)["mcpServers"]["three"] == {"command": "c", "args": ["x"]}  # type: ignore[index]
    for comment in ("// the servers of this house", "// the first", "/* the second */", "// its place"):
        assert comment in changed
    assert '    "three": {\n      "command": "c",' in changed


def test_a_member_is_replaced_in_its_place():
    changed = with_member(FILE, ["mcpServers", "one"], {"command": "b"}, indented=True)
    assert changed == FILE.replace('{"command": "a"}', '{\n      "command": "b"\n    }')


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_member_is_taken_out_and_what_is_left_is_json(name):
    changed = without_member(FILE, ["mcpServers", name])
    expected = plain(FILE)
    del expected["mcpServers"][name]  # type: ignore[attr-defined]
    assert plain(changed) == expected
    assert "// the servers of this house" in changed
    inside = changed.split('"mcpServers": {')[1].split("},\n  ")[0]
    assert not inside.rstrip().removesuffix("*/").rstrip().endswith("},"), inside


def test_the_last_of_plain_json_leaves_plain_json():
    text = '{"mcpServers": {"a": {"command": "x"}, "b": {"command": "y"}}}'
    assert json.loads(without_member(text, ["mcpServers", "b"])) == {"mcpServers": {"a": {"command": "x"}}}
    assert json.loads(without_member(text, ["mcpServers", "a"])) == {"mcpServers": {"b": {"command": "y"}}}


@pytest.mark.parametrize(
    "text", ["{}", "{ }", "{\n}\n", '{"x": 1}', '{"mcpServers": {}}', '{"mcpServers": {\n  // none\n}}']
)
def test_what_is_missing_on_the_way_is_made(text):
    changed = with_member(text, ["mcpServers", "a"], {"url": "http://x"}, indented=True)
    assert plain(changed)["mcpServers"] == {"a": {"url": "http://x"}}  # type: ignore[index]
    assert ("// none" in text) == ("// none" in changed)


def test_what_is_not_there_is_not_taken_out():
    assert without_member(FILE, ["mcpServers", "none"]) == FILE
    assert without_member(FILE, ["none", "one"]) == FILE
    assert without_member(COMMENTED, ["keys", "nobody"]) == COMMENTED


@pytest.mark.parametrize("text", ["", "[]", '"x"', '{"mcpServers": 1}'])
def test_a_file_that_holds_no_servers_is_refused(text):
    with pytest.raises(MistakeError):
        with_member(text, ["mcpServers", "a"], {}, indented=True)


NAMES = st.text(min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), NAMES, VALUES, st.sampled_from([None, 2]))
def test_any_member_of_any_object_is_set_and_taken_out_again(members, name, value, indent):
    text = json.dumps({"mcpServers": members, "more": {"x": 1}}, indent=indent)
    changed = with_member(text, ["mcpServers", name], value, indented=True)
    assert json.loads(changed) == {"mcpServers": {**members, name: value}, "more": {"x": 1}}
    rest = {key: kept for key, kept in members.items() if key != name}
    assert json.loads(without_member(changed, ["mcpServers", name])) == {"mcpServers": rest, "more": {"x": 1}}


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
    assert without_member(text, ["b"]) == '{\n  "a": 1,\n  "c": 3\n}'
    assert parse(without_member(text, ["c"])).plain() == {"a": 1, "b": 2}
    assert without_member('{"a": {"x": 1, "y": 2}}', ["a", "y"]) == '{"a": {"x": 1}}'
    assert without_member('{"a": 1, "b": 2}', ["a"]) == '{"b": 2}'
    assert without_member('{"a": 1}', ["a"]) == "{}"


ANY_NAMES = st.text(max_size=4) | st.sampled_from(['"', "a,b", "}", "//", "/*"])
ANY_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | ANY_NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_NAMES, inner, max_size=3),
    max_leaves=8,
)
FILES = st.dictionaries(ANY_NAMES, st.dictionaries(ANY_NAMES, ANY_VALUES, max_size=4), max_size=4)
FORMS = st.sampled_from([None, 0, 2, "\t"])


@given(FILES, FORMS, ANY_NAMES, ANY_NAMES, ANY_VALUES)
def test_the_rest_of_any_file_is_the_same_afterwards(
    file: Any, indent: Any, root: str, name: str, value: Any
) -> None:
    text = json.dumps(file, indent=indent)
    changed = with_member(text, [root, name], value)
    expected = {**file, root: {**file.get(root, {}), name: value}}
    assert parse(changed).plain() == expected
    again = parse(without_member(changed, [root, name])).plain()
    assert again == {**expected, root: {k: v for k, v in expected[root].items() if k != name}}
