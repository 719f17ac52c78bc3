"""A shortcut for the chunks of a stream that differ from one another in their text alone: they are not parsed.

Parsing is most of what a chunk costs, and nearly all chunks of a stream are the same but for a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

from toolway.types import JSON

_PLAIN = bytes(ord("?") if byte < 0x20 or byte in b'"\\' else byte for byte in range(256))
"""A table that changes the bytes which do not stand for themselves between quotes in JSON."""
_CONTINUATIONS = range(0x80, 0xC0)
"""Bytes of UTF-8 with which no character begins."""

MAX_RUN = 128
"""Chunks that are looked at together: where every other one must be parsed, each look is for nothing."""


@dataclass(slots=True)  # one is made of each network read: `frozen` would triple its price
class TextRun:
    """Chunks in a row that differ in their text alone, and the server-sent `events` that they came in.

    Iterated, it gives what `Chunks` holds: (text, the bytes of its chunk). `text` is that of all of them.
    """

    text: str
    quoted: Sequence[bytes]
    events: bytes
    head: bytes
    tail: bytes

    def __len__(self) -> int:
        return len(self.quoted)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        head, tail = self.head, self.tail
        return ((text.decode(), head + text + tail) for text in self.quoted)

    @property
    def behind_first(self) -> bytes:
        """The events without the first one."""
        return self.events[len(b"data: ") + len(self.head) + len(self.quoted[0]) + len(self.tail) + 2 :]


class ChunkTemplate:
    """What stands around the text in chunk after chunk of one stream."""

    _head = _tail = b""
    _begin = _between = _end = b""
    """The same with what is around it in a stream: before the first event, between two, behind the last."""
    _behind_begin: Callable[[bytes], bytes]
    """An event without what stands before its text."""
    _quoted_in: Callable[[bytes], bytes]
    """The text of an event."""

    def learn(self, chunk: JSON, payload: bytes) -> None:
        """Take this chunk as the pattern, if one plain text is all that its delta holds."""
        self._head = self._begin = b""
        choices = chunk["choices"]
        delta = choices[0]["delta"] if choices else {}
        text = delta.get("content")
        if len(delta) == 1 and isinstance(text, str) and text:
            quoted = b'"%s"' % text.encode()
            before, _, after = payload.partition(quoted)
            if before.endswith((b'"content":', b'"content": ')) and quoted not in after:
                self._head, self._tail = head, tail = before + b'"', b'"' + after
                self._begin, self._end = b"data: " + head, tail + b"\n\n"
                self._between = self._end + self._begin
                self._behind_begin = itemgetter(slice(len(self._begin), None))
                self._quoted_in = itemgetter(slice(len(self._begin), -len(self._end)))

    @property
    def is_known(self) -> bool:
        """Whether a chunk was taken as the pattern."""
        return bool(self._head)

    def text_in(self, payload: bytes) -> str | None:
        """The text of a chunk that repeats the pattern; None for any other, and where a parser is needed."""
        head, tail = self._head, self._tail
        if not (head and payload.startswith(head) and payload.endswith(tail)):
            return None
        return _plain_text(payload[len(head) : -len(tail)])

    def run_of(self, events: Sequence[bytes]) -> TextRun | None:
        """The chunks of these events that repeat the pattern, from the first on to the last ones of a stream.

        None when others stand between them, and where a parser is needed: `run_in` looks more closely.
        """
        begin, count = self._begin, len(events)
        while count and not events[count - 1].startswith(begin):
            count -= 1
        if not (begin and count):
            return None
        events = events[:count]
        quoted = list(map(self._quoted_in, events))
        whole = begin + self._between.join(quoted) + self._end
        if whole != b"".join(events) or (plain := _plain_texts(quoted)) is None:
            return None
        return TextRun(plain, quoted, whole, self._head, self._tail)

    def run_in(self, data: bytes) -> tuple[TextRun, bytes] | None:
        """The chunks that repeat the pattern from the first event in `data` on, and the bytes behind them.

        None when the first one does not, and where a parser is needed.
        """
        begin, end = self._begin, self._end
        if not (begin and data.startswith(begin)):
            return None
        if (text := self._only_text_in(data)) is not None:
            return TextRun(text, [data[len(begin) : -len(end)]], data, self._head, self._tail), b""
        # Not at `between`: to look for so long a text is prepared for anew at each place.
        events, size = data.split(end, MAX_RUN)[:-1], len(begin)
        quoted = list(map(self._behind_begin, events))
        if not data.startswith(begin + self._between.join(quoted) + end):
            quoted = [event[size:] for event in takewhile(lambda event: event.startswith(begin), events)]
        if (plain := _plain_texts(quoted)) is None:
            quoted = list(takewhile(_plain_text, quoted))
            plain = b"".join(quoted).decode()
        if not quoted:
            return None
        size = sum(map(len, quoted)) + len(quoted) * (len(begin) + len(end))
        return TextRun(plain, quoted, data[:size], self._head, self._tail), data[size:]

    def _only_text_in(self, data: bytes) -> str | None:
        """The text of the one event in `data`, as a model that takes its time sends them, if it needs no parser."""
        begin, end = self._begin, self._end
        if not data.endswith(end) or data.find(end) + len(end) != len(data):
            return None
        return _plain_text(data[len(begin) : -len(end)])


def _plain_texts(quoted: Sequence[bytes]) -> str | None:
    """The text that all of these are together; None when one of them is empty or must be parsed."""
    if not all(quoted):
        return None
    whole = b"".join(quoted)
    text = _plain_text(whole)
    if text is None or len(text) == len(whole):
        return text
    # A character that is cut in two is none.
    return None if any(map(_CONTINUATIONS.__contains__, map(itemgetter(0), quoted))) else text


def _plain_text(quoted: bytes) -> str | None:
    """The text that stands so between quotes in JSON; None for one that is empty or must be parsed."""
    if not quoted or quoted.translate(_PLAIN) != quoted:
        return None
    try:
        return quoted.decode()
    except UnicodeDecodeError:
        return None
