"""No value is too deep, too large or too broken to be read and written."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.hostile import ODD, VALUES, nested
from toolway.wire.lenient_json import (
    LEFT_OUT,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_PARTS,
    dumps,
    dumps_text,
    harmless,
    loads,
    loads_cut,
    loads_exact,
    loads_harmless,
)

BIG = 17893421123456789012345


@given(VALUES)
def test_every_value_is_made_one_that_every_writer_takes(value: Any):
    made = harmless(value)
    written = dumps({"within": [[made]]})
    assert dumps(json.loads(written)) == written
    json.dumps(made).encode()
    assert dumps(harmless(made)) == dumps(made)


@given(VALUES)
def test_every_value_can_be_written(value: Any):
    json.loads(dumps(value))
    json.loads(dumps(value, sort_keys=True))
    assert dumps_text(value).encode()


@pytest.mark.parametrize(
    "value", [{"a": [1, "b", None, True, 0.5]}, nested(MAX_DEPTH), 2**64 - 1, -(2**63), ""]
)
def test_what_is_harmless_stays_the_same_object(value: Any):
    assert harmless(value) is value


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ("a\ud83cb", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ({"\ud83c": [10**30]}, {"\ufffd": [10**30]}),
        ([10**400, "\ud83c"], [10**400, "\ufffd"]),
        ([10**4200, 1], [LEFT_OUT, 1]),
        ({"a": math.nan, "b": "\ud83c"}, {"a": None, "b": "\ufffd"}),
    ],
    ids=range(6),
)
def test_only_what_is_harmful_changes(value: Any, made: Any):
    assert harmless(value) == made


def test_levels_that_are_too_many_are_left_out():
    assert orjson.dumps(harmless(nested(3000))).count(b"[") == MAX_DEPTH


def test_parts_that_are_too_many_are_left_out():
    made = harmless(["\ud83c"] * (MAX_PARTS + 5))
    assert len(made) <= MAX_PARTS + 1
    assert made[-1] == "…"


def test_integers_stay_exact_where_they_are_written():
    assert dumps_text({"Id": BIG}) == f'{{"Id":{BIG}}}'
    assert dumps({"Id": BIG}) == f'{{"Id":{BIG}}}'.encode()
    assert (
        dumps({"b": BIG, "a": orjson.Fragment(b"[1]")}, sort_keys=True) == f'{{"a":[1],"b":{BIG}}}'.encode()
    )


def test_text_for_people_has_no_halves_of_characters():
    assert dumps_text({"a": "x\ud83cy"}) == '{"a":"x\ufffdy"}'


def test_bytes_for_streams_keep_halves_of_characters():
    assert dumps({"a": "x\ud83cy"}) == b'{"a":"x\\ud83cy"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"i":123456789012345678901234567890}', {"i": 123456789012345678901234567890}),
        ('{"i":9007199254740993}', {"i": 9007199254740993}),
        ('{"s":"\\ud83c"}', {"s": "\ufffd"}),
        ('{"s":"1234567890123456789\\ud83c"}', {"s": "1234567890123456789\ufffd"}),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_a_value_is_read_exactly(text: str, value: Any):
    assert loads_exact(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200 + "]" * 200, "deeper than 128 levels"),
        ('{"a":' * 900 + "1" + "}" * 900, "deeper than 128 levels"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' + "9" * 5000 + "}", "a number of 5,000 digits"),
        ('{"a":1e400}', "too large"),
        ('{"a":NaN}', "NaN"),
        ("[" * 200 + '"\\ud83c"' + "]" * 200, "deeper than 128 levels"),
        ("{'a': 1}", "line 1 column 2"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused_in_words(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        loads_exact(text)


def test_brackets_within_a_text_are_no_levels():
    assert loads_exact(json.dumps({"code": "[" * 500})) == {"code": "[" * 500}


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_what_is_read_leniently_can_be_written(value: Any):
    try:
        text = json.dumps(value).encode()
    except (ValueError, RecursionError):
        return
    read = loads_harmless(text)
    assert dumps(json.loads(dumps([read]))) == dumps([read])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":' + "[" * 3000 + "1" + "]" * 3000 + ',"b":[1]}', {"b": [1]}),
        ('{"a":' + "9" * (MAX_DIGITS + 1) + ',"b":' + "9" * 30 + "}", {"a": LEFT_OUT, "b": 10**30 - 1}),
        ('{"a":-' + "9" * 5000 + ".5e9}", {"a": LEFT_OUT}),
        ('{"a":"' + "9" * 5000 + ']"}', {"a": "9" * 5000 + "]"}),
        ('{"a":"\\\\","b":"\\"]","c":"\\ud800"}', {"a": "\\", "b": '"]', "c": "\ufffd"}),
    ],
    ids=range(5),
)
def test_what_cannot_be_kept_is_left_out_of_what_can(text: str, value: Any):
    assert loads_cut(text.encode()).items() >= value.items()


@given(VALUES)
def test_reading_what_was_written_leaves_out_what_cannot_be_kept(value: Any):
    written = dumps({"a": value})
    assume(not re.search(rb"\d{%d}" % MAX_DIGITS, written))  # the rows above say what becomes of these
    assert loads_cut(written) == harmless(json.loads(written))


def test_cutting_takes_linear_time():
    text = b"[" + b",".join([b"9" * (MAX_DIGITS - 1)] * 500) + b"]"
    started = time.process_time()
    loads_cut(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["[1,", "{]", "]" * 200, "[" * 200])
def test_what_is_no_json_is_refused(text: str):
    with pytest.raises(ValueError, match="char"):
        loads_cut(text.encode())


@given(st.integers(), st.sampled_from(['{"a":%d}', "[%d,1]", '{"s":"x","a":[0.5,%d]}', " %d "]))
def test_an_integer_is_read_as_it_is_written(number: int, form: str):
    text = (form % number).encode()
    assert loads(text) == loads_exact(text) == json.loads(text)


@pytest.mark.parametrize("offset", range(6))
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**19, 17893421123456789012345])
def test_a_large_integer_is_seen_wherever_it_stands(number: int, offset: int):
    text = b'{"%b":%d}' % (b"x" * offset, number)
    assert loads(text) == {"x" * offset: number}
    assert dumps(loads(text)) == text


def test_decimals_of_many_digits_are_floats():
    assert loads(b"[0.00012340980408667956,1.2345678901234567890123]") == [
        0.00012340980408667956,
        1.2345678901234567,
    ]
