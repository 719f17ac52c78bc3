"""Compressed bodies, taken piece by piece, and never much at once: a small body can be a huge one."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

PART = 256 * 2**10
"""Bytes of a decompressed part, at most: what takes well under a millisecond."""


class UnknownEncoding(ValueError):
    """A content-encoding that is not read here; the message names it."""


class BrokenBody(ValueError):
    """What came is not compressed as it says."""


class OversizedBody(ValueError):
    """The body is larger than its reader takes; the message is the limit in bytes."""


Decompress = Callable[[bytes], Iterable[bytes]]
Receive = Callable[[], Awaitable[bytes]]
"""What the next network read brings of a body; nothing at its end."""


async def read_body(receive: Receive, encoding: str, limit: int) -> bytes:
    """The whole body, decompressed. Raises UnknownEncoding, BrokenBody; OversizedBody beyond `limit` bytes."""
    decompress = decompressor(encoding) if encoding else None
    parts: list[bytes] = []
    size = 0
    while piece := await receive():
        if decompress is None:
            size += len(piece)
            parts.append(piece)
        else:
            for part in decompress(piece):
                size += len(part)
                parts.append(part)
                if size > limit:
                    break
                if len(part) == PART:
                    await asyncio.sleep(0)  # There is more in this piece, and others want the event loop too.
        if size > limit:
            raise OversizedBody(f"{limit:,}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def decompressor(encoding: str) -> Decompress:
    """A function that takes the pieces of a body in order and gives each decompressed, in parts of at most PART bytes.

    `encoding` is the value of Content-Encoding: none, gzip, or deflate, by which some servers mean zlib's format and
    others the bare one. Raises UnknownEncoding; the function raises BrokenBody.
    """
    names = [name.strip().lower() for name in encoding.split(",")] if encoding else ()
    wanted = [name for name in names if name not in ("", "identity")]
    if not wanted:
        return lambda piece: (piece,)
    if len(wanted) > 1 or wanted[0] not in ("gzip", "x-gzip", "deflate"):
        raise UnknownEncoding(encoding[:40])
    return _Decompressor()


class _Decompressor:
    def __init__(self) -> None:
        self._stream: Any = None
        self._head = b""
        """The beginning of the body, until there is enough of it to see its format."""

    def __call__(self, piece: bytes) -> Iterator[bytes]:
        if self._stream is None:
            self._head += piece
            if len(self._head) < 2:
                return
            self._stream = zlib.decompressobj(_format(self._head))
            piece = self._head
        part = self._take(piece)
        yield part
        while self._stream.unconsumed_tail or len(part) == PART:
            part = self._take(self._stream.unconsumed_tail)
            yield part

    def _take(self, piece: bytes) -> bytes:
        try:
            part: bytes = self._stream.decompress(piece, PART)
        except zlib.error as error:
            raise BrokenBody(str(error)) from error
        return part


def _format(head: bytes) -> int:
    """What zlib calls `wbits`, by the first two bytes (RFC 1950 and 1952); what has neither header is bare."""
    is_zlib = head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0
    return zlib.MAX_WBITS | 32 if is_zlib or head.startswith(b"\x1f\x8b") else -zlib.MAX_WBITS
