"""Compressed bodies: every format in every split, bounded parts, and what is none of them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw import raw_deflate, split
from toolway.net import decompress
from toolway.net.decompress import BrokenBody, UnknownEncoding, inflater

FORMATS = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": (" X-GZIP", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "bare": ("identity, deflate", raw_deflate),
    "none": ("", bytes),
    "identity": ("identity", bytes),
}

bodies = st.binary(min_size=1, max_size=300) | st.builds(
    lambda text, times: text * times, st.binary(min_size=1, max_size=3), st.integers(1, 9_000)
)


@pytest.mark.parametrize("name", FORMATS)
@given(body=bodies, places=st.lists(st.integers(0, 10_000), max_size=5))
def test_any_body_comes_back_whole_in_small_parts(name: str, body: bytes, places: list[int]):
    encoding, pack = FORMATS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decompress, "PART", 1000)
        inflated = inflater(encoding)
        parts = [part for piece in split(pack(body), places) for part in inflated(piece)]
    assert b"".join(parts) == body
    if pack is not bytes:
        assert max(map(len, parts)) <= 1000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate], ids=["gzip", "zlib", "bare"])
def test_a_body_may_come_byte_by_byte(pack: Callable[[bytes], bytes]):
    inflated = inflater("deflate")
    parts = [part for byte in pack(b"hello " * 50) for part in inflated(bytes([byte]))]
    assert b"".join(parts) == b"hello " * 50


@given(st.binary(max_size=50), st.lists(st.integers(0, 50), max_size=3))
def test_garbage_is_broken_or_nothing(garbage: bytes, places: list[int]):
    inflated = inflater("gzip")
    try:
        for piece in split(garbage, places):
            list(inflated(piece))
    except BrokenBody:
        pass


def test_what_is_not_compressed_is_broken():
    with pytest.raises(BrokenBody):
        list(inflater("gzip")(b"hello"))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_unknown_encoding_is_named(encoding: str):
    with pytest.raises(UnknownEncoding, match=encoding):
        inflater(encoding)
