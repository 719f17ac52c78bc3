"""Heads of HTTP messages that are the same each time, but for the length of the body."""

from __future__ import annotations

import re

MAX_DIGITS = 8
"""Of the length of a body whose head may be known."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)


class KnownHead:
    """A head as it stands on the wire, apart from the number of bytes in its body."""

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._start = len(before)
        self._length = re.compile(rb"([1-9][0-9]{0,%d})%b" % (MAX_DIGITS - 1, re.escape(after)))

    @classmethod
    def of(cls, data: bytes) -> KnownHead | None:
        """The head that `data` begins with; None for one that is not whole, or does not tell a length once.

        None also for one with a line end without CR: it may be at its end there, in the eyes of its parser.
        """
        size = data.find(b"\r\n\r\n") + 4
        lengths = list(_LENGTH.finditer(data, 0, size))
        if size < 4 or len(lengths) != 1 or data.count(b"\n", 0, size) != data.count(b"\r\n", 0, size):
            return None
        start, end = lengths[0].span(1)
        return cls(data[:start], data[end:size])

    def body_in(self, data: bytes) -> tuple[int, int] | None:
        """Where the body begins and ends of a message with this head; None: it has another, or no body."""
        if data.startswith(self._before) and (found := self._length.match(data, self._start)):
            begin = found.end()
            return begin, begin + int(found[1])
        return None
