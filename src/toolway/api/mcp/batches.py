"""Batches, which only protocol 2025-03-26 has: several messages in one body, answered in turn by one list."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from starlette.types import Message, Scope, Send

from toolway.api.mcp.faults import BATCH_VERSION
from toolway.errors import InvalidRequest
from toolway.server.asgi import STREAM_HEADERS, send_whole
from toolway.wire import sse

MAX_MESSAGES = 100
"""Messages in a batch."""


def batch_in(scope: Scope, body: bytes) -> list[bytes]:
    """The messages of a batch; none where a body is something else, or a version told that has no batches.

    A version that is not told is 2025-03-26, says the specification. Raises InvalidRequest.
    """
    versions = [value for name, value in scope["headers"] if name == b"mcp-protocol-version"]
    if body.lstrip()[:1] != b"[" or versions not in ([], [BATCH_VERSION.encode()]):
        return []
    try:
        messages = json.loads(body)
        batch = [json.dumps(message).encode() for message in messages]
    except (ValueError, RecursionError):
        return []
    if not 0 < len(batch) <= MAX_MESSAGES:
        raise InvalidRequest(f"A batch has 1 to {MAX_MESSAGES} messages, not {len(batch)}.")
    if any(isinstance(message, dict) and message.get("method") == "initialize" for message in messages):
        raise InvalidRequest("`initialize` cannot be in a batch; send it by itself.")
    return batch


async def answer_batch(
    answer: Callable[[bytes, Send], Awaitable[None]], batch: list[bytes], send: Send
) -> None:
    """Have each message answered, and send the answers as one list."""
    answers = _BatchAnswer(send)
    for message in batch:
        await answer(message, answers.part())
    await answers.end()


class _BatchAnswer:
    """A list, which is an event of a stream if something else came first: progress, a question, a ping."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._answers: list[bytes] = []
        self._statuses: list[int] = []
        self._is_stream = False

    def part(self) -> Send:
        """`send` for the answer to one message."""
        decoder, whole, is_stream = sse.Decoder(), bytearray(), False

        async def send_part(message: Message) -> None:
            nonlocal is_stream
            body = message.get("body", b"")
            if message["type"] == "http.response.start":
                self._statuses.append(message["status"])
                is_stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            elif not is_stream:
                whole.extend(body)
                if whole and not message.get("more_body"):
                    self._answers.append(bytes(whole))
            elif body.startswith(b":"):
                await self._write(body)
            else:
                for payload in decoder.feed(body):
                    if "method" in json.loads(payload):
                        await self._write(sse.encode(payload))
                    else:
                        self._answers.append(payload)

        return send_part

    async def end(self) -> None:
        """Send the list; nothing if no message wanted an answer."""
        whole = b"[%b]" % b",".join(self._answers)
        if self._is_stream:
            await self._write(sse.encode(whole), more=False)
        elif self._answers:
            lowest = min(self._statuses)  # a session that is gone is gone for all of them
            await send_whole(self._send, lowest if lowest >= 400 else 200, whole)
        else:
            await send_whole(self._send, 202, b"", ())

    async def _write(self, events: bytes, *, more: bool = True) -> None:
        if not self._is_stream:
            self._is_stream = True
            await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": more})
