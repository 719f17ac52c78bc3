"""Bytes of a stdio server -> JSON-RPC messages: newline framing in linear time, noise left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCMessage
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

EDGE = 512
"""Bytes kept of each end of a line that is too long: an id is near one of them."""

_ID = re.compile(rb'"id"\s*:\s*(\d+)')


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """A line over the limit: only its ends are left, and its size in bytes."""

    head: bytes
    tail: bytes
    size: int


class Lines:
    """Splits a stream of bytes into lines, holding at most `limit` bytes of an unfinished one.

    The SDK's own reader joins the whole buffer again for each chunk: 20 MB cost it 4.8 s of CPU.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start()

    def _start(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head = self._tail = b""

    def feed(self, data: bytes) -> list[bytes | TooLong]:
        """The lines that `data` completes, without their ends."""
        *ends, rest = data.split(b"\n")
        lines = []
        for end in ends:
            self._add(end)
            lines.append(self._take())
        self._add(rest)
        return lines

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._parts.append(piece)
            return
        if self._parts:
            self._head = b"".join(self._parts)[:EDGE]
            self._tail = b"".join(self._parts)[-EDGE:]
            self._parts = []
        self._head = self._head or piece[:EDGE]
        self._tail = (self._tail + piece[-EDGE:])[-EDGE:]

    def _take(self) -> bytes | TooLong:
        line: bytes | TooLong = (
            b"".join(self._parts)
            if self._size <= self._limit
            else TooLong(head=self._head, tail=self._tail, size=self._size)
        )
        self._start()
        return line


def parse(line: bytes | TooLong) -> list[JSONRPCMessage]:
    """The messages of one line: none for noise, several for a batch (protocol 2025-03-26).

    An answer that cannot be used becomes an error under its own id, so that its call ends.
    """
    if isinstance(line, TooLong):
        return _too_long(line)
    line = line.strip()
    if not line.startswith((b"{", b"[")):
        return []
    try:
        return [jsonrpc_message_adapter.validate_json(line, by_name=False)]
    except ValidationError:
        return _mend(line)


def _too_long(line: TooLong) -> list[JSONRPCMessage]:
    found = _ID.search(line.head) or _ID.search(line.tail)
    if found is None:
        return []
    return [_error(int(found[1]), f"the answer of {line.size / 2**20:.0f} MiB is over the limit")]


def _mend(line: bytes) -> list[JSONRPCMessage]:
    try:
        value = orjson.loads(line.decode(errors="replace"))
    except orjson.JSONDecodeError:
        return []
    items = value if isinstance(value, list) else [value]
    return [message for item in items for message in _mend_one(item)]


def _mend_one(item: Any) -> list[JSONRPCMessage]:
    if not isinstance(item, dict):
        return []
    try:
        return [jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **item}, by_name=False)]
    except ValidationError:
        pass
    if isinstance(item.get("id"), int) and "method" not in item and ("result" in item or "error" in item):
        return [_error(item["id"], _complaint(item))]
    return []


def _complaint(item: dict[str, Any]) -> str:
    error = item.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return str(error)[:500] if isinstance(error, str) else "the server's answer is not valid JSON-RPC"


def _error(request_id: int, message: str) -> JSONRPCError:
    return JSONRPCError(
        jsonrpc="2.0", id=request_id, error=ErrorData(code=INTERNAL_ERROR, message=message, data=None)
    )
