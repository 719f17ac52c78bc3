"""Compressed bodies: every format in every split, bounded parts, and what is none of them."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw import raw_deflate, split
from toolway.net import decompress
from toolway.net.decompress import BrokenBody, OversizedBody, UnknownEncoding, decompressor, read_body

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
        inflated = decompressor(encoding)
        parts = [part for piece in split(pack(body), places) for part in inflated(piece)]
    assert b"".join(parts) == body
    if pack is not bytes:
        assert max(map(len, parts)) <= 1000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate], ids=["gzip", "zlib", "bare"])
def test_a_body_may_come_byte_by_byte(pack: Callable[[bytes], bytes]):
    inflated = decompressor("deflate")
    parts = [part for byte in pack(b"hello " * 50) for part in inflated(bytes([byte]))]
    assert b"".join(parts) == b"hello " * 50


@given(st.binary(max_size=50), st.lists(st.integers(0, 50), max_size=3))
def test_garbage_is_broken_or_nothing(garbage: bytes, places: list[int]):
    inflated = decompressor("gzip")
    try:
        for piece in split(garbage, places):
            list(inflated(piece))
    except BrokenBody:
        pass


def test_what_is_not_compressed_is_broken():
    with pytest.raises(BrokenBody):
        list(decompressor("gzip")(b"hello"))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_unknown_encoding_is_named(encoding: str):
    with pytest.raises(UnknownEncoding, match=encoding):
        decompressor(encoding)


async def once(*pieces: bytes) -> Callable[[], Awaitable[bytes]]:
    """A body that comes in these pieces."""
    left = [*pieces, b""]

    async def receive() -> bytes:
        return left.pop(0)

    return receive


async def test_a_body_that_grows_a_thousandfold_leaves_the_event_loop_to_others():
    size = 64 * decompress.PART
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    body = await read_body(await once(gzip.compress(bytes(size))), "gzip", size)
    task.cancel()
    assert len(body) == size
    assert turns >= 60


async def test_a_body_over_the_limit_is_read_no_further():
    with pytest.raises(OversizedBody, match="1,000,000"):
        await read_body(await once(gzip.compress(bytes(2**26))), "gzip", 1_000_000)
    assert await read_body(await once(gzip.compress(bytes(1_000_000))), "gzip", 1_000_000) == bytes(1_000_000)
