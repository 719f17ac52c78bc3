"""Server-sent events: bytes -> payloads as sloppy servers send them, payloads -> bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

DONE = b"[DONE]"
"""The payload after the last one of a stream."""
KEEP_ALIVE = b": keep-alive\n\n"

LF, CR = b"\n\r"
"""As numbers, which CPython 3.11 finds in bytes ten times as fast as it finds bytes."""

_FIELDS = (b":", b"event", b"id", b"retry", b"data")
MAX_EVENT_BYTES = 32 * 2**20
MAX_EVENT_LINES = 100_000


class NotAnEventStream(ValueError):
    """The server writes something else than events: a JSON error, an HTML page, an endless line.

    `text` is what it wrote, at most 2,000 bytes of it, `payloads` are those of the events before it.
    """

    def __init__(self, text: bytes, payloads: Sequence[bytes] = ()) -> None:
        super().__init__(text[:2000].decode(errors="replace"))
        self.text = text[:2000]
        self.payloads = payloads


class Decoder:
    """Splits a byte stream, cut anywhere, into the `data` of its events (WHATWG HTML 9.2.6).

    Comments and the fields event, id and retry are passed over. Two deviations: an event that the end of the
    stream cuts short is still delivered, and a line that starts like JSON or HTML, or is a field `error`, is an error
    instead of an unknown field, since that is how servers break in (vLLM, llama.cpp and every reverse proxy).
    `stray` is the first line of any other field that stands before DONE.
    """

    stray = b""
    _size = 0
    _at_start = True

    def __init__(self) -> None:
        self._unfinished: list[bytes] = []
        self._data: list[bytes] = []

    @property
    def is_between_events(self) -> bool:
        """Whether what comes next begins an event."""
        return not (self._unfinished or self._data or self._at_start)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes, in order; several `data` lines are joined by a newline.

        Raises NotAnEventStream.
        """
        if data.find(LF) == len(data) - 2 and data.startswith(b"data: ") and self._is_one_event(data):
            self._at_start = False
            return [data[6:-2]]
        if LF not in data and CR not in data:
            self._keep(data)
            return []
        if self._unfinished:
            data = b"".join([*self._unfinished, data])
        if CR in data:
            data = data.replace(b"\r\n", b"\n")
            held = data.endswith(b"\r")  # perhaps the first half of CRLF
            data = data[:-1].replace(b"\r", b"\n") + b"\r" if held else data.replace(b"\r", b"\n")
        if self._at_start:
            data = data.removeprefix(b"\xef\xbb\xbf")
            self._at_start = False
        if not self._data and (payloads := _plain_payloads(data)) is not None:
            self._unfinished, self._size = [], 0
            return payloads
        lines = data.split(b"\n")
        rest = lines.pop()
        self._unfinished = [rest] if rest else []
        self._size = len(rest)
        return self._read(lines)

    def _is_one_event(self, data: bytes) -> bool:
        """Whether this, which has its first line break before its last byte, is an event of one line."""
        return data[-1] == LF and CR not in data and not (self._unfinished or self._data)

    def close(self) -> list[bytes]:
        """The payload of an event that had no blank line behind it when the stream ended, if any."""
        rest = b"".join(self._unfinished).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._at_start:
            rest = rest.removeprefix(b"\xef\xbb\xbf")
        self._unfinished = []
        return self._read([*rest.split(b"\n"), b""])

    def _keep(self, data: bytes) -> None:
        self._unfinished.append(data)
        self._size += len(data)
        if self._size > MAX_EVENT_BYTES:
            raise NotAnEventStream(self._unfinished[0])

    def _read(self, lines: list[bytes]) -> list[bytes]:
        payloads, is_over = [], False
        data = self._data
        for number, line in enumerate(lines):
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if data:
                    payloads.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    is_over = is_over or payloads[-1].startswith(DONE)
            elif line.lstrip()[:1] in (b"{", b"<", b"["):
                raise NotAnEventStream(b"\n".join(takewhile(bool, lines[number:])), payloads)
            elif line.startswith(b"error:"):
                raise NotAnEventStream(line.removeprefix(b"error:").strip(), payloads)
            elif not (self.stray or is_over or line.startswith(_FIELDS)):
                self.stray = line[:2000]
        if len(data) > MAX_EVENT_LINES:
            raise NotAnEventStream(data[0], payloads)
        return payloads


def _plain_payloads(data: bytes) -> list[bytes] | None:
    """The payloads of whole events of one line each, as nearly all are; None where there is anything else."""
    *events, rest = data.split(b"\n\n")
    between = len(events) - 1
    is_plain = (
        not rest
        and data.startswith(b"data: ")
        and data.count(b"\n\ndata: ") == between
        and data.count(b"\n") == 2 * len(events)
    )
    return [event[6:] for event in events] if is_plain else None


def encode(payload: bytes) -> bytes:
    """One event with this payload."""
    if LF in payload:
        payload = payload.replace(b"\n", b"\ndata: ")
    return b"data: " + payload + b"\n\n"


STREAM_END = encode(DONE)
"""The last event of a stream of OpenAI's APIs."""
