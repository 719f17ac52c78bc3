"""What commands print is harmless to a terminal, whatever tool servers call their tools."""

from __future__ import annotations

import json
import re
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT
from toolway.app.doctor import Finding
from toolway.app.terminal import (
    complain,
    print_findings,
    print_json,
    print_markup,
    print_result,
    print_table,
    print_text,
    printable,
)

HOSTILE = "\u202e\u2066\u200b\u200d\ufeff\x1b\x07\x08\x7f\x9b\r\n\t\u2028\x00\U000e0041[]{}/\\"
TEXTS = st.text(st.sampled_from(HOSTILE) | st.characters(codec=None), max_size=20)


def is_harmless(text: str) -> bool:
    return all(one == "\n" or one.isprintable() or category(one) == "Zs" for one in text)


@given(text=TEXTS)
def test_nothing_that_is_printed_acts_on_a_terminal_or_hides_in_it(
    text: str, capsys: pytest.CaptureFixture[str]
):
    print_text(text)
    complain(text)
    print_markup("[bold]{text}[/]", text=text)
    print_table(["a", "b"], [[text, text], ["ready", text]])
    print_findings([Finding(check=text, ok=False, detail=text, advice=text)])
    read = capsys.readouterr()
    assert is_harmless(read.out + read.err)


@given(value=st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_json_is_harmless_and_the_same_value(value: object, capsys: pytest.CaptureFixture[str]):
    print_json(value)
    text = capsys.readouterr().out
    assert is_harmless(text)
    assert json.loads(text) == json.loads(json.dumps(value))


def test_what_people_write_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]):
    for text in ("東京\u3000天気", "é\N{SNOWMAN}🎉", "two\nlines"):
        assert printable(text) == text
        print_json(text)
        assert json.loads(capsys.readouterr().out) == text
    assert printable("a\r\nb\tc\u202e") == "a\nb       c\\u202e"


def test_what_a_tool_returned_is_exact_for_a_pipe(capsys: pytest.CaptureFixture[str]):
    print_result("\x1b[31m\u202e")
    assert capsys.readouterr().out == "\x1b[31m\u202e\n"


def test_no_command_prints_past_it():
    past = re.compile(r"typer\.(echo|secho|confirm|prompt)|\bprint\(|\bConsole\(")
    for path in (ROOT / "src/toolway/app").glob("*.py"):
        assert path.name == "terminal.py" or not past.search(path.read_text(encoding="utf-8")), path
