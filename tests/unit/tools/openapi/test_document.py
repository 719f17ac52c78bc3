"""Bytes become an OpenAPI document, or a SourceError that says why not."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolway.errors import SourceError
from toolway.tools.openapi import yaml_document as module
from toolway.tools.openapi.document import parse_document
from toolway.wire.large_json import STEP


def parse(text: str | bytes) -> dict[str, Any]:
    return parse_document(text if isinstance(text, bytes) else text.encode())


def members(text: str) -> dict[str, Any]:
    """The members of a YAML mapping, read as a part of a document."""
    read = parse('openapi: "3.1.0"\n' + text)
    del read["openapi"]
    return read


def test_json_and_yaml_say_the_same() -> None:
    assert parse('{"openapi": "3.1.0", "a": [1, true]}') == parse("openapi: 3.1.0\na:\n- 1\n- true\n")


def test_a_byte_order_mark_and_blank_lines_in_front_do_not_matter() -> None:
    assert parse(b'\xef\xbb\xbf\n {"swagger": "2.0"}') == {"swagger": "2.0"}


def test_a_large_document_is_read_in_steps_also_when_an_example_in_it_has_twenty_digits() -> None:
    steps: list[Any] = []
    paths = {f"/{number}": {"get": {"summary": "n" * 500}} for number in range(1000)}
    text = orjson.dumps({"openapi": "3.1.0", "example": "2605736670972794746", "paths": paths})
    sys.setprofile(
        lambda frame, event, argument: steps.append(argument) if argument is orjson.loads else None
    )
    try:
        read = parse(text)
    finally:
        sys.setprofile(None)
    assert read == orjson.loads(text)
    assert len(steps) // 2 >= len(text) // STEP


def test_flow_style_yaml_is_not_taken_for_broken_json() -> None:
    assert parse("{openapi: 3.0.0, paths: {}}") == {"openapi": "3.0.0", "paths": {}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("0o17", "0o17"),
        ("007", 7),
        ("-3", -3),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("-", "-"),
        ("1.2.3", "1.2.3"),
        (".inf", ".inf"),
        ("9" * 400, "9" * 400),
        ("18446744073709551616", 18446744073709551616.0),
        ('"5"', "5"),
        ("'~'", "~"),
    ],
)
def test_plain_scalars_follow_yaml_1_2_and_hold_only_what_json_can(text: str, value: Any) -> None:
    assert members(f"a: {text}") == {"a": value} if text != "-" else True
    orjson.dumps(members("a: " + (text if text != "-" else "x")))


def test_keys_that_look_like_numbers_stay_text() -> None:
    assert members("200: ok\ntrue: x") == {"200": "ok", "true": "x"}


def test_aliases_and_merge_keys_are_followed() -> None:
    text = "base: &b {x: 1, y: 2}\nmine:\n  <<: *b\n  y: 3\nlist: [*b]"
    assert members(text) == {"base": {"x": 1, "y": 2}, "mine": {"x": 1, "y": 3}, "list": [{"x": 1, "y": 2}]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("<!doctype html><title>x</title>", "HTML"),
        ("", "no object at its top"),
        ("[1, 2]", "no object at its top"),
        ("just text", "no object at its top"),
        ('{"error": "Unexpected endpoint"}', 'neither "openapi" nor "swagger"'),
        ('{"openapi": "3.1.0", "paths": ', "broken JSON"),
        ('{"openapi": "4.0.0"}', "2.0 and 3.x can be read"),
        ('{"swagger": "1.2"}', "2.0 and 3.x can be read"),
        (b"\x00\x01\x02", "neither JSON nor YAML"),
        (b"\xff\xfe\xff", "neither JSON nor YAML"),
        ("a: [1", "neither JSON nor YAML"),
        ("a: &a [*a]", "alias *a"),
        ("a: *nowhere", "alias *nowhere"),
        ("? [a]\n: 1", "key that is no text"),
        ("? *x\n: 1", "alias *x"),
        ('{"openapi": "3.1.0", "a": ' + "[" * 5000, "broken JSON"),
        ("a: " + "[" * 100_000, "deeper than 200"),
        ("- " * 100_000, "deeper than 200"),
    ],
)
def test_what_is_no_document_is_refused_with_the_reason(content: str | bytes, why: str) -> None:
    with pytest.raises(SourceError, match=re.escape(why)) as caught:
        parse(content)
    assert caught.value.stage == "parse"


def test_a_billion_laughs_end_early() -> None:
    lines = ["a0: &a0 [" + ",".join(["lol"] * 9) + "]"]
    lines += [f"a{i}: &a{i} [" + ",".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 30)]
    began = time.process_time()
    with pytest.raises(SourceError, match="counting YAML aliases"):
        parse("\n".join(lines))
    assert time.process_time() - began < 5


def test_the_slower_loader_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "openapi: 3.1.0\na: &x [1, no, 'y']\nb: {c: *x}\n"
    fast = parse(text)
    monkeypatch.setattr(module, "Loader", yaml.SafeLoader)
    assert parse(text) == fast


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_a_source_error(content: bytes) -> None:
    try:
        parse(content)
    except SourceError:
        pass


PRINTABLE = st.text(st.characters(categories=["L", "N", "P", "S"]) | st.sampled_from(" \n\t"))


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | PRINTABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4),
    max_leaves=20,
))  # fmt: skip
def test_what_json_says_inside_of_yaml_means_the_same(value: Any) -> None:
    assert members(f"a: {json.dumps(value, ensure_ascii=False)}") == {"a": value}
