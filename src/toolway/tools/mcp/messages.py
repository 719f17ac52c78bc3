"""Bytes -> JSON-RPC messages, for every transport: what cannot be used is an error of the request that it answers.

For stdio also the framing: newlines in linear time, noise left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcp_types import INTERNAL_ERROR, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCResponse
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

from toolway.wire import sse
from toolway.wire.lenient_json import fix_surrogates_in, loads, loads_cut

EDGE = 512
"""Bytes kept of each end of a line that is too long: an id is near one of them."""


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


class MessageLines:
    """The lines of a server that look like messages. `noise` counts the bytes of all others until it is reset.

    `on_noise` is told each line of text. A message that is printed over several lines, from a line "{" to a line "}",
    counts as one.
    """

    def __init__(self, limit: int, on_noise: Callable[[bytes], None] = lambda line: None) -> None:
        self.noise = 0
        self._limit = limit
        self._on_noise = on_noise
        self._lines = Lines(limit)
        self._indented: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes | TooLong]:
        """What `data` completes."""
        return [found for line in self._lines.feed(data) if (found := self._take(line)) is not None]

    def _take(self, line: bytes | TooLong) -> bytes | TooLong | None:
        if isinstance(line, TooLong):
            return line
        if self._indented and not line.startswith((b'{"', b"[")):
            return self._continue(line)
        self._discard()
        text = line.strip()
        if text == b"{":
            self._indented, self._size = [line], len(line)
            return None
        if text.startswith((b"{", b"[")):
            return text
        self.noise += len(line) + 1
        self._on_noise(line)
        return None

    def _continue(self, line: bytes) -> bytes | None:
        self._indented.append(line)
        self._size += len(line)
        if line.rstrip() == b"}":
            whole = b"\n".join(self._indented)
            self._indented = []
            return whole
        if self._size > self._limit:
            self._discard()
        return None

    def _discard(self) -> None:
        if self._indented:
            self.noise += self._size
            self._indented = []


RequestId = int | str
RpcResponse = JSONRPCResponse | JSONRPCError

MAX_SHOWN = 200
"""Characters of an answer that is no message which an error shows."""

_SCALAR = rb'(?:"[^"\\]*"|[\d.]+|null|true|false)'
_ID = rb'"id"\s*:\s*"?(\d+)"?\s*'
_MEMBERS = rb'\s*\{(?:\s*"[^"\\]*"\s*:\s*' + _SCALAR + rb"\s*,)*?\s*"
_METHOD = re.compile(_MEMBERS + rb'"method"')
_ID_AT_START = re.compile(_MEMBERS + _ID)
_ID_AT_END = re.compile(rb",\s*" + _ID + rb'(?:,\s*"jsonrpc"\s*:\s*"[^"]*"\s*)?\}\s*$')


def parse(data: bytes | TooLong) -> list[JSONRPCMessage]:
    """The messages of a line or an event: none for noise, several for a batch (protocol 2025-03-26).

    An answer that cannot be used becomes an error under its own id, so that its call ends. Half a surrogate pair
    becomes U+FFFD.
    """
    if isinstance(data, TooLong):
        return _unreadable(
            data.head, data.tail, f"the answer of {data.size / 2**20:.0f} MiB is over the limit"
        )
    if data.lstrip()[:1] not in (b"{", b"["):
        return []
    try:
        return [jsonrpc_message_adapter.validate_json(data, by_name=False)]
    except ValidationError:
        return _mend(data)


def parse_answer(data: bytes, request_id: RequestId) -> list[JSONRPCMessage]:
    """The messages of an HTTP body that answers one request: it ends with the one answer, whatever came."""
    messages = [message for payload in _payloads(data) for message in parse(payload)]
    others: list[JSONRPCMessage] = [message for message in messages if not isinstance(message, RpcResponse)]
    answers = (correlated(message, request_id) for message in messages if isinstance(message, RpcResponse))
    return [*others, next(answers, None) or error(request_id, _describe(data), PARSE_ERROR)]


def correlated(answer: RpcResponse, request_id: RequestId) -> RpcResponse:
    """The answer that an exchange brought, under the id of its request; a result that names another is an error."""
    if isinstance(answer, JSONRPCError):
        return JSONRPCError(jsonrpc="2.0", id=request_id, error=answer.error)
    if str(answer.id) != str(request_id):
        return error(request_id, f"the server answered under another id: {str(answer.id)[:50]!r}")
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result=answer.result)


def error(request_id: RequestId, message: str, code: int = INTERNAL_ERROR) -> JSONRPCError:
    """An answer that says why there is none."""
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message, data=None))


def _payloads(data: bytes) -> list[bytes]:
    """The body, or its events where a server forgot to say that it streams."""
    if not data.startswith((b"event:", b"data:", b":", b"id:")):
        return [data]
    decoder = sse.Decoder()
    try:
        return [*decoder.feed(data), *decoder.close()]
    except sse.NotAnEventStream:
        return [data]


def _describe(data: bytes) -> str:
    text = data[: MAX_SHOWN * 4].decode(errors="replace").strip()
    if not text:
        return "the server's answer is empty"
    if text.startswith("<"):
        return "the server answered with a web page, not with JSON-RPC"
    return f"the server's answer is not JSON-RPC: {text[:MAX_SHOWN]}"


def _unreadable(head: bytes, tail: bytes, message: str) -> list[JSONRPCMessage]:
    """An error under the id of an answer of which only the ends are looked at; nothing for other messages."""
    found = _ID_AT_START.match(head) or _ID_AT_END.search(tail)
    return [error(int(found[1]), message)] if found and not _METHOD.match(head) else []


def _cut_tool_list(data: bytes) -> list[JSONRPCMessage]:
    """A list of tools without what cannot be kept in it: one odd schema does not cost the whole server."""
    if b'"tools"' not in data:
        return []
    try:
        value = loads_cut(data.decode(errors="replace").encode())
    except ValueError:
        return []
    result = value.get("result") if isinstance(value, dict) else None
    is_list = isinstance(result, dict) and isinstance(result.get("tools"), list)
    return _mend_one(value) if is_list else []


def _mend(data: bytes) -> list[JSONRPCMessage]:
    try:
        value = fix_surrogates_in(loads(data.decode(errors="replace").encode()))
    except (ValueError, RecursionError) as fault:
        if tool_list := _cut_tool_list(data):
            return tool_list
        return _unreadable(data[:EDGE], data[-EDGE:], f"the server's answer cannot be read: {_reason(fault)}")
    items = value if isinstance(value, list) else [value]
    return [message for item in items for message in _mend_one(item)]


def _reason(fault: Exception) -> str:
    if "digits" in str(fault):
        return "it holds a number of too many digits"
    if isinstance(fault, RecursionError) or "nested" in str(fault):
        return "it is nested too deeply"
    return "it is not valid JSON"


def _mend_one(item: Any) -> list[JSONRPCMessage]:
    if not isinstance(item, dict):
        return []
    try:
        return [jsonrpc_message_adapter.validate_python({"jsonrpc": "2.0", **item}, by_name=False)]
    except ValidationError:
        pass
    if "method" in item or not ("result" in item or "error" in item):
        return []
    request_id = item.get("id")
    if isinstance(request_id, int | str):
        return [error(request_id, _complaint(item))]
    return [JSONRPCError(jsonrpc="2.0", id=None, error=error(0, _complaint(item)).error)]


def _complaint(item: dict[str, Any]) -> str:
    fault = item.get("error")
    if isinstance(fault, dict) and isinstance(fault.get("message"), str):
        return str(fault["message"])
    return str(fault)[:500] if isinstance(fault, str) else "the server's answer is not valid JSON-RPC"
